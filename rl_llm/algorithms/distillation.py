"""Distillation: losses that draw a student to a teacher at each token, by whole distributions or the sampled token."""

from dataclasses import dataclass, field

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.component import Coefficient, Loss, Regularizer
from rl_llm.algorithms.controller import AdaptiveKL
from rl_llm.algorithms.divergence import full_divergence
from rl_llm.algorithms.objective import SamplerObjective, log_ratio, probability_moved, ratio_metrics
from rl_llm.algorithms.run_shape import require
from rl_llm.config import Checked
from rl_llm.config.fields import PositiveFloat, PositiveShare, UnitFloat
from rl_llm.types import Batch, masked_mean

# Far above rounding errors of 1 - sum(p), a few ulp of a log-normalizer, and far below any mass worth learning.
LEAST_REST = 1e-5
NO_OUTCOME = -1e4  # a log-probability: a probability of 0 at any temperature, with finite products and differences


@dataclass(frozen=True)
class GeneralizedJSD(Checked):
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student.

    GKD (arXiv 2306.13649, eq. 1). At the ends, where it is 0, it is replaced by its limit after division by beta or
    1 - beta: beta = 0 is the forward KL(teacher || student), beta = 1 the reverse KL(student || teacher).
    """

    beta: UnitFloat = field(default=0.5, metadata={"static": True})  # its ends are other formulas
    temperature: PositiveFloat = 1.0

    def __call__(self, logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
        """Divergence f32[...], from f32[..., V] of student and teacher."""
        chex.assert_equal_shape([logits, teacher_logits])
        student, teacher = (jax.nn.log_softmax(x / self.temperature) for x in (logits, teacher_logits))
        if self.beta == 0:
            return full_divergence(teacher, student)
        if self.beta == 1:
            return full_divergence(student, teacher)
        middle = jnp.logaddexp(jnp.log(self.beta) + teacher, jnp.log1p(-self.beta) + student)
        return self.beta * full_divergence(teacher, middle) + (1 - self.beta) * full_divergence(student, middle)


@dataclass(frozen=True)
class ReverseKL(SamplerObjective):
    """-rho sg(log teacher - log pi) at each token (on-policy distillation; MiniLLM, arXiv 2306.08543).

    Its expected gradient is that of KL(pi || teacher), token by token. The teacher is batch.ref_logp; rho = pi / mu
    with the sampler's distribution; rewards are not read. As in prime-rl, it leaves out tokens with a probability that
    fell by more than `low` since they were sampled.
    """

    low: PositiveShare = 0.2

    needs = ("ref_logp",)
    reads_advantage = False
    off_policy = ("low",)

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        gain = require(batch, self, "ref_logp") - jax.lax.stop_gradient(logp)
        low = probability_moved(logp, batch) < -self.low
        ratio = jnp.exp(log_ratio(logp, batch.sampler_logp))
        metrics = ratio_metrics(ratio, batch, low=low, high=jnp.zeros_like(low))
        metrics |= {"policy/kl_to_teacher": masked_mean(-gain, (batch.weight > 0).astype(jnp.float32))}
        return jnp.where(low, 0.0, -ratio * gain), metrics


def with_rest(logps: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Append the probability of all other outcomes: f32[..., k] of student and teacher -> f32[..., k + 1].

    If neither has a rest, there is no such outcome. If only one has, the other's is set to LEAST_REST but keeps its
    gradient: a student that gives the rest no mass can still learn to.
    """
    chex.assert_equal_shape(logps)
    rests = [1.0 - jnp.sum(jnp.exp(logp), axis=-1, keepdims=True) for logp in logps]
    none = jnp.maximum(*rests) <= LEAST_REST
    bounded = [rest + jax.lax.stop_gradient(jnp.maximum(rest, LEAST_REST) - rest) for rest in rests]
    logs = [jnp.where(none, NO_OUTCOME, jnp.log(rest)) for rest in bounded]
    student, teacher = (jnp.concatenate(parts, axis=-1) for parts in zip(logps, logs, strict=True))
    return student, teacher


@dataclass(frozen=True)
class Distillation(Regularizer):
    """coefficient * divergence between teacher and student at each token (GKD, arXiv 2306.13649, top k of V).

    Both are distributions over the teacher's k likeliest tokens and one bucket with the rest. k = V is the divergence
    of the whole distributions. A smaller k, at temperature 1, gives at most that: merging outcomes only brings
    distributions closer.

    batch.teacher_logp and batch.student_logp f32[B, T, k] are those of whole softmaxes; a temperature of the divergence
    acts on the distributions with the bucket. Beside `Nothing` it is the whole loss; rewards are not read.
    """

    divergence: GeneralizedJSD = GeneralizedJSD()
    coefficient: PositiveFloat = 1.0
    controller: AdaptiveKL | None = None

    needs = ("teacher_tokens", "teacher_logp")
    measured = "policy/distillation"

    def __call__(self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: Coefficient = None) -> Loss:
        logps = require(batch, self, "student_logp"), require(batch, self, "teacher_logp")
        distance = self.divergence(*with_rest(logps))
        chex.assert_equal_shape([distance, batch.weight])
        scale = self.coefficient if coefficient is None else coefficient
        return scale * distance, {"policy/distillation": masked_mean(distance, (batch.weight > 0).astype(jnp.float32))}
