"""Corrections for a sampler that differs from the policy: older weights, other numerics, truncated sampling.

All read rho = pi_old / mu from batch.old_logp and batch.sampler_logp; mu is the distribution that was sampled from. The
objective's ratio pi / pi_old is separate. Several corrections multiply: IcePop (Ling team, 2025), for example, is
(RatioMask(0.5, 5.0), ImportanceWeight(upper=None)).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import chex
import jax
import jax.numpy as jnp
from msgspec import Meta

from rl_llm.algorithms.component import Correction
from rl_llm.algorithms.divergence import Divergence
from rl_llm.algorithms.objective import LOG_RATIO_LIMIT
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.config.fields import PositiveOrInfinite, PositiveShare
from rl_llm.types import Batch

RatioLevel = Literal["token", "sequence", "geometric"]
AtLeastOne = Annotated[float, Meta(ge=1, extra={"infinite": True})]


class SamplerCorrection(Correction):
    """A correction that does nothing if the sampler is the policy."""

    def check(self, run: RunShape) -> None:
        """Raises ValueError if the sampler is the policy itself: every ratio is 1."""
        if not run.sampler_differs:
            raise ValueError(
                f"{type(self).__name__} cannot act where the sampler is the policy itself: every ratio is 1; let the "
                "sampler lag some steps or truncate its distribution, or leave the correction out"
            )


def sampler_log_ratio(batch: Batch, level: RatioLevel) -> jax.Array:
    """log rho f32[B, T], 0 at padding.

    Of each token; or of the whole response (product over its tokens) or their geometric mean, at every token of a row.
    """
    chex.assert_equal_shape([batch.mask, batch.old_logp, batch.sampler_logp])
    away = jnp.where(batch.mask > 0, batch.old_logp - batch.sampler_logp, 0.0)
    if level != "token":
        total = jnp.sum(away, axis=1, keepdims=True)
        tokens = jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1.0) if level == "geometric" else 1.0
        away = jnp.broadcast_to(total / tokens, away.shape)
    return jnp.clip(away, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


@dataclass(frozen=True)
class ImportanceWeight(SamplerCorrection):
    """Truncated importance sampling, min(max(rho, lower), upper) (TIS; Yao et al. 2025, and Ionides 2008).

    Without bounds it is unbiased at level "sequence" and a first-order approximation at "token". An upper bound trades
    bias for variance. `batch_normalize` divides the factors by their mean (over tokens, or over responses).
    """

    level: RatioLevel = "token"
    lower: PositiveShare | None = None
    upper: AtLeastOne | None = 2.0
    batch_normalize: bool = False

    def __call__(self, batch: Batch) -> jax.Array:
        weight = jnp.clip(jnp.exp(sampler_log_ratio(batch, self.level)), self.lower, self.upper)
        if not self.batch_normalize:
            return weight
        tokens = jnp.sum(batch.mask, axis=1, keepdims=True)
        counts = batch.mask if self.level == "token" else batch.mask / jnp.maximum(tokens, 1.0)
        mean = jnp.sum(weight * counts) / jnp.maximum(jnp.sum(counts), 1.0)
        return weight / jnp.where(mean > 0, mean, 1.0)


@dataclass(frozen=True)
class RatioMask(SamplerCorrection):
    """Masked importance sampling: 1 if lower <= rho <= upper, else 0 (MIS; Liu, Li et al. 2025).

    Masks tokens or whole responses that a truncation would keep at its bound.
    """

    lower: PositiveShare | None = 0.5
    upper: AtLeastOne | None = 2.0
    level: RatioLevel = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lower is None and self.upper is None:
            raise ValueError("RatioMask without a lower and an upper bound masks nothing: set one of them")

    def __call__(self, batch: Batch) -> jax.Array:
        ratio = jnp.exp(sampler_log_ratio(batch, self.level))
        lower, upper = 0.0 if self.lower is None else self.lower, jnp.inf if self.upper is None else self.upper
        return ((ratio >= lower) & (ratio <= upper)).astype(jnp.float32)


@dataclass(frozen=True)
class DivergenceMask(SamplerCorrection):
    """1 if an estimate of KL(mu || pi_old) is at most `limit`, else 0.

    The estimate is of each token, or of responses by the sum, mean or maximum over their tokens.
    """

    limit: PositiveOrInfinite
    estimator: Literal["k2", "k3"] = "k3"
    over: Literal["token", "sum", "mean", "max"] = "mean"

    def __call__(self, batch: Batch) -> jax.Array:
        estimate = Divergence(self.estimator)(batch.sampler_logp, batch.old_logp)
        estimate = jnp.where(batch.mask > 0, estimate, 0.0)
        if self.over == "max":
            estimate = jnp.max(estimate, axis=1, keepdims=True)
        elif self.over != "token":
            estimate = jnp.sum(estimate, axis=1, keepdims=True)
        if self.over == "mean":
            estimate = estimate / jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1.0)
        return jnp.broadcast_to(estimate <= self.limit, batch.mask.shape).astype(jnp.float32)


@dataclass(frozen=True)
class OffPolicyMask(SamplerCorrection):
    """0 for responses with a negative advantage and mean log(mu / pi_old) above `limit`, else 1.

    A policy learns from its own mistakes, less from those of another policy (DeepSeek-V3.2, arXiv 2512.02556). The
    paper reads log(mu / pi) at each update; here pi_old, where the updates begin, stands for pi. The mask thus ignores
    how far the updates move the policy, and needs a sampler that differs before the first one.
    """

    limit: PositiveOrInfinite

    def __call__(self, batch: Batch) -> jax.Array:
        chex.assert_equal_shape([batch.advantage, batch.mask])
        strange = -sampler_log_ratio(batch, "geometric") > self.limit
        return jnp.where(strange & (batch.advantage < 0), 0.0, 1.0)
