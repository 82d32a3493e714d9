"""Divergence estimators and the regularizers made of them, against exact expectations under small policies."""

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from peers.case import batch

from rl_llm.algorithms import RunShape
from rl_llm.algorithms.divergence import (
    AdaptiveKL,
    Divergence,
    DriftPenalty,
    EntropyBonus,
    EntropyTarget,
    KLPenalty,
    full_divergence,
)

V = 5
RNG = np.random.default_rng(0)
LOGITS, OLD, REF = (jnp.asarray(RNG.normal(size=V), jnp.float32) for _ in range(3))


def kl(logits: jax.Array, other: jax.Array) -> jax.Array:
    """KL(softmax(logits) || softmax(other)) written out."""
    p, q = jax.nn.softmax(logits), jax.nn.softmax(other)
    return jnp.sum(p * jnp.log(p / q))


def reverse(logits: jax.Array) -> jax.Array:
    return kl(logits, REF)


def forward(logits: jax.Array) -> jax.Array:
    return kl(REF, logits)


def variation(logits: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(jax.nn.softmax(logits) - jax.nn.softmax(REF)))


def expected_term(term: Any, logits: jax.Array, sampled_from: jax.Array) -> jax.Array:
    """Exact expectation of a regularizer at one token, from a batch with a row for each token of the vocabulary.

    Rows are weighted by their probability under `sampled_from`, a constant.
    """
    logp = jax.nn.log_softmax(logits)[:, None]
    sampled = jax.lax.stop_gradient(jax.nn.log_softmax(sampled_from))[:, None]
    rows = batch(np.ones((V, 1), np.float32), 1, old_logp=sampled, sampler_logp=sampled)
    rows = rows.replace(weight=jnp.exp(sampled), ref_logp=jax.nn.log_softmax(REF)[:, None])
    entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits))
    return jnp.sum(rows.weight * term(logp, jnp.full((V, 1), entropy), rows)[0])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    values = Divergence(estimator)(jax.nn.log_softmax(LOGITS), jax.nn.log_softmax(REF))
    assert jnp.sum(jax.nn.softmax(LOGITS) * values) == pytest.approx(float(reverse(LOGITS)), rel=1e-5)


def test_full_divergence_is_the_divergence():
    assert full_divergence(LOGITS, REF) == pytest.approx(float(reverse(LOGITS)), rel=1e-5)
    table = full_divergence(jnp.tile(LOGITS, (2, 3, 1)), jnp.tile(REF, (2, 3, 1)))
    np.testing.assert_allclose(table, np.full((2, 3), reverse(LOGITS)), rtol=1e-5)


@pytest.mark.parametrize(
    ("term", "sampled_from", "target"),
    [
        (KLPenalty(1.0, Divergence("k2")), LOGITS, reverse),
        (KLPenalty(1.0, Divergence("k3")), LOGITS, forward),
        (KLPenalty(1.0, Divergence("abs")), LOGITS, variation),
        (KLPenalty(1.0, Divergence("k1"), corrected=True), LOGITS, reverse),
        (KLPenalty(1.0, Divergence("k3"), corrected=True), LOGITS, reverse),
        (KLPenalty(1.0, Divergence("k1"), corrected=True), OLD, reverse),
        (KLPenalty(1.0, Divergence("k3"), corrected=True), OLD, reverse),
    ],
    ids=("k2", "k3", "abs", "k1 corrected", "k3 corrected", "k1 off-policy", "k3 off-policy"),
)
def test_the_expected_gradient_is_the_documented_one(term, sampled_from, target):
    found = jax.grad(expected_term, argnums=1)(term, LOGITS, sampled_from)
    np.testing.assert_allclose(found, jax.grad(target)(LOGITS), atol=2e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_corrected_penalty_has_the_divergence_as_its_expectation_off_policy(estimator):
    penalty = KLPenalty(1.0, Divergence(estimator), corrected=True)
    assert expected_term(penalty, LOGITS, OLD) == pytest.approx(float(reverse(LOGITS)), rel=1e-5)


def test_k1_in_the_loss_has_no_expected_gradient_and_is_refused():
    logp, ref = jax.nn.log_softmax, jax.nn.log_softmax(REF)
    total = jax.grad(lambda x: jnp.sum(jax.nn.softmax(LOGITS) * Divergence("k1")(logp(x), ref)))
    np.testing.assert_allclose(total(LOGITS), 0.0, atol=1e-6)
    with pytest.raises(ValueError, match="the k1 estimator cannot act: its expected gradient is 0"):
        KLPenalty(1.0, Divergence("k1"))


def test_the_entropy_bonus_has_the_gradient_of_the_entropy():
    def entropy(logits: jax.Array) -> jax.Array:
        return -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits))

    found = jax.grad(expected_term, argnums=1)(EntropyBonus(0.5), LOGITS, LOGITS)
    np.testing.assert_allclose(found, -0.5 * jax.grad(entropy)(LOGITS), atol=1e-6)


@given(st.floats(-40, 40, width=32))
def test_estimates_are_never_negative_but_for_k1(away: float):
    ref = jnp.zeros((1,))
    for estimator in ("abs", "k2", "k3"):
        assert Divergence(estimator)(jnp.array([away]), ref)[0] >= -1e-6


