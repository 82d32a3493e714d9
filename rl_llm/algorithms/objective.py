"""Objectives: the loss at each token that is weighed by batch.weight and summed.

Here: surrogates of the ratio rho = pi / pi_old of a token or of a whole response. `score_objective` has weighted scores
(gradient w A grad log pi with a constant w), `covariance_objective` those that read the covariance over the batch.

With the ratio of a whole response every token carries the response's loss. `SequenceMean` then weighs responses as the
papers do, `SequenceSum` by length (LUSPO, arXiv 2602.05261).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import chex
import jax
import jax.numpy as jnp
from msgspec import Meta

from rl_llm.algorithms.component import Loss, Objective
from rl_llm.algorithms.run_shape import RunShape, refuse_on_policy, refuse_without_drift
from rl_llm.config.fields import PositiveFloat, PositiveOrInfinite, PositiveShare
from rl_llm.types import Batch, Max, Metrics, masked_mean

# exp(20) = 5e8: beyond it a ratio is noise, and its gradient would overflow float32.
LOG_RATIO_LIMIT = 20.0
OpenShare = Annotated[float, Meta(gt=0, lt=1)]


class RatioObjective(Objective):
    """An objective of pi / pi_old: the fields `off_policy` act only at a ratio other than 1."""

    off_policy: tuple[str, ...] = ("low", "high")

    def check(self, run: RunShape) -> None:
        """Raises ValueError for fields set in a run with one on-policy update per rollout: no ratio leaves 1."""
        refuse_on_policy(self, self.off_policy, run)


class SamplerObjective(Objective):
    """An objective of pi / mu, mu the sampler's distribution: the fields `off_policy` act only at a ratio other than 1.

    It corrects for an older sampler and for several updates alike, so it excludes a correction.
    """

    from_sampler = True
    off_policy: tuple[str, ...]

    def check(self, run: RunShape) -> None:
        """Raises ValueError for fields set in a run in which pi is the sampler's distribution at every update."""
        refuse_without_drift(self, self.off_policy, run)


