"""Weighted scores: -sg(w) A log pi, whose gradient is w A grad log pi at every token, with a weight w that bounds the
ratio but is no part of the gradient (sg = stop-gradient). Unlike under a clip no token loses its gradient.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rl_llm.algorithms.objective import check_bounds, log_ratio, ratio_metrics
from rl_llm.algorithms.run_shape import RunShape, refuse_on_policy, refuse_without_drift
from rl_llm.types import Batch, Metrics


def score_loss(logp: jax.Array, batch: Batch, weight: jax.Array) -> jax.Array:
    """-sg(weight) A log pi, f32[B, T]."""
    return -jax.lax.stop_gradient(weight) * batch.advantage * logp


def sequence_log_ratio(logp: jax.Array, base: jax.Array, batch: Batch) -> jax.Array:
    """log of the ratio of whole responses, sum_t log pi_t - log base_t, f32[B, 1], bounded as `log_ratio`."""
    return log_ratio(jnp.sum((logp - base) * batch.mask, axis=1, keepdims=True), jnp.zeros(()))


@dataclass(frozen=True)
class CISPO:
    """w = clip(rho, 1 - low, 1 + high) (MiniMax-M1, arXiv 2506.13585, section 3.1), by default without a lower bound,
    as there. With `masked` the tokens that PPO would clip have no weight (eq. 7).
    """

    low: float = 1.0
    high: float = 4.0
    masked: bool = False

    def __post_init__(self) -> None:
        check_bounds(self, self.low, self.high)

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for fields that were set where no ratio ever leaves 1."""
        refuse_on_policy(self, ("low", "high", "masked"), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ratio = jnp.exp(log_ratio(logp, batch.old_logp))
        low, high = ratio < 1.0 - self.low, ratio > 1.0 + self.high
        weight = jnp.clip(ratio, 1.0 - self.low, 1.0 + self.high)
        if self.masked:
            low, high = low & (batch.advantage < 0), high & (batch.advantage > 0)
            weight = jnp.where(low | high, 0.0, weight)
        return score_loss(logp, batch, weight), ratio_metrics(ratio, batch, low=low, high=high)


@dataclass(frozen=True)
class AIPO:
    """w = min(pi / mu, cap) with mu the distribution that was really sampled from (LlamaRL, arXiv 2505.24034):
    corrects both for old weights and for several updates, in the place of a clip and of a correction.
    """

    cap: float = 2.0

    from_sampler = True

    def __post_init__(self) -> None:
        if not self.cap > 0:
            raise ValueError(f"AIPO.cap must be greater than 0, not {self.cap}: it is the largest weight of a token")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for a cap that was set where no ratio leaves 1."""
        if self.cap >= 1:
            refuse_without_drift(self, ("cap",), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ratio = jnp.exp(log_ratio(logp, batch.sampler_logp))
        metrics = ratio_metrics(ratio, batch, low=jnp.zeros_like(ratio, bool), high=ratio > self.cap)
        return score_loss(logp, batch, jnp.minimum(ratio, self.cap)), metrics


@dataclass(frozen=True)
class TOPR:
    """w = 1 for responses with a reward above 0, min(rho, 1) for the others (tapered off-policy REINFORCE, arXiv
    2503.14286, eq. 8): right answers are learned as they stand, wrong ones unlearned only as far as they are still
    likely. rho = pi / mu with mu the distribution that was really sampled from, so in the place of a correction: of
    the whole response (the paper) or of each token (ROLL).
    """

    level: Literal["sequence", "token"] = "sequence"

    from_sampler = True
    reads_reward = True

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for a level that was set where no ratio leaves 1."""
        refuse_without_drift(self, ("level",), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        mu = batch.sampler_logp
        away = sequence_log_ratio(logp, mu, batch) if self.level == "sequence" else log_ratio(logp, mu)
        ratio = jnp.broadcast_to(jnp.exp(away), logp.shape)
        wrong = batch.reward[:, None] <= 0
        weight = jnp.where(wrong, jnp.minimum(ratio, 1.0), 1.0)
        metrics = ratio_metrics(ratio, batch, low=jnp.zeros_like(ratio, bool), high=wrong & (ratio > 1.0))
        return score_loss(logp, batch, weight), metrics


@dataclass(frozen=True)
class VESPO:
    """w = W^k exp(lambda (1 - W)) with W = pi / mu of the whole response, mu the distribution that was really sampled
    from, k and lambda by the sign of A (arXiv 2602.10693): a smooth bump around W = 1 (where it is 1), that no long
    response can leave by the product of its ratios. In the place of a clip and of a correction.
    """

    k_positive: float = 2.0
    lambda_positive: float = 3.0
    k_negative: float = 3.0
    lambda_negative: float = 2.0

    from_sampler = True

    def __post_init__(self) -> None:
        for name in ("k_positive", "lambda_positive", "k_negative", "lambda_negative"):
            if not getattr(self, name) > 0:
                raise ValueError(f"VESPO.{name} must be greater than 0, not {getattr(self, name)}")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for shapes that were set where no ratio leaves 1."""
        refuse_without_drift(self, ("k_positive", "lambda_positive", "k_negative", "lambda_negative"), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        away = sequence_log_ratio(logp, batch.sampler_logp, batch)
        ratio = jnp.broadcast_to(jnp.exp(away), logp.shape)
        up = batch.advantage >= 0
        k = jnp.where(up, self.k_positive, self.k_negative)
        rate = jnp.where(up, self.lambda_positive, self.lambda_negative)
        weight = jnp.exp(k * away + rate * (1.0 - ratio))
        metrics = ratio_metrics(ratio, batch, low=(weight < 0.5) & (ratio < 1.0), high=(weight < 0.5) & (ratio > 1.0))
        return score_loss(logp, batch, weight), metrics
