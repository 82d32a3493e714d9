"""Objectives against the collapse of entropy (arXiv 2505.22617).

Entropy falls by the covariance of log pi and A, and a few tokens make up most of it. These objectives hold them back.
Covariances are over all tokens of an update's batch, so its gradient cannot be computed in micro-batches.
"""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.component import Loss, Objective
from rl_llm.algorithms.objective import RatioObjective, clipped_surrogate, log_ratio, magnitude, ratio_metrics
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.config.fields import PositiveFloat, PositiveOrInfinite, PositiveShare
from rl_llm.types import Batch, masked_mean


def covariance(logp: jax.Array, batch: Batch) -> jax.Array:
    """(A - mean A) (log pi - mean log pi) at each token with a weight, a constant f32[B, T]; -inf at other tokens."""
    chex.assert_equal_shape([logp, batch.advantage, batch.weight])
    seen = batch.weight > 0
    tokens = jnp.maximum(jnp.sum(seen), 1)

    def centred(x: jax.Array) -> jax.Array:
        return x - jnp.sum(jnp.where(seen, x, 0.0)) / tokens

    return jnp.where(seen, centred(batch.advantage) * centred(jax.lax.stop_gradient(logp)), -jnp.inf)


def largest(values: jax.Array, count: jax.Array) -> jax.Array:
    """Mask (bool, same shape) of the `count` i32[] largest values, with all ties of the last and without -inf."""
    ordered = jnp.sort(values.reshape(-1), descending=True)
    last = ordered[jnp.clip(count - 1, 0, ordered.shape[0] - 1)]
    return (values >= last) & (values > -jnp.inf) & (count > 0)


def count_share(share: float, batch: Batch) -> jax.Array:
    """That share of the tokens with a weight, rounded down, at least one: i32[]."""
    tokens = jnp.sum(batch.weight > 0).astype(jnp.float32)
    # float32 can put a whole number slightly too low, hence the small extra.
    return jnp.maximum(jnp.floor(share * tokens * (1 + 1e-6)).astype(jnp.int32), 1)


def refuse_parts(component: object, run: RunShape) -> None:
    """Raises ValueError if an update is computed in parts: none of them sees the whole covariance."""
    if run.micro_batches > 1:
        raise ValueError(
            f"{type(component).__name__} with micro_batches={run.micro_batches}: the covariance is over the whole "
            "batch of an update, and a part would pick other tokens; set micro_batches=1"
        )


@dataclass(frozen=True)
class ClipCov(RatioObjective):
    """The clipped surrogate without the `share` of tokens of largest covariance (arXiv 2505.22617).

    Candidates are tokens with a covariance between `floor` and `ceiling` that the clip leaves alone. The paper draws
    from them at random; here only the batch decides.
    """

    low: PositiveShare = 0.2
    high: PositiveOrInfinite = 0.2
    share: PositiveShare = 2e-4
    floor: float = 1.0
    ceiling: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.floor < self.ceiling:
            raise ValueError(f"ClipCov needs floor < ceiling, not floor={self.floor}, ceiling={self.ceiling}")

    def check(self, run: RunShape) -> None:
        """Raises ValueError with micro-batches, and for bounds set in a run in which no ratio leaves 1."""
        refuse_parts(self, run)
        super().check(run)

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        ratio = jnp.exp(log_ratio(logp, batch.old_logp))
        loss, metrics = clipped_surrogate(ratio, batch, self.low, self.high)
        clipped = loss > -ratio * batch.advantage
        cov = covariance(logp, batch)
        eligible = (cov > self.floor) & (cov < self.ceiling) & ~clipped
        dropped = largest(jnp.where(eligible, cov, -jnp.inf), count_share(self.share, batch))
        seen = (batch.weight > 0).astype(jnp.float32)
        metrics |= {"policy/covariance_dropped": masked_mean(dropped.astype(jnp.float32), seen)}
        return jnp.where(dropped, 0.0, loss), metrics


@dataclass(frozen=True)
class KLCov(Objective):
    """-rho A, plus coefficient |log rho| at the `share` of tokens of largest covariance (arXiv 2505.22617)."""

    share: PositiveShare = 2e-3
    coefficient: PositiveFloat = 1.0

    def check(self, run: RunShape) -> None:
        """Raises ValueError with micro-batches, and in a run in which no ratio leaves 1: nothing to hold."""
        refuse_parts(self, run)
        if run.updates_per_rollout == 1:
            raise ValueError(
                f"{self} cannot act with one on-policy update per rollout: no ratio leaves 1, so there is nothing to "
                "hold; set updates_per_rollout, or take PolicyGradient"
            )

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        away = log_ratio(logp, batch.old_logp)
        ratio = jnp.exp(away)
        held = largest(covariance(logp, batch), count_share(self.share, batch))
        none = jnp.zeros_like(held)
        metrics = ratio_metrics(ratio, batch, low=none, high=none)
        loss = -ratio * batch.advantage + jnp.where(held, self.coefficient * magnitude(away), 0.0)
        return loss, metrics
