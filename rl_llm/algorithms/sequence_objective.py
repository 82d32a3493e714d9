"""Objectives of the ratio of a whole response: the reward is for the response, so the ratio is as well.

Every token of a response carries the response's loss; an aggregate that weighs responses (`SequenceMean`) is what the
papers have, `SequenceSum` weighs them by length (LUSPO, arXiv 2602.05261).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rl_llm.algorithms.objective import (
    check_bounds,
    clipped_surrogate,
    log_ratio,
    one_with_the_gradient_of,
    ratio_metrics,
)
from rl_llm.algorithms.run_shape import RunShape, refuse_on_policy
from rl_llm.algorithms.score_objective import sequence_log_ratio
from rl_llm.types import Batch, Metrics


def mean_over_tokens(values: jax.Array, batch: Batch) -> jax.Array:
    """f32[B, T] -> f32[B, 1]: the mean over the tokens of each response, 0 for one without tokens."""
    tokens = jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1.0)
    return jnp.sum(values * batch.mask, axis=1, keepdims=True) / tokens


@dataclass(frozen=True)
class GSPO:
    """-min(s A, clip(s, 1 - low, 1 + high) A) with s = (pi(o) / pi_old(o))^(1/|o|), the geometric mean of a response's
    token ratios (arXiv 2507.18071, eq. 5-7).

    gradient "sequence": through s, so each token learns from the mean advantage of its response. "token": GSPO-token
    (eq. 13-14), s_t = sg(s) pi_t / sg(pi_t), each token from its own advantage, as in verl. Equal when a response has
    one advantage and its tokens one weight.
    """

    low: float = 3e-4
    high: float = 4e-4
    gradient: Literal["sequence", "token"] = "sequence"

    def __post_init__(self) -> None:
        check_bounds(self, self.low, self.high)

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for bounds that were set where no ratio ever leaves 1."""
        refuse_on_policy(self, ("low", "high"), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ratio = jnp.exp(mean_over_tokens(log_ratio(logp, batch.old_logp), batch))
        if self.gradient == "token":
            ratio = jax.lax.stop_gradient(ratio) * one_with_the_gradient_of(logp)
        return clipped_surrogate(jnp.broadcast_to(ratio, logp.shape), batch, self.low, self.high)


@dataclass(frozen=True)
class SequenceClip:
    """The clipped surrogate of the plain ratio pi(o) / pi_old(o), the product of a response's token ratios (RLOO in
    TRL; a response is one action, arXiv 2402.14740). The ratio's spread grows with the length, so that most long
    responses end up clipped.
    """

    low: float = 0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        check_bounds(self, self.low, self.high)

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for bounds that were set where no ratio ever leaves 1."""
        refuse_on_policy(self, ("low", "high"), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ratio = jnp.broadcast_to(jnp.exp(sequence_log_ratio(logp, batch.old_logp, batch)), logp.shape)
        return clipped_surrogate(ratio, batch, self.low, self.high)


@dataclass(frozen=True)
class GMPO:
    """-A exp(mean_t c_t) with c_t = log rho_t, bounded by `high` where A > 0 and by -`low` where A < 0: the geometric
    mean of clipped token ratios (arXiv 2507.20673), which one outlier token moves less than a mean would. The
    bounds are those of the log-ratio, e^-0.4 to e^0.4 in the paper. A response's A is the mean over its tokens.
    """

    low: float = 0.4
    high: float = 0.4

    def __post_init__(self) -> None:
        if not (self.low > 0 and self.high > 0):
            raise ValueError(f"GMPO needs low > 0 and high > 0, not low={self.low}, high={self.high}")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for bounds that were set where no ratio ever leaves 1."""
        refuse_on_policy(self, ("low", "high"), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        away = log_ratio(logp, batch.old_logp)
        high = (away > self.high) & (batch.advantage > 0)
        low = (away < -self.low) & (batch.advantage < 0)
        bounded = jnp.where(high, self.high, jnp.where(low, -self.low, away))
        # A token without advantage asks for nothing: its ratio is left out.
        bounded = jnp.where(batch.advantage == 0, 0.0, bounded)
        loss = -mean_over_tokens(batch.advantage, batch) * jnp.exp(mean_over_tokens(bounded, batch))
        return jnp.broadcast_to(loss, logp.shape), ratio_metrics(jnp.exp(away), batch, low=low, high=high)
