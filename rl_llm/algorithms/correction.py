"""Corrections for a sampler that is not the policy: other weights, other numerics, truncated sampling. Contract:
`correction(batch) -> f32[B, T]`, constant factors of the loss, computed once on the whole batch.

All look at rho = pi_old / mu, from batch.old_logp and batch.sampler_logp, mu being what was really sampled from; the
objective's own ratio pi / pi_old is another matter. Several corrections multiply: IcePop (Ling team, 2025), for one, is
(RatioMask(0.5, 5.0), ImportanceWeight(upper=None)).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rl_llm.algorithms.divergence import Divergence
from rl_llm.algorithms.objective import LOG_RATIO_LIMIT
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.types import Batch

Level = Literal["token", "sequence", "geometric"]


def sampler_log_ratio(batch: Batch, level: Level) -> jax.Array:
    """log rho f32[B, T], 0 at padding: of each token, of the whole response (the product over its tokens), or their
    geometric mean; the last two at every token of the row.
    """
    away = jnp.where(batch.mask > 0, batch.old_logp - batch.sampler_logp, 0.0)
    if level != "token":
        total = jnp.sum(away, axis=1, keepdims=True)
        tokens = jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1.0) if level == "geometric" else 1.0
        away = jnp.broadcast_to(total / tokens, away.shape)
    return jnp.clip(away, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def refuse_same_sampler(component: object, setting: RunShape) -> None:
    """Raises ValueError where the sampler is the policy itself, so that every factor would be 1."""
    if not setting.sampler_differs:
        raise ValueError(
            f"{type(component).__name__} cannot act where the sampler is the policy itself: every ratio is 1; let the "
            "sampler be some steps behind or truncate its distribution, or leave the correction out"
        )


def check_range(component: object, lower: float | None, upper: float | None) -> None:
    """Raises ValueError for bounds of rho that leave out 1, or nothing at all."""
    if (lower is not None and not 0 < lower <= 1) or (upper is not None and not upper >= 1):
        raise ValueError(f"{type(component).__name__} needs 0 < lower <= 1 <= upper, not lower={lower}, upper={upper}")


@dataclass(frozen=True)
class ImportanceWeight:
    """min(max(rho, lower), upper): truncated importance sampling (TIS; Yao et al. 2025, and Ionides 2008). Without
    bounds unbiased at level "sequence", and a first-order approximation of it at "token"; an upper bound trades bias
    for variance. With `batch_normalize` the factors are divided by their mean (over tokens, or over responses).
    """

    level: Level = "token"
    lower: float | None = None
    upper: float | None = 2.0
    batch_normalize: bool = False

    def __post_init__(self) -> None:
        check_range(self, self.lower, self.upper)

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where the sampler is the policy itself."""
        refuse_same_sampler(self, setting)

    def __call__(self, batch: Batch) -> jax.Array:
        weight = jnp.clip(jnp.exp(sampler_log_ratio(batch, self.level)), self.lower, self.upper)
        if not self.batch_normalize:
            return weight
        tokens = jnp.sum(batch.mask, axis=1, keepdims=True)
        counts = batch.mask if self.level == "token" else batch.mask / jnp.maximum(tokens, 1.0)
        mean = jnp.sum(weight * counts) / jnp.maximum(jnp.sum(counts), 1.0)
        return weight / jnp.where(mean > 0, mean, 1.0)


@dataclass(frozen=True)
class RatioMask:
    """1 where lower <= rho <= upper, else 0: masked importance sampling (MIS; Liu, Li et al. 2025), of tokens or of
    whole responses. Rejects what a truncation would keep at its bound.
    """

    lower: float | None = 0.5
    upper: float | None = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        check_range(self, self.lower, self.upper)
        if self.lower is None and self.upper is None:
            raise ValueError("RatioMask without a lower and an upper bound masks nothing: set one of them")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where the sampler is the policy itself."""
        refuse_same_sampler(self, setting)

    def __call__(self, batch: Batch) -> jax.Array:
        ratio = jnp.exp(sampler_log_ratio(batch, self.level))
        lower, upper = 0.0 if self.lower is None else self.lower, jnp.inf if self.upper is None else self.upper
        return ((ratio >= lower) & (ratio <= upper)).astype(jnp.float32)


@dataclass(frozen=True)
class DivergenceMask:
    """1 where an estimate of KL(mu || pi_old) is at most `limit`, else 0: of each token, or of responses by the sum,
    mean or maximum over their tokens.
    """

    limit: float
    estimator: Literal["k2", "k3"] = "k3"
    over: Literal["token", "sum", "mean", "max"] = "mean"

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"DivergenceMask.limit must be greater than 0, not {self.limit}: it is the largest KL")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where the sampler is the policy itself."""
        refuse_same_sampler(self, setting)

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
class OffPolicyMask:
    """0 for the responses with a negative advantage and a mean log(mu / pi_old) above `limit`, else 1 (DeepSeek-V3.2,
    arXiv 2512.02556): a policy learns from its own mistakes, less so from those of a stranger.

    The paper looks at log(mu / pi) at each update. Here pi_old, with which the updates begin, stands for pi: how far
    they move it themselves is no part of the mask, which needs a sampler that is another policy before the first.
    """

    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"OffPolicyMask.limit must be greater than 0, not {self.limit}: it is the largest KL")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where the sampler is the policy itself."""
        refuse_same_sampler(self, setting)

    def __call__(self, batch: Batch) -> jax.Array:
        strange = -sampler_log_ratio(batch, "geometric") > self.limit
        return jnp.where(strange & (batch.advantage < 0), 0.0, 1.0)
