"""Divergence from a reference policy and entropy: estimators, and terms of the loss made of them.

Contract of a term: `regularizer(logp, entropy, batch, coefficient) -> (loss f32[B, T], metrics)`, logp and entropy
f32[B, T] differentiable, everything in `batch` a constant; weighed by batch.weight and summed as the objective is.
`coefficient` f32[] stands in for the component's own when a controller adapts it.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rl_llm.algorithms.controller import AdaptiveKL, EntropyTarget, acting
from rl_llm.algorithms.objective import LOG_RATIO_LIMIT, log_ratio, magnitude
from rl_llm.algorithms.run_shape import RunShape, refuse, require
from rl_llm.types import Batch, Metrics, masked_mean

Estimator = Literal["k1", "abs", "k2", "k3"]


@dataclass(frozen=True)
class Divergence:
    """An estimate of KL(pi || ref) at each token from one sample of pi, with d = log pi - log ref (Schulman 2020):

        k1 = d               unbiased; can be negative; no expected gradient of its own
        k2 = d^2 / 2         biased; its expected gradient is that of KL(pi || ref)
        k3 = e^-d - 1 + d    unbiased, >= 0, less variance than k1; its expected gradient is that of KL(ref || pi)
        abs = |d|            not the KL: the expected gradient is that of sum |pi - ref|

    `limit` bounds the estimate to +-limit, without gradient beyond: 10 at k3 in verl and ROLL, at all in OpenRLHF.
    """

    estimator: Estimator = "k3"
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"Divergence.limit must be greater than 0, not {self.limit}: it is the largest estimate")

    def __call__(self, logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
        """f32[...] and f32[...] of the same tokens -> f32[...]."""
        away = logp - ref_logp
        if self.estimator == "k3":
            away = jnp.maximum(away, -LOG_RATIO_LIMIT)  # an exponential that overflows has no gradient but NaN
            estimate = jnp.exp(-away) - 1.0 + away
        else:
            estimate = {"k1": away, "abs": magnitude(away), "k2": 0.5 * jnp.square(away)}[self.estimator]
        return estimate if self.limit is None else jnp.clip(estimate, -self.limit, self.limit)


def full_divergence(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    """KL(pi || ref) over the whole vocabulary: logits f32[..., V] of both (or log-probabilities) -> f32[...]."""
    logp, ref_logp = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    return jnp.sum(jnp.exp(logp) * (logp - ref_logp), axis=-1)


@dataclass(frozen=True)
class KLPenalty:
    """coefficient * estimate of KL(pi || ref) in the loss (GRPO, arXiv 2402.03300, eq. 3-4, with k3).

    In the loss an estimate counts by its gradient, and that is only the KL's for k2. `corrected` multiplies it by
    rho = pi / pi_old with its gradient: for k1 and k3 the expectation over pi_old is then the KL itself, and its
    gradient the KL's (DeepSeek-V3.2, 2512.02556) token by token, with the tokens before as they come: not that of the
    KL of whole responses. k1 without it is refused: its expected gradient is 0.
    """

    coefficient: float = 1e-3
    divergence: Divergence = Divergence()
    corrected: bool = False
    controller: AdaptiveKL | None = None

    needs = ("ref_logp",)

    def __post_init__(self) -> None:
        if not self.coefficient > 0:
            raise ValueError(f"KLPenalty.coefficient must be greater than 0, not {self.coefficient}: leave it out")
        if self.divergence.estimator == "k1" and not self.corrected:
            raise ValueError(
                "KLPenalty with the k1 estimator cannot act: its expected gradient is 0; set corrected=True, take k2 "
                "or k3, or put the KL into the reward"
            )

    def __call__(
        self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: jax.Array | float | None = None
    ) -> tuple[jax.Array, Metrics]:
        kl = self.divergence(logp, require(batch, self, "ref_logp"))
        loss = kl * jnp.exp(log_ratio(logp, batch.old_logp)) if self.corrected else kl
        scale = self.coefficient if coefficient is None else coefficient
        return scale * loss, {"policy/kl": masked_mean(kl, (batch.weight > 0).astype(jnp.float32))}


@dataclass(frozen=True)
class EntropyBonus:
    """-coefficient * H(pi(. | tokens before)) at each token (Mnih et al. 2016, arXiv 1602.01783, section 4). With a
    controller the coefficient is only what it begins with.
    """

    coefficient: float = 1e-3
    controller: EntropyTarget | None = None

    def __post_init__(self) -> None:
        if self.coefficient < 0 or (self.coefficient == 0 and self.controller is None):
            raise ValueError(
                f"EntropyBonus.coefficient must be greater than 0 (or 0 with a controller), not {self.coefficient}"
            )
        if self.controller is not None and self.coefficient > self.controller.highest:
            raise ValueError(f"EntropyBonus.coefficient={self.coefficient} is above its controller's {self.controller}")

    def __call__(
        self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: jax.Array | float | None = None
    ) -> tuple[jax.Array, Metrics]:
        scale = self.coefficient if coefficient is None else acting(coefficient)
        return -scale * entropy, {}


@dataclass(frozen=True)
class DriftPenalty:
    """coefficient * log(rho)^2: holds pi near where it comes from, under any objective. rho = pi / mu with the
    sampler's distribution (Kimi K2.5, arXiv 2602.02276; prime-rl beside DPPO), or pi / pi_old: beside PolicyGradient,
    with coefficient = tau / 2, that is the objective of Kimi k1.5 (2501.12599, eq. 3) token by token, as ROLL has it.
    """

    coefficient: float = 1e-3
    origin: Literal["sampler", "old"] = "sampler"

    def __post_init__(self) -> None:
        if not self.coefficient > 0:
            raise ValueError(f"DriftPenalty.coefficient must be greater than 0, not {self.coefficient}: leave it out")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where pi is what it comes from at every update, and for an origin that was set where the
        sampler is pi_old.
        """
        if setting.updates_per_rollout == 1 and not (self.origin == "sampler" and setting.sampler_differs):
            raise ValueError(
                f"DriftPenalty.origin={self.origin!r} with one on-policy update per rollout: there is no drift and no "
                "gradient; set updates_per_rollout, or leave the penalty out"
            )
        if not setting.sampler_differs:
            refuse(self, ("origin",), "where the sampler is the policy that the updates begin with")

    def __call__(
        self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: jax.Array | float | None = None
    ) -> tuple[jax.Array, Metrics]:
        base = batch.sampler_logp if self.origin == "sampler" else batch.old_logp
        drift = jnp.square(log_ratio(logp, base))
        scale = self.coefficient if coefficient is None else coefficient
        return scale * drift, {"policy/drift": masked_mean(drift, (batch.weight > 0).astype(jnp.float32))}
