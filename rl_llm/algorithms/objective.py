"""Objectives: what is minimised at each token. Contract: `objective(logp, batch) -> (loss f32[B, T], metrics)`.

`logp` f32[B, T] is the learner's, differentiable; everything in `batch` is a constant. The loss is weighed by
batch.weight and summed. Here: surrogates of the token's ratio rho = pi / pi_old. Those of a whole response's ratio are
in `sequence_objective`, weighted scores (gradient w A grad log pi with a constant w) in `score_objective`, and those
that look at the covariance over the batch in `covariance_objective`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rl_llm.algorithms.run_shape import RunShape, refuse_on_policy, refuse_without_drift
from rl_llm.types import Batch, Max, Metrics, masked_mean

# exp(20) = 5e8: beyond it a ratio is only noise, and its gradient would overflow float32.
LOG_RATIO_LIMIT = 20.0


def log_ratio(logp: jax.Array, base: jax.Array) -> jax.Array:
    """logp - base, within +-LOG_RATIO_LIMIT (and without gradient beyond)."""
    return jnp.clip(logp - base, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def one_with_the_gradient_of(logp: jax.Array) -> jax.Array:
    """exp(logp - sg(logp)): 1, whose derivative by logp is 1 as well."""
    return jnp.exp(logp - jax.lax.stop_gradient(logp))


def magnitude(x: jax.Array) -> jax.Array:
    """|x| with the derivative 0 at 0. That of jnp.abs is 1 there: a push on-policy, where every log-ratio is 0."""
    return x * jnp.sign(jax.lax.stop_gradient(x))


def ratio_metrics(ratio: jax.Array, batch: Batch, *, low: jax.Array, high: jax.Array) -> Metrics:
    """Mean and largest ratio f32[B, T], and the shares of tokens that a low or a high bound acted on (bool[B, T])."""
    seen = (batch.weight > 0).astype(jnp.float32)
    return {
        "policy/ratio": masked_mean(ratio, seen),
        "policy/ratio_max": Max(jnp.max(ratio * seen)),
        "policy/clip_high": masked_mean(high.astype(jnp.float32), seen),
        "policy/clip_low": masked_mean(low.astype(jnp.float32), seen),
    }


def clipped_surrogate(ratio: jax.Array, batch: Batch, low: float, high: float) -> tuple[jax.Array, Metrics]:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) of any ratio f32[B, T] (PPO, arXiv 1707.06347, eq. 7)."""
    clipped = jnp.clip(ratio, 1.0 - low, 1.0 + high)
    metrics = ratio_metrics(
        ratio,
        batch,
        low=(ratio < 1.0 - low) & (batch.advantage < 0),
        high=(ratio > 1.0 + high) & (batch.advantage > 0),
    )
    return -jnp.minimum(ratio * batch.advantage, clipped * batch.advantage), metrics


def check_bounds(component: object, low: float, high: float) -> None:
    """Raises ValueError for bounds of a ratio that are none."""
    if not 0 < low <= 1 or not high > 0:
        raise ValueError(f"{type(component).__name__} needs 0 < low <= 1 and high > 0, not low={low}, high={high}")


@dataclass(frozen=True)
class PolicyGradient:
    """-A log pi (REINFORCE, Williams 1992). With advantage 1 on accepted responses it is maximum likelihood on them."""

    def check(self, setting: RunShape) -> None:
        """Acts in every setting."""

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        return -batch.advantage * logp, {}


@dataclass(frozen=True)
class Nothing:
    """0: for an algorithm whose regularizers are the whole loss, such as distillation."""

    reads_advantage = reads_reward = False

    def check(self, setting: RunShape) -> None:
        """Acts in every setting."""

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        return jnp.zeros_like(logp), {}


