"""Objectives against the collapse of entropy (arXiv 2505.22617): entropy falls by the covariance of log pi and A, and a
few tokens make up most of it. Those are held back.

Covariances are over all tokens of the batch of an update, so its gradient cannot be computed in parts.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rl_llm.algorithms.objective import check_bounds, clipped_surrogate, log_ratio, magnitude, ratio_metrics
from rl_llm.algorithms.run_shape import RunShape, refuse_on_policy
from rl_llm.types import Batch, Metrics, masked_mean


def covariance(logp: jax.Array, batch: Batch) -> jax.Array:
    """(A - mean A) (log pi - mean log pi) at each token f32[B, T], means over the tokens with a weight; -inf
    elsewhere. A constant.
    """
    seen = batch.weight > 0
    tokens = jnp.maximum(jnp.sum(seen), 1)

    def centred(x: jax.Array) -> jax.Array:
        return x - jnp.sum(jnp.where(seen, x, 0.0)) / tokens

    return jnp.where(seen, centred(batch.advantage) * centred(jax.lax.stop_gradient(logp)), -jnp.inf)


def largest(values: jax.Array, count: jax.Array) -> jax.Array:
    """bool, same shape: the `count` i32[] largest values (all that tie with the last), without -inf."""
    ordered = jnp.sort(values.reshape(-1), descending=True)
    last = ordered[jnp.clip(count - 1, 0, ordered.shape[0] - 1)]
    return (values >= last) & (values > -jnp.inf) & (count > 0)


def how_many(share: float, batch: Batch) -> jax.Array:
    """i32[]: that share of the tokens with a weight, rounded down, at least one."""
    tokens = jnp.sum(batch.weight > 0).astype(jnp.float32)
    # What should be a whole number comes out of float32 a little less now and then, hence the small extra.
    return jnp.maximum(jnp.floor(share * tokens * (1 + 1e-6)).astype(jnp.int32), 1)


def refuse_parts(component: object, setting: RunShape) -> None:
    """Raises ValueError where an update is computed in parts, of which none sees the whole covariance."""
    if setting.micro_batches > 1:
        raise ValueError(
            f"{type(component).__name__} with micro_batches={setting.micro_batches}: the covariance is over the whole "
            "batch of an update, and a part would pick other tokens; set micro_batches=1"
        )


def check_share(component: object, share: float) -> None:
    """Raises ValueError for a share of tokens that is none."""
    if not 0 < share <= 1:
        raise ValueError(f"{type(component).__name__}.share must lie in (0, 1], not {share}: a share of the tokens")


@dataclass(frozen=True)
class ClipCov:
    """The clipped surrogate without a `share` of the tokens, out of those with a covariance between `floor` and
    `ceiling` that the clip leaves alone (arXiv 2505.22617).

    The paper draws them at random. Here they are the ones of largest covariance: nothing but the batch decides.
    """

    low: float = 0.2
    high: float = 0.2
    share: float = 2e-4
    floor: float = 1.0
    ceiling: float = 5.0

    def __post_init__(self) -> None:
        check_bounds(self, self.low, self.high)
        check_share(self, self.share)
        if not self.floor < self.ceiling:
            raise ValueError(f"ClipCov needs floor < ceiling, not floor={self.floor}, ceiling={self.ceiling}")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError with micro-batches, and for bounds that were set where no ratio ever leaves 1."""
        refuse_parts(self, setting)
        refuse_on_policy(self, ("low", "high"), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ratio = jnp.exp(log_ratio(logp, batch.old_logp))
        loss, metrics = clipped_surrogate(ratio, batch, self.low, self.high)
        clipped = loss > -ratio * batch.advantage
        cov = covariance(logp, batch)
        eligible = (cov > self.floor) & (cov < self.ceiling) & ~clipped
        dropped = largest(jnp.where(eligible, cov, -jnp.inf), how_many(self.share, batch))
        seen = (batch.weight > 0).astype(jnp.float32)
        metrics |= {"policy/covariance_dropped": masked_mean(dropped.astype(jnp.float32), seen)}
        return jnp.where(dropped, 0.0, loss), metrics


@dataclass(frozen=True)
class KLCov:
    """-rho A + coefficient |log rho| at the `share` of tokens of largest covariance, -rho A at the others (arXiv
    2505.22617).
    """

    share: float = 2e-3
    coefficient: float = 1.0

    def __post_init__(self) -> None:
        check_share(self, self.share)
        if not self.coefficient > 0:
            raise ValueError(f"KLCov.coefficient must be greater than 0, not {self.coefficient}")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError with micro-batches, and where no ratio ever leaves 1, so that there is nothing to hold."""
        refuse_parts(self, setting)
        if setting.updates_per_rollout == 1:
            raise ValueError(
                f"{self} cannot act with one on-policy update per rollout: no ratio leaves 1, so that there is nothing "
                "to hold; set updates_per_rollout, or take PolicyGradient"
            )

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        away = log_ratio(logp, batch.old_logp)
        ratio = jnp.exp(away)
        held = largest(covariance(logp, batch), how_many(self.share, batch))
        none = jnp.zeros_like(held)
        metrics = ratio_metrics(ratio, batch, low=none, high=none)
        loss = -ratio * batch.advantage + jnp.where(held, self.coefficient * magnitude(away), 0.0)
        return loss, metrics