@pytest.mark.parametrize("estimator", ["k1", "abs", "k2", "k3"])
@pytest.mark.parametrize("away", [-1e4, 0.0, 1e4])
def test_estimates_are_finite_and_a_limit_ends_their_gradient(estimator, away: float):
    at = jax.value_and_grad(lambda x, limit: Divergence(estimator, limit)(x, jnp.zeros(())))
    value, slope = at(jnp.float32(away), None)
    assert np.isfinite([value, slope]).all()
    value, slope = at(jnp.float32(away), 10.0)
    assert abs(value) <= 10
    assert slope == (0.0 if away or estimator != "k1" else 1.0)


def test_drift_is_zero_on_policy_and_squared_off_policy():
    assert expected_term(DriftPenalty(1.0), LOGITS, LOGITS) == 0.0
    away = jax.nn.log_softmax(LOGITS) - jax.nn.log_softmax(OLD)
    expected = jnp.sum(jax.nn.softmax(OLD) * away**2)
    for origin in ("sampler", "old"):
        assert expected_term(DriftPenalty(2.0, origin), LOGITS, OLD) == pytest.approx(2 * float(expected), rel=1e-5)


@pytest.mark.parametrize("term", [KLPenalty(0.5), EntropyBonus(0.5), DriftPenalty(0.5)], ids=str)
def test_a_given_coefficient_replaces_the_components_own(term):
    doubled = expected_term(lambda *args: term(*args, coefficient=jnp.float32(1.0)), LOGITS, OLD)
    assert doubled == pytest.approx(2 * float(expected_term(term, LOGITS, OLD)), rel=1e-6)


def test_the_coefficient_of_the_kl_follows_it_within_a_fifth():
    controller = AdaptiveKL(target=0.1, horizon=1000)
    one = jnp.float32(1.0)
    assert controller.update(one, jnp.float32(0.1), 100) == 1.0
    assert controller.update(one, jnp.float32(0.11), 100) == pytest.approx(1.01)
    assert controller.update(one, jnp.float32(5.0), 100) == pytest.approx(1.02)
    assert controller.update(one, jnp.float32(0.0), 100) == pytest.approx(0.98)


def test_the_coefficient_of_the_entropy_rises_below_the_target_and_waits_above_it():
    """Skywork-OR1, eq. 3.2: alpha = c 1{entropy <= target}, while c keeps its value."""
    controller = EntropyTarget(target=0.5, step=0.1, highest=0.25)
    steps = [(0.4, 0.1, 0.1), (0.4, 0.2, 0.2), (0.4, 0.25, 0.25), (0.6, 0.15, 0.0), (0.6, 0.05, 0.0), (0.4, 0.15, 0.15)]
    steps += [(0.5, 0.15, 0.15), (0.6, 0.05, 0.0), (0.6, 0.0, 0.0), (0.6, 0.0, 0.0), (0.4, 0.1, 0.1)]
    coefficient = jnp.float32(0.0)
    for entropy, c, alpha in steps:
        coefficient = controller.update(coefficient, jnp.float32(entropy), 8)
        assert abs(coefficient) == pytest.approx(c, abs=1e-6)
        one = jnp.ones((1, 1))
        loss, _ = EntropyBonus(0.0, controller)(one, one, batch(np.ones((1, 1), np.float32), 1), coefficient)
        assert loss[0, 0] == pytest.approx(-alpha, abs=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Divergence(limit=0.0), "Divergence.limit=0.0 is out of range; expected > 0"),
        (lambda: KLPenalty(0.0), "KLPenalty.coefficient=0.0 is out of range; expected > 0"),
        (lambda: EntropyBonus(-0.1), "EntropyBonus.coefficient must be greater than 0 .* not -0.1"),
        (lambda: EntropyBonus(0.0), "EntropyBonus.coefficient must be greater than 0 .* not 0.0"),
        (lambda: DriftPenalty(0.0), "DriftPenalty.coefficient=0.0 is out of range; expected > 0"),
        (lambda: AdaptiveKL(target=0.0), "AdaptiveKL.target=0.0 is out of range; expected > 0"),
        (lambda: EntropyTarget(0.5, step=2.0), "step <= highest, not step=2.0, highest=1.0"),
        (lambda: DriftPenalty().check(RunShape(8, 8, 1)), "DriftPenalty.origin='sampler' with one on-policy update"),
        (
            lambda: DriftPenalty(origin="old").check(RunShape(8, 8, 1, sampler_differs=True)),
            "DriftPenalty.origin='old' with one on-policy update",
        ),
        (lambda: DriftPenalty(origin="old").check(RunShape(8, 8, 2)), "DriftPenalty.origin='old' cannot act where the"),
        (
            lambda: KLPenalty()(jnp.zeros((1, 1)), jnp.zeros((1, 1)), batch(np.ones((1, 1), np.float32), 1)),
            "KLPenalty needs batch.ref_logp",
        ),
    ],
)
def test_refusals(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_accepted_where_they_act():
    DriftPenalty().check(RunShape(8, 8, 1, sampler_differs=True))
    DriftPenalty().check(RunShape(8, 8, 2))
    DriftPenalty(origin="old").check(RunShape(8, 8, 2, sampler_differs=True))
    EntropyBonus(0.0, EntropyTarget(0.5))
