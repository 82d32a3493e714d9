"""Distillation from a teacher's k likeliest tokens: against the whole distributions, and where rounding could bite."""

from dataclasses import replace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from peers.case import batch

from rl_llm.algorithms import Distillation, GeneralizedJSD, Nothing
from rl_llm.algorithms.distillation import with_rest
from rl_llm.types import Batch

V = 7
ROWS = batch(np.ones((2, 3), np.float32), 1, weight=np.ones((2, 3), np.float32))
ZEROS = jnp.zeros((2, 3))
betas = st.sampled_from([0.0, 0.3, 0.5, 1.0])
scales = st.sampled_from([0.1, 3.0, 30.0])  # at 30 nearly all mass is on one token


def logits(seed: int, scale: float) -> tuple[jax.Array, jax.Array]:
    """Logits f32[2, 3, V] of student and teacher."""
    student, teacher = scale * np.random.default_rng(seed).normal(size=(2, 2, 3, V)).astype(np.float32)
    return jnp.asarray(student), jnp.asarray(teacher)


def filled(student: jax.Array, teacher: jax.Array, k: int) -> Batch:
    """Batch with both at the teacher's k likeliest tokens, from logits of the whole vocabulary."""
    top, tokens = jax.lax.top_k(jax.nn.log_softmax(teacher), k)
    mine = jnp.take_along_axis(jax.nn.log_softmax(student), tokens, axis=-1)
    return replace(ROWS, teacher_tokens=tokens, teacher_logp=top, student_logp=mine)


def distilled(distillation: Distillation, student: jax.Array, teacher: jax.Array, k: int) -> jax.Array:
    return distillation(ZEROS, ZEROS, filled(student, teacher, k))[0]


@pytest.mark.slow
@given(seed=st.integers(0, 1000), beta=betas, scale=scales, temperature=st.sampled_from([1.0, 2.0]))
def test_the_whole_vocabulary_gives_the_whole_divergence(seed: int, beta: float, scale: float, temperature: float):
    divergence = GeneralizedJSD(beta, temperature)
    student, teacher = logits(seed, scale)
    ours = jax.value_and_grad(lambda x: jnp.sum(distilled(Distillation(divergence), x, teacher, V)))(student)
    whole = jax.value_and_grad(lambda x: jnp.sum(divergence(x, teacher)))(student)
    assert np.isfinite(ours[1]).all()
    np.testing.assert_allclose(ours[0], whole[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours[1], whole[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@given(seed=st.integers(0, 1000), beta=betas, scale=scales, k=st.integers(1, V - 1))
def test_the_rest_is_one_outcome(seed: int, beta: float, scale: float, k: int):
    """The divergence after merging the other tokens into one; at most the whole divergence."""
    student, teacher = logits(seed, scale)
    order = jnp.argsort(-teacher, axis=-1)
    put = [jnp.take_along_axis(jax.nn.log_softmax(x), order, axis=-1) for x in (student, teacher)]
    merged = [jnp.concatenate([x[..., :k], jax.nn.logsumexp(x[..., k:], -1, keepdims=True)], -1) for x in put]
    ours = distilled(Distillation(GeneralizedJSD(beta)), student, teacher, k)
    if scale < 30:
        np.testing.assert_allclose(ours, GeneralizedJSD(beta)(*merged), rtol=1e-3, atol=1e-4)
    assert (ours <= GeneralizedJSD(beta)(student, teacher) + 1e-3).all()
    np.testing.assert_allclose(distilled(Distillation(GeneralizedJSD(beta)), teacher, teacher, k), 0.0, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_sums_above_1_and_padding_stay_finite(beta: float):
    """Rounding can leave a sum above 1; log-probabilities at padding are 0, so they sum to k."""
    for student in (jnp.log(jnp.array([0.5, 0.5 + 1e-6])), jnp.zeros(2)):
        made = replace(ROWS, teacher_logp=jnp.log(jnp.full((2, 3, 2), 0.5)), weight=ZEROS)
        made = replace(made, student_logp=jnp.broadcast_to(student, (2, 3, 2)))
        value, gradient = jax.value_and_grad(
            lambda x, made=made: jnp.sum(
                Distillation(GeneralizedJSD(beta))(ZEROS, ZEROS, replace(made, student_logp=x))[0]
            )
        )(made.student_logp)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_a_student_without_rest_learns_the_rest_of_the_teacher():
    student, teacher = jnp.array([0.0, -14.0]), jnp.log(jnp.array([0.5, 0.5]))

    def loss(x: jax.Array) -> jax.Array:
        return GeneralizedJSD(0.0)(*with_rest((jax.nn.log_softmax(x)[:1], teacher[:1])))

    pull = jax.grad(loss)(student)
    assert pull[1] < 0 < pull[0]


def test_the_coefficient_scales_the_loss_and_not_the_metric():
    student, teacher = logits(0, 1.0)
    made = replace(filled(student, teacher, 3), weight=jnp.asarray([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0]]))
    one, metrics = Distillation()(ZEROS, ZEROS, made)
    for losses, again in (Distillation(coefficient=0.5)(ZEROS, ZEROS, made), Distillation()(ZEROS, ZEROS, made, 0.5)):
        np.testing.assert_allclose(losses, 0.5 * one)
        assert again["policy/distillation"].result() == metrics["policy/distillation"].result()
    assert metrics["policy/distillation"].result() == pytest.approx(float(one[0, 0] + one[0, 1] + one[1, 0]) / 3)


def test_nothing_is_zero_without_a_gradient():
    losses, metrics = Nothing()(ZEROS + 3.0, ROWS)
    np.testing.assert_array_equal(losses, ZEROS)
    assert metrics == {}


def test_impossible_values_and_missing_fields_are_refused():
    with pytest.raises(ValueError, match=r"Distillation.coefficient=0.0 is out of range; expected > 0"):
        Distillation(coefficient=0.0)
    with pytest.raises(ValueError, match=r"Distillation needs batch.student_logp"):
        Distillation()(ZEROS, ZEROS, ROWS)
