"""Regularizers: divergence from a reference policy, entropy, likelihood; and the estimators of a divergence."""

from dataclasses import dataclass
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.component import Coefficient, Loss, Regularizer
from rl_llm.algorithms.controller import AdaptiveKL, EntropyTarget, acting
from rl_llm.algorithms.objective import LOG_RATIO_LIMIT, log_ratio, magnitude
from rl_llm.algorithms.run_shape import RunShape, refuse, require
from rl_llm.config import Checked
from rl_llm.config.fields import PositiveFloat, PositiveOrInfinite
from rl_llm.types import Batch, masked_mean

Estimator = Literal["k1", "abs", "k2", "k3"]


@dataclass(frozen=True)
class Divergence(Checked):
    """An estimate of KL(pi || ref) at each token from one sample of pi, with d = log pi - log ref (Schulman 2020):

        k1 = d               unbiased; can be negative; no expected gradient of its own
        k2 = d^2 / 2         biased; its expected gradient is that of KL(pi || ref)
        k3 = e^-d - 1 + d    unbiased, >= 0, less variance than k1; its expected gradient is that of KL(ref || pi)
        abs = |d|            not the KL: the expected gradient is that of sum |pi - ref|

    `limit` clips the estimate to +-limit, without gradient beyond. verl and ROLL use 10 with k3, OpenRLHF with all.
    """

    estimator: Estimator = "k3"
    limit: PositiveOrInfinite | None = None

    def __call__(self, logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
        """Estimate f32[...], from f32[...] and f32[...] of the same tokens."""
        chex.assert_equal_shape([logp, ref_logp])
        away = logp - ref_logp
        if self.estimator == "k3":
            away = jnp.maximum(away, -LOG_RATIO_LIMIT)  # the gradient of an overflowing exponential is NaN
            estimate = jnp.exp(-away) - 1.0 + away
        else:
            estimate = {"k1": away, "abs": magnitude(away), "k2": 0.5 * jnp.square(away)}[self.estimator]
        return estimate if self.limit is None else jnp.clip(estimate, -self.limit, self.limit)


def full_divergence(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    """KL(pi || ref) over the whole vocabulary f32[...], from logits f32[..., V] of both (or log-probabilities)."""
    chex.assert_equal_shape([logits, ref_logits])
    logp, ref_logp = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    return jnp.sum(jnp.exp(logp) * (logp - ref_logp), axis=-1)


@dataclass(frozen=True)
class KLPenalty(Regularizer):
    """coefficient * estimate of KL(pi || ref) (GRPO, arXiv 2402.03300, eq. 3-4, with k3).

    In a loss only the gradient of an estimate matters, and only k2 has the KL's. `corrected` multiplies by
    rho = pi / pi_old, with its gradient. For k1 and k3 the expectation over pi_old is then the KL and its gradient the
    KL's (DeepSeek-V3.2, 2512.02556), token by token given the previous tokens: not that of the KL of whole responses.
    k1 without it is refused, as its expected gradient is 0.
    """

    coefficient: PositiveFloat = 1e-3
    divergence: Divergence = Divergence()
    corrected: bool = False
    controller: AdaptiveKL | None = None

    needs = ("ref_logp",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence.estimator == "k1" and not self.corrected:
            raise ValueError(
                "KLPenalty with the k1 estimator cannot act: its expected gradient is 0; set corrected=True, take k2 "
                "or k3, or put the KL into the reward"
            )

    def __call__(self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: Coefficient = None) -> Loss:
        kl = self.divergence(logp, require(batch, self, "ref_logp"))
        loss = kl * jnp.exp(log_ratio(logp, batch.old_logp)) if self.corrected else kl
        scale = self.coefficient if coefficient is None else coefficient
        return scale * loss, {"policy/kl": masked_mean(kl, (batch.weight > 0).astype(jnp.float32))}


@dataclass(frozen=True)
class EntropyBonus(Regularizer):
    """-coefficient * H(pi(. | previous tokens)) at each token (Mnih et al. 2016, arXiv 1602.01783, section 4)."""

    coefficient: float = 1e-3  # with a controller: its initial value
    controller: EntropyTarget | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coefficient < 0 or (self.coefficient == 0 and self.controller is None):
            raise ValueError(
                f"EntropyBonus.coefficient must be greater than 0 (or 0 with a controller), not {self.coefficient}"
            )
        if self.controller is not None and self.coefficient > self.controller.highest:
            raise ValueError(f"EntropyBonus.coefficient={self.coefficient} is above its controller's {self.controller}")

    def __call__(self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: Coefficient = None) -> Loss:
        chex.assert_equal_shape([logp, entropy])
        scale = self.coefficient if coefficient is None else acting(coefficient)
        return -scale * entropy, {}


@dataclass(frozen=True)
class DriftPenalty(Regularizer):
    """coefficient * log(rho)^2: keep pi near its origin under any objective.

    origin "sampler": rho = pi / mu with the sampler's distribution (Kimi K2.5, arXiv 2602.02276; prime-rl beside DPPO).
    "old": rho = pi / pi_old. Beside PolicyGradient with coefficient = tau / 2 that is the objective of Kimi k1.5
    (2501.12599, eq. 3) token by token, as in ROLL.
    """

    coefficient: PositiveFloat = 1e-3
    origin: Literal["sampler", "old"] = "sampler"

    def check(self, run: RunShape) -> None:
        """Raises ValueError if pi equals its origin at every update, or `origin` is set and the sampler is pi_old."""
        if run.updates_per_rollout == 1 and not (self.origin == "sampler" and run.sampler_differs):
            raise ValueError(
                f"DriftPenalty.origin={self.origin!r} with one on-policy update per rollout: there is no drift and no "
                "gradient; set updates_per_rollout, or leave the penalty out"
            )
        if not run.sampler_differs:
            refuse(self, ("origin",), "where the sampler is the policy that the updates begin with")

    def __call__(self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: Coefficient = None) -> Loss:
        base = batch.sampler_logp if self.origin == "sampler" else batch.old_logp
        drift = jnp.square(log_ratio(logp, base))
        scale = self.coefficient if coefficient is None else coefficient
        return scale * drift, {"policy/drift": masked_mean(drift, (batch.weight > 0).astype(jnp.float32))}


@dataclass(frozen=True)
class PositiveLikelihood(Regularizer):
    """-coefficient * log pi at the tokens of responses with a reward, after shaping, of at least `threshold`.

    The positive-example LM loss of VAPO (arXiv 2504.05118, section 4): rejection sampling mixed into any objective. It
    is weighed by batch.weight, so it is a mean over all responses, not over right ones alone as in VAPO, and grows with
    their share. A shaping that lowers rewards can put right answers below the threshold.
    """

    coefficient: PositiveFloat = 0.1
    threshold: float = 1.0

    reads_reward = True

    def __call__(self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: Coefficient = None) -> Loss:
        chex.assert_equal_shape([logp, batch.mask])
        scale = self.coefficient if coefficient is None else coefficient
        positive = (batch.reward >= self.threshold)[:, None]
        return jnp.where(positive, -scale * logp, 0.0), {}
