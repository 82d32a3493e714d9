"""Weighted scores: -sg(w) A log pi, with gradient w A grad log pi at every token (sg = stop-gradient).

The weight w bounds the ratio and is constant, so no token loses its gradient as it does under a clip.
"""

from dataclasses import dataclass
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.component import Loss
from rl_llm.algorithms.objective import RatioObjective, SamplerObjective, log_ratio, ratio_metrics, sequence_log_ratio
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.config.fields import PositiveFloat, PositiveOrInfinite, PositiveShare
from rl_llm.types import Batch


def score_loss(logp: jax.Array, batch: Batch, weight: jax.Array) -> jax.Array:
    """-sg(weight) A log pi, f32[B, T]."""
    chex.assert_equal_shape([logp, batch.advantage, weight])
    return -jax.lax.stop_gradient(weight) * batch.advantage * logp


@dataclass(frozen=True)
class CISPO(RatioObjective):
    """w = clip(rho, 1 - low, 1 + high) (MiniMax-M1, arXiv 2506.13585, section 3.1), by default without a lower bound.

    With `masked` the tokens that PPO would clip have no weight (eq. 7).
    """

    low: PositiveShare = 1.0
    high: PositiveOrInfinite = 4.0
    masked: bool = False

    off_policy = ("low", "high", "masked")

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        ratio = jnp.exp(log_ratio(logp, batch.old_logp))
        low, high = ratio < 1.0 - self.low, ratio > 1.0 + self.high
        weight = jnp.clip(ratio, 1.0 - self.low, 1.0 + self.high)
        if self.masked:
            low, high = low & (batch.advantage < 0), high & (batch.advantage > 0)
            weight = jnp.where(low | high, 0.0, weight)
        return score_loss(logp, batch, weight), ratio_metrics(ratio, batch, low=low, high=high)


@dataclass(frozen=True)
class AIPO(SamplerObjective):
    """w = min(pi / mu, cap) with mu the sampler's distribution (LlamaRL, arXiv 2505.24034).

    Corrects for old weights and for several updates at once, instead of a clip and a correction.
    """

    cap: PositiveOrInfinite = 2.0

    off_policy = ("cap",)

    def check(self, run: RunShape) -> None:
        """Raises ValueError for a cap >= 1 set in a run in which no ratio leaves 1."""
        if self.cap >= 1:
            super().check(run)

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        ratio = jnp.exp(log_ratio(logp, batch.sampler_logp))
        metrics = ratio_metrics(ratio, batch, low=jnp.zeros_like(ratio, bool), high=ratio > self.cap)
        return score_loss(logp, batch, jnp.minimum(ratio, self.cap)), metrics


@dataclass(frozen=True)
class TOPR(SamplerObjective):
    """w = 1 for responses with reward > 0, else min(rho, 1): tapered off-policy REINFORCE (arXiv 2503.14286, eq. 8).

    Right answers are learned as they are, wrong ones unlearned only as far as they are still likely. rho = pi / mu with
    mu the sampler's distribution, instead of a correction: of the whole response (the paper) or each token (ROLL).
    """

    level: Literal["sequence", "token"] = "sequence"

    reads_reward = True
    off_policy = ("level",)

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        mu = batch.sampler_logp
        away = sequence_log_ratio(logp, mu, batch) if self.level == "sequence" else log_ratio(logp, mu)
        ratio = jnp.broadcast_to(jnp.exp(away), logp.shape)
        wrong = batch.reward[:, None] <= 0
        weight = jnp.where(wrong, jnp.minimum(ratio, 1.0), 1.0)
        metrics = ratio_metrics(ratio, batch, low=jnp.zeros_like(ratio, bool), high=wrong & (ratio > 1.0))
        return score_loss(logp, batch, weight), metrics


@dataclass(frozen=True)
class VESPO(SamplerObjective):
    """w = W^k exp(lambda (1 - W)), W = pi / mu of the whole response (arXiv 2602.10693).

    mu is the sampler's distribution; k and lambda depend on the sign of A. The weight is a smooth bump around W = 1,
    where it is 1. It bounds long responses, with their product of many ratios, instead of a clip and a correction.
    """

    k_positive: PositiveFloat = 2.0
    lambda_positive: PositiveFloat = 3.0
    k_negative: PositiveFloat = 3.0
    lambda_negative: PositiveFloat = 2.0

    off_policy = ("k_positive", "lambda_positive", "k_negative", "lambda_negative")

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        away = sequence_log_ratio(logp, batch.sampler_logp, batch)
        ratio = jnp.broadcast_to(jnp.exp(away), logp.shape)
        up = batch.advantage >= 0
        k = jnp.where(up, self.k_positive, self.k_negative)
        rate = jnp.where(up, self.lambda_positive, self.lambda_negative)
        weight = jnp.exp(k * away + rate * (1.0 - ratio))
        metrics = ratio_metrics(ratio, batch, low=(weight < 0.5) & (ratio < 1.0), high=(weight < 0.5) & (ratio > 1.0))
        return score_loss(logp, batch, weight), metrics
