"""Distillation: losses at each token that draw a student to a teacher, from whole distributions or from the log-prob of
the sampled token.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from rl_llm.algorithms.controller import AdaptiveKL
from rl_llm.algorithms.divergence import full_divergence
from rl_llm.algorithms.objective import log_ratio, probability_moved, ratio_metrics
from rl_llm.algorithms.run_shape import RunShape, refuse_without_drift, require
from rl_llm.types import Batch, Metrics, masked_mean

# Far above what rounding leaves of 1 - sum(p), a few ulp of a log-normalizer, and far below any mass worth learning.
LEAST_REST = 1e-5
NO_OUTCOME = -1e4  # a log-probability: a probability of 0 at any temperature, with finite products and differences


@dataclass(frozen=True)
class GeneralizedJSD:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student (GKD, arXiv
    2306.13649, eq. 1). At the ends, where this is 0, the KLs that it tends to when divided by beta or by 1 - beta: 0
    is the forward KL(teacher || student), 1 the reverse KL(student || teacher).
    """

    beta: float = field(default=0.5, metadata={"static": True})  # its ends are other formulas
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1 or not self.temperature > 0:
            raise ValueError(
                f"GeneralizedJSD needs 0 <= beta <= 1 and temperature > 0, not beta={self.beta}, "
                f"temperature={self.temperature}"
            )

    def __call__(self, logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
        """f32[..., V] of student and teacher -> f32[...]."""
        student, teacher = (jax.nn.log_softmax(x / self.temperature) for x in (logits, teacher_logits))
        if self.beta == 0:
            return full_divergence(teacher, student)
        if self.beta == 1:
            return full_divergence(student, teacher)
        middle = jnp.logaddexp(jnp.log(self.beta) + teacher, jnp.log1p(-self.beta) + student)
        return self.beta * full_divergence(teacher, middle) + (1 - self.beta) * full_divergence(student, middle)


@dataclass(frozen=True)
class ReverseKL:
    """An objective: -rho sg(log teacher - log pi) at each token, whose expected gradient is that of KL(pi || teacher),
    token by token (on-policy distillation; MiniLLM, arXiv 2306.08543). The teacher is batch.ref_logp; rho = pi / mu
    with the sampler's distribution; rewards are not read. Tokens whose probability has fallen by more than `low` since
    they were sampled are left out, as in prime-rl.
    """

    low: float = 0.2

    needs = ("ref_logp",)
    reads_advantage = reads_reward = False
    from_sampler = True

    def __post_init__(self) -> None:
        if not 0 < self.low <= 1:
            raise ValueError(f"ReverseKL.low is a difference of probabilities: it lies in (0, 1], not {self.low}")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for a bound that was set where pi is the sampler's distribution."""
        refuse_without_drift(self, ("low",), setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        gain = require(batch, self, "ref_logp") - jax.lax.stop_gradient(logp)
        low = probability_moved(logp, batch) < -self.low
        ratio = jnp.exp(log_ratio(logp, batch.sampler_logp))
        metrics = ratio_metrics(ratio, batch, low=low, high=jnp.zeros_like(low))
        metrics |= {"policy/kl_to_teacher": masked_mean(-gain, (batch.weight > 0).astype(jnp.float32))}
        return jnp.where(low, 0.0, -ratio * gain), metrics


def with_rest(logps: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities f32[..., k] of the same outcomes under student and teacher -> f32[..., k + 1] of both: those,
    and of all other outcomes together.

    Where neither has a rest there is no such outcome. Where only one has, the other's is taken to be LEAST_REST, with
    the gradient of what it is: a student that gives the rest no mass can still learn to.
    """
    rests = [1.0 - jnp.sum(jnp.exp(logp), axis=-1, keepdims=True) for logp in logps]
    none = jnp.maximum(*rests) <= LEAST_REST
    bounded = [rest + jax.lax.stop_gradient(jnp.maximum(rest, LEAST_REST) - rest) for rest in rests]
    logs = [jnp.where(none, NO_OUTCOME, jnp.log(rest)) for rest in bounded]
    student, teacher = (jnp.concatenate(parts, axis=-1) for parts in zip(logps, logs, strict=True))
    return student, teacher


@dataclass(frozen=True)
class Distillation:
    """A regularizer: coefficient * divergence at each token between teacher and student, as distributions over the
    teacher's k likeliest tokens and one bucket with the rest of the mass (GKD, arXiv 2306.13649, with the top k of a
    vocabulary). With k = V it is the divergence of the whole distributions; with less, at temperature 1, no more than
    that, as distributions only come closer when outcomes are put together.

    batch.teacher_logp and batch.student_logp f32[B, T, k] are those of whole softmaxes; a temperature of the
    divergence acts on the distributions with the bucket. Beside `Nothing` it is the whole loss; rewards are not read.
    """

    divergence: GeneralizedJSD = GeneralizedJSD()
    coefficient: float = 1.0
    controller: AdaptiveKL | None = None

    needs = ("teacher_tokens", "teacher_logp")
    measured = "policy/distillation"  # what a controller goes by

    def __post_init__(self) -> None:
        if not self.coefficient > 0:
            raise ValueError(f"Distillation.coefficient must be greater than 0, not {self.coefficient}: leave it out")

    def check(self, setting: RunShape) -> None:
        """Acts in every setting."""

    def __call__(
        self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: jax.Array | float | None = None
    ) -> tuple[jax.Array, Metrics]:
        logps = require(batch, self, "student_logp"), require(batch, self, "teacher_logp")
        distance = self.divergence(*with_rest(logps))
        scale = self.coefficient if coefficient is None else coefficient
        return scale * distance, {"policy/distillation": masked_mean(distance, (batch.weight > 0).astype(jnp.float32))}