def log_ratio(logp: jax.Array, base: jax.Array) -> jax.Array:
    """logp - base, clipped to +-LOG_RATIO_LIMIT (no gradient beyond)."""
    chex.assert_equal_shape([logp, base])
    return jnp.clip(logp - base, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sequence_log_ratio(logp: jax.Array, base: jax.Array, batch: Batch) -> jax.Array:
    """log-ratio of whole responses, sum_t log pi_t - log base_t, f32[B, 1], bounded as `log_ratio`."""
    chex.assert_equal_shape([logp, base, batch.mask])
    total = jnp.sum((logp - base) * batch.mask, axis=1, keepdims=True)
    return jnp.clip(total, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def mean_over_tokens(values: jax.Array, batch: Batch) -> jax.Array:
    """Mean over the tokens of each response, f32[B, T] -> f32[B, 1]; 0 for a response without tokens."""
    chex.assert_equal_shape([values, batch.mask])
    tokens = jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1.0)
    return jnp.sum(values * batch.mask, axis=1, keepdims=True) / tokens


def one_with_the_gradient_of(logp: jax.Array) -> jax.Array:
    """exp(logp - sg(logp)): 1, with derivative 1 by logp (sg = stop-gradient)."""
    return jnp.exp(logp - jax.lax.stop_gradient(logp))


def magnitude(x: jax.Array) -> jax.Array:
    """|x| with derivative 0 at 0. That of jnp.abs is 1: a push on-policy, where every log-ratio is 0."""
    return x * jnp.sign(jax.lax.stop_gradient(x))


def ratio_metrics(ratio: jax.Array, batch: Batch, *, low: jax.Array, high: jax.Array) -> Metrics:
    """Mean and largest ratio f32[B, T], and the shares of tokens at which a bound acted (low, high: bool[B, T])."""
    chex.assert_rank(ratio, 2)
    chex.assert_equal_shape([ratio, low, high, batch.weight])
    seen = (batch.weight > 0).astype(jnp.float32)
    return {
        "policy/ratio": masked_mean(ratio, seen),
        "policy/ratio_max": Max(jnp.max(ratio * seen)),
        "policy/clip_high": masked_mean(high.astype(jnp.float32), seen),
        "policy/clip_low": masked_mean(low.astype(jnp.float32), seen),
    }


def clipped_surrogate(ratio: jax.Array, batch: Batch, low: float, high: float) -> Loss:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) for any ratio f32[B, T] (PPO, arXiv 1707.06347, eq. 7)."""
    chex.assert_equal_shape([ratio, batch.advantage])
    clipped = jnp.clip(ratio, 1.0 - low, 1.0 + high)
    metrics = ratio_metrics(
        ratio,
        batch,
        low=(ratio < 1.0 - low) & (batch.advantage < 0),
        high=(ratio > 1.0 + high) & (batch.advantage > 0),
    )
    return -jnp.minimum(ratio * batch.advantage, clipped * batch.advantage), metrics


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """-A log pi (REINFORCE, Williams 1992). With advantage 1 on accepted responses it is maximum likelihood."""

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        chex.assert_rank(logp, 2)
        chex.assert_equal_shape([logp, batch.advantage])
        return -batch.advantage * logp, {}


@dataclass(frozen=True)
class Nothing(Objective):
    """0: for an algorithm that only has regularizers, such as distillation."""

    reads_advantage = False

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        chex.assert_rank(logp, 2)
        return jnp.zeros_like(logp), {}


@dataclass(frozen=True)
class Clip(RatioObjective):
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) with rho = pi / pi_old (PPO, arXiv 1707.06347, eq. 7).

    high > low is DAPO's clip-higher (2503.14476, section 3.1). rho is 1 at the first update after a rollout, so the
    bounds act from the second update on. Where A < 0 the loss grows with rho without bound, unless `cap` is set: above
    rho = cap it stays at -cap A. This covers dual-clip PPO, max(., c A) (1912.09729), and the two-sided clipping of
    INTELLECT-2, min(rho, delta) in the first term (2505.07291).
    """

    low: PositiveShare = 0.2
    high: PositiveOrInfinite = 0.2
    cap: float | None = None

    off_policy = ("low", "high", "cap")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cap is not None and not self.cap > 1 + self.high:
            raise ValueError(
                f"Clip.cap={self.cap} must be greater than 1 + high = {1 + self.high}: it is for ratios beyond `high`"
            )

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        ratio = jnp.exp(log_ratio(logp, batch.old_logp))
        loss, metrics = clipped_surrogate(ratio, batch, self.low, self.high)
        if self.cap is None:
            return loss, metrics
        loss = jnp.where(batch.advantage < 0, jnp.minimum(loss, -self.cap * batch.advantage), loss)
        capped = ((ratio > self.cap) & (batch.advantage < 0)).astype(jnp.float32)
        return loss, metrics | {"policy/clip_cap": masked_mean(capped, (batch.weight > 0).astype(jnp.float32))}


@dataclass(frozen=True)
class GPPO(RatioObjective):
    """Clip with a gradient at clipped tokens, min(rho A, bound rho / sg(rho) A): each pulls as hard as at the bound.

    sg = stop-gradient (arXiv 2508.07629).
    """

    low: PositiveShare = 0.2
    high: PositiveOrInfinite = 0.2

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        ratio = jnp.exp(log_ratio(logp, batch.old_logp))
        bounded, metrics = clipped_surrogate(jax.lax.stop_gradient(ratio), batch, self.low, self.high)
        # The value is that of Clip, and its gradient by logp is the value itself: that of sg(c) rho / sg(rho).
        return bounded * one_with_the_gradient_of(logp), metrics


@dataclass(frozen=True)
class SAPO(RatioObjective):
    """-4 / tau sigmoid(tau (rho - 1)) A: a soft gate instead of a clip (arXiv 2511.20347).

    The gradient is A at rho = 1 and falls off on either side, faster where A < 0.
    """

    tau_positive: PositiveFloat = 1.0
    tau_negative: PositiveFloat = 1.05

    off_policy = ("tau_positive", "tau_negative")

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        ratio = jnp.exp(log_ratio(logp, batch.old_logp))
        tau = jnp.where(batch.advantage > 0, self.tau_positive, self.tau_negative)
        # At tau (rho - 1) = 4 the gate has closed to 7 %.
        closed = tau * (ratio - 1.0) > 4.0
        metrics = ratio_metrics(ratio, batch, low=closed & (batch.advantage < 0), high=closed & (batch.advantage > 0))
        return -4.0 / tau * jax.nn.sigmoid(tau * (ratio - 1.0)) * batch.advantage, metrics