@dataclass(frozen=True)
class Clip:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) with rho = pi / pi_old (PPO, arXiv 1707.06347, eq. 7).

    high > low is DAPO's clip-higher (2503.14476, section 3.1). At the first update after a rollout rho is 1, so the
    bounds act from the second update on. Where A < 0 the loss grows with rho without bound, unless `cap` is set: beyond
    rho = cap it stays at -cap A. Dual-clip PPO, max(., c A) (1912.09729), and the two-sided clipping of
    INTELLECT-2, min(rho, delta) in the first term (2505.07291), are both this.
    """

    low: float = 0.2
    high: float = 0.2
    cap: float | None = None

    def __post_init__(self) -> None:
        check_bounds(self, self.low, self.high)
        if self.cap is not None and not self.cap > 1 + self.high:
            raise ValueError(
                f"Clip.cap={self.cap} must be greater than 1 + high = {1 + self.high}: it is for ratios beyond `high`"
            )

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for bounds that were set where no ratio ever leaves 1."""
        refuse_on_policy(self, ("low", "high", "cap"), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ratio = jnp.exp(log_ratio(logp, batch.old_logp))
        loss, metrics = clipped_surrogate(ratio, batch, self.low, self.high)
        if self.cap is None:
            return loss, metrics
        loss = jnp.where(batch.advantage < 0, jnp.minimum(loss, -self.cap * batch.advantage), loss)
        capped = ((ratio > self.cap) & (batch.advantage < 0)).astype(jnp.float32)
        return loss, metrics | {"policy/clip_cap": masked_mean(capped, (batch.weight > 0).astype(jnp.float32))}


@dataclass(frozen=True)
class GPPO:
    """Clip whose clipped tokens keep a gradient: min(rho A, bound rho / sg(rho) A), sg = stop-gradient (arXiv
    2508.07629). A token beyond a bound pulls as hard as one at the bound, instead of not at all.
    """

    low: float = 0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        check_bounds(self, self.low, self.high)

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for bounds that were set where no ratio ever leaves 1."""
        refuse_on_policy(self, ("low", "high"), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ratio = jnp.exp(log_ratio(logp, batch.old_logp))
        bounded, metrics = clipped_surrogate(jax.lax.stop_gradient(ratio), batch, self.low, self.high)
        # The value is that of Clip, and its gradient by logp is the value itself: that of sg(c) rho / sg(rho).
        return bounded * one_with_the_gradient_of(logp), metrics


@dataclass(frozen=True)
class SAPO:
    """-4 / tau sigmoid(tau (rho - 1)) A: a soft gate in the place of a clip, with a gradient that falls off on either
    side of rho = 1, faster where A < 0 (arXiv 2511.20347).
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def __post_init__(self) -> None:
        if not (self.tau_positive > 0 and self.tau_negative > 0):
            raise ValueError(
                f"SAPO needs temperatures greater than 0, not tau_positive={self.tau_positive}, "
                f"tau_negative={self.tau_negative}"
            )

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for temperatures that were set where no ratio ever leaves 1: the gradient there is A."""
        refuse_on_policy(self, ("tau_positive", "tau_negative"), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ratio = jnp.exp(log_ratio(logp, batch.old_logp))
        tau = jnp.where(batch.advantage > 0, self.tau_positive, self.tau_negative)
        # At tau (rho - 1) = 4 the gate has closed to 7 %.
        closed = tau * (ratio - 1.0) > 4.0
        metrics = ratio_metrics(ratio, batch, low=closed & (batch.advantage < 0), high=closed & (batch.advantage > 0))
        return -4.0 / tau * jax.nn.sigmoid(tau * (ratio - 1.0)) * batch.advantage, metrics


@dataclass(frozen=True)
class DPPO:
    """-rho A without the tokens whose probability has moved too far, rho = pi / mu with mu the sampler's distribution:
    pi - mu > high where A > 0, pi - mu < -low where A < 0 (DPPO with binary total variation, arXiv 2602.04879).

    A ratio says little where a probability is small: from 1e-4 to 1e-3 it is 10, and nothing has happened. With
    `symmetric` the sign of A does not matter (the "ipo" loss of prime-rl). prime-rl adds a `DriftPenalty` to either.
    """

    low: float = 0.2
    high: float = 0.2
    symmetric: bool = False

    from_sampler = True

    def __post_init__(self) -> None:
        if not (0 < self.low < 1 and 0 < self.high < 1):
            raise ValueError(
                f"DPPO bounds differences of probabilities: low and high lie between 0 and 1, not low={self.low}, "
                f"high={self.high}"
            )

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for fields that were set where pi is the sampler's distribution."""
        refuse_without_drift(self, ("low", "high", "symmetric"), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        moved = probability_moved(logp, batch)
        high, low = moved > self.high, moved < -self.low
        if not self.symmetric:
            high, low = high & (batch.advantage > 0), low & (batch.advantage < 0)
        ratio = jnp.exp(log_ratio(logp, batch.sampler_logp))
        loss = jnp.where(low | high, 0.0, -ratio * batch.advantage)
        return loss, ratio_metrics(ratio, batch, low=low, high=high)


def probability_moved(logp: jax.Array, batch: Batch) -> jax.Array:
    """pi - mu of each sampled token f32[B, T], a constant."""
    return jnp.exp(jax.lax.stop_gradient(logp)) - jnp.exp(batch.sampler_logp)
