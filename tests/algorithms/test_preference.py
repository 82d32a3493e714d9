"""Losses of preferences and of distillation: minima, limits and exact expectations."""

from dataclasses import replace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from peers.case import batch

from rl_llm.algorithms.distillation import GeneralizedJSD, ReverseKL
from rl_llm.algorithms.divergence import full_divergence
from rl_llm.algorithms.preference import DPO, IPO, KTO, bradley_terry, implicit_reward

V = 5
RNG = np.random.default_rng(0)
STUDENT, TEACHER = (jnp.asarray(RNG.normal(size=V), jnp.float32) for _ in range(2))
some = st.floats(-5, 5, width=32).map(jnp.float32)


@given(some, some, some, some)
def test_dpo_is_bradley_terry_on_implicit_rewards(chosen, rejected, ref_chosen, ref_rejected):
    ours = DPO(0.3)(chosen, rejected, ref_chosen, ref_rejected)
    rewards = implicit_reward(0.3, chosen, ref_chosen), implicit_reward(0.3, rejected, ref_rejected)
    assert ours == pytest.approx(float(bradley_terry(*rewards)), rel=1e-4, abs=1e-6)


@given(some)
def test_label_smoothing_mixes_in_the_loss_of_the_swapped_pair(margin):
    zero = jnp.zeros(())
    right, wrong = DPO(1.0)(margin, zero, zero, zero), DPO(1.0)(zero, margin, zero, zero)
    smoothed = DPO(1.0, label_smoothing=0.2)(margin, zero, zero, zero)
    assert smoothed == pytest.approx(float(0.8 * right + 0.2 * wrong), rel=1e-4, abs=1e-6)


def test_ipo_has_its_minimum_at_its_margin_and_dpo_has_none():
    zero = jnp.zeros(())
    slope = jax.grad(lambda chosen: IPO(0.1)(chosen, zero, zero, zero))
    assert slope(jnp.float32(5.0)) == 0
    assert slope(jnp.float32(4.0)) < 0 < slope(jnp.float32(6.0))
    assert jax.grad(lambda chosen: DPO(0.1)(chosen, zero, zero, zero))(jnp.float32(6.0)) < 0


def test_kto_raises_desirable_lowers_undesirable_and_leaves_its_baseline_alone():
    desirable = jnp.array([True, False])
    zeros = jnp.zeros(2)
    by_logp, by_mismatched = jax.grad(
        lambda logp, mismatched: jnp.sum(KTO(0.5, 2.0, 3.0)(logp, zeros, desirable, mismatched)), argnums=(0, 1)
    )(zeros, jnp.zeros(3))
    np.testing.assert_allclose(by_logp, [-0.5 * 2 / 4, 0.5 * 3 / 4])
    np.testing.assert_array_equal(by_mismatched, 0.0)
    below = KTO()(zeros, zeros, desirable, jnp.full(3, -4.0))
    np.testing.assert_allclose(below, KTO()(zeros, zeros, desirable, jnp.zeros(3)))  # z is no less than 0
    above = KTO()(zeros, zeros, desirable, jnp.full(3, 4.0))
    assert above[0] > below[0]
    assert above[1] < below[1]


def test_the_generalized_jsd_ends_in_forward_and_reverse_kl():
    forward, reverse = full_divergence(TEACHER, STUDENT), full_divergence(STUDENT, TEACHER)
    assert GeneralizedJSD(0.0)(STUDENT, TEACHER) == pytest.approx(float(forward), rel=1e-5)
    assert GeneralizedJSD(1.0)(STUDENT, TEACHER) == pytest.approx(float(reverse), rel=1e-5)
    assert GeneralizedJSD(0.01)(STUDENT, TEACHER) / 0.01 == pytest.approx(float(forward), rel=0.05)
    assert GeneralizedJSD(0.99)(STUDENT, TEACHER) / 0.01 == pytest.approx(float(reverse), rel=0.05)


@given(st.floats(0, 1), st.floats(0.5, 2))
def test_the_generalized_jsd_is_zero_only_at_the_teacher_and_symmetric_at_one_half(beta: float, temperature: float):
    distance = GeneralizedJSD(beta, temperature)
    assert abs(distance(TEACHER, TEACHER)) < 1e-6
    if 0.01 < beta < 0.99:
        assert distance(STUDENT, TEACHER) > 0
        turned = GeneralizedJSD(1 - beta, temperature)(TEACHER, STUDENT)
        assert distance(STUDENT, TEACHER) == pytest.approx(float(turned), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("moved", [0.0, 0.05])
def test_the_expected_gradient_of_reverse_kl_is_that_of_the_divergence_even_off_policy(moved: float):
    """All tokens of a vocabulary, weighted by the sampler's probability."""
    sampled = jax.nn.log_softmax(STUDENT + moved * TEACHER)[:, None]
    rows = batch(np.ones((V, 1), np.float32), 1, old_logp=sampled, sampler_logp=sampled)
    rows = replace(rows, weight=jnp.exp(sampled), ref_logp=jax.nn.log_softmax(TEACHER)[:, None])
    found = jax.grad(lambda x: jnp.sum(rows.weight * ReverseKL()(jax.nn.log_softmax(x)[:, None], rows)[0]))(STUDENT)
    np.testing.assert_allclose(found, jax.grad(lambda x: full_divergence(x, TEACHER))(STUDENT), atol=2e-6)


def test_reverse_kl_drops_tokens_with_fallen_probability():
    one = np.ones((1, 1), np.float32)
    rows = batch(one, 1, sampler_logp=np.log(0.5) * one, ref_logp=0 * one, weight=one)
    for probability, left_out in ((0.4, False), (0.2, True)):
        loss, metrics = ReverseKL()(jnp.log(probability) * jnp.asarray(one), rows)
        assert (loss[0, 0] == 0) == left_out
        assert metrics["policy/clip_low"].result() == left_out


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPO(beta=0.0), "DPO.beta=0.0 is out of range; expected > 0"),
        (lambda: DPO(label_smoothing=0.5), "DPO.label_smoothing=0.5 is out of range; expected >= 0 and < 0.5"),
        (lambda: IPO(beta=-1.0), "IPO.beta=-1.0 is out of range; expected > 0"),
        (lambda: KTO(undesirable_weight=0.0), "KTO.undesirable_weight=0.0 is out of range; expected > 0"),
        (lambda: GeneralizedJSD(beta=1.5), "GeneralizedJSD.beta=1.5 is out of range; expected >= 0 and <= 1"),
        (lambda: GeneralizedJSD(temperature=0.0), "GeneralizedJSD.temperature=0.0 is out of range; expected > 0"),
        (lambda: ReverseKL(low=0.0), "ReverseKL.low=0.0 is out of range; expected > 0 and <= 1"),
    ],
)
def test_impossible_values_are_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()