@dataclass(frozen=True)
class DPPO(SamplerObjective):
    """-rho A without tokens that moved too far, rho = pi / mu (DPPO with binary total variation, arXiv 2602.04879).

    Left out: pi - mu > high where A > 0, pi - mu < -low where A < 0. A ratio says little at small probabilities: from
    1e-4 to 1e-3 it is 10, and nothing has happened. With `symmetric` the sign of A does not matter (the "ipo" loss of
    prime-rl). prime-rl adds a `DriftPenalty` to either.
    """

    low: OpenShare = 0.2
    high: OpenShare = 0.2
    symmetric: bool = False

    off_policy = ("low", "high", "symmetric")

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        moved = probability_moved(logp, batch)
        high, low = moved > self.high, moved < -self.low
        if not self.symmetric:
            high, low = high & (batch.advantage > 0), low & (batch.advantage < 0)
        ratio = jnp.exp(log_ratio(logp, batch.sampler_logp))
        loss = jnp.where(low | high, 0.0, -ratio * batch.advantage)
        return loss, ratio_metrics(ratio, batch, low=low, high=high)


def probability_moved(logp: jax.Array, batch: Batch) -> jax.Array:
    """pi - mu of each sampled token f32[B, T], a constant."""
    chex.assert_equal_shape([logp, batch.sampler_logp])
    return jnp.exp(jax.lax.stop_gradient(logp)) - jnp.exp(batch.sampler_logp)


@dataclass(frozen=True)
class GSPO(RatioObjective):
    """-min(s A, clip(s, 1 - low, 1 + high) A), s = (pi(o) / pi_old(o))^(1/|o|) (arXiv 2507.18071, eq. 5-7).

    s is the geometric mean of a response's token ratios. gradient "sequence": through s, so each token learns from the
    mean advantage of its response. "token": GSPO-token (eq. 13-14), s_t = sg(s) pi_t / sg(pi_t), each token from its
    own advantage, as in verl. Both are equal if a response has one advantage and its tokens one weight.
    """

    low: PositiveShare = 3e-4
    high: PositiveOrInfinite = 4e-4
    gradient: Literal["sequence", "token"] = "sequence"

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        ratio = jnp.exp(mean_over_tokens(log_ratio(logp, batch.old_logp), batch))
        if self.gradient == "token":
            ratio = jax.lax.stop_gradient(ratio) * one_with_the_gradient_of(logp)
        return clipped_surrogate(jnp.broadcast_to(ratio, logp.shape), batch, self.low, self.high)


@dataclass(frozen=True)
class SequenceClip(RatioObjective):
    """The clipped surrogate of pi(o) / pi_old(o), the product of a response's token ratios.

    RLOO in TRL; a response is one action (arXiv 2402.14740). The ratio spreads with the length, so most long responses
    end up clipped.
    """

    low: PositiveShare = 0.2
    high: PositiveOrInfinite = 0.2

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        ratio = jnp.broadcast_to(jnp.exp(sequence_log_ratio(logp, batch.old_logp, batch)), logp.shape)
        return clipped_surrogate(ratio, batch, self.low, self.high)


@dataclass(frozen=True)
class GMPO(RatioObjective):
    """-A exp(mean_t c_t): the geometric mean of clipped token ratios (arXiv 2507.20673).

    c_t = log rho_t, bounded by `high` where A > 0 and by -`low` where A < 0; the paper's ratios stay within e^-0.4 and
    e^0.4. One outlier token moves it less than it would a mean. A response's A is the mean over its tokens.
    """

    low: PositiveOrInfinite = 0.4
    high: PositiveOrInfinite = 0.4

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        away = log_ratio(logp, batch.old_logp)
        high = (away > self.high) & (batch.advantage > 0)
        low = (away < -self.low) & (batch.advantage < 0)
        bounded = jnp.where(high, self.high, jnp.where(low, -self.low, away))
        # A token without advantage asks for nothing: its ratio is left out.
        bounded = jnp.where(batch.advantage == 0, 0.0, bounded)
        loss = -mean_over_tokens(batch.advantage, batch) * jnp.exp(mean_over_tokens(bounded, batch))
        return jnp.broadcast_to(loss, logp.shape), ratio_metrics(jnp.exp(away), batch, low=low, high=high)
