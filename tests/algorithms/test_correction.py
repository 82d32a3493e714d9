"""Corrections for a sampler that differs from the policy: exact expectations for a small policy, and bounds."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from peers.case import batch

from rl_llm.algorithms import RunShape
from rl_llm.algorithms.correction import DivergenceMask, ImportanceWeight, OffPolicyMask, RatioMask
from rl_llm.algorithms.objective import Clip, PolicyGradient
from rl_llm.algorithms.score_objective import AIPO
from rl_llm.types import Batch

# Token 0 ends a response of at most two tokens: all seven responses.
RESPONSES = [(0,), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
MASK = np.array([[1, len(response) > 1] for response in RESPONSES], np.float32)
RNG = np.random.default_rng(0)
POLICY, SAMPLER = (jnp.asarray(RNG.normal(size=(3, 3)), jnp.float32) for _ in range(2))
REWARD = jnp.asarray(RNG.normal(size=len(RESPONSES)), jnp.float32)

# Components hash by value, so equal ones share a program.
apply = jax.jit(lambda component, batch: component(batch), static_argnums=0)


def log_probabilities(table: jax.Array) -> jax.Array:
    """Logits [3, 3] by (previous token, 0 at the start; token) -> log-probabilities [7, 2] of all responses' tokens."""
    table = jax.nn.log_softmax(table)
    rows = [[table[0, r[0]], table[r[0], r[1]] if len(r) > 1 else jnp.zeros(())] for r in RESPONSES]
    return jnp.stack([jnp.stack(row) for row in rows])


def probability(table: jax.Array) -> jax.Array:
    return jnp.exp(jnp.sum(log_probabilities(table), axis=1))


def expected_gradient(objective: Any, corrections: tuple[Any, ...] = (), start: jax.Array = POLICY) -> jax.Array:
    """Expected gradient of the loss at POLICY over all responses of SAMPLER, for updates that began at `start`."""
    old, sampled = log_probabilities(start), log_probabilities(SAMPLER)
    rows = batch(MASK, 1, old_logp=old, sampler_logp=sampled, reward=REWARD)
    weight = probability(SAMPLER)[:, None] * rows.mask
    for correction in corrections:
        weight = weight * correction(rows)
    rows = replace(rows, advantage=REWARD[:, None] * rows.mask, weight=weight)
    return jax.grad(lambda table: jnp.sum(rows.weight * objective(log_probabilities(table), rows)[0]))(POLICY)


TRUE_GRADIENT = -jax.grad(lambda table: jnp.sum(probability(table) * REWARD))(POLICY)


def test_the_small_policy_sums_to_one():
    assert float(jnp.sum(probability(POLICY))) == pytest.approx(1.0)


@pytest.mark.parametrize("objective", [PolicyGradient(), Clip()], ids=str)
def test_importance_weights_of_responses_without_a_bound_are_unbiased(objective):
    found = expected_gradient(objective, (ImportanceWeight("sequence", upper=None),))
    np.testing.assert_allclose(found, TRUE_GRADIENT, atol=1e-6)


@pytest.mark.parametrize(
    "corrections",
    [
        (),
        (ImportanceWeight("token", upper=None),),
        (ImportanceWeight("geometric", upper=None),),
        (ImportanceWeight("sequence", upper=1.0),),
        (ImportanceWeight("sequence", upper=None), RatioMask(0.5, 2.0, level="sequence")),
    ],
    ids=str,
)
def test_other_corrections_are_biased(corrections):
    assert np.abs(expected_gradient(PolicyGradient(), corrections) - TRUE_GRADIENT).max() > 1e-3


def test_token_weights_are_unbiased_for_responses_of_one_token():
    """The gradient at the first token, which alone earns the reward."""
    old, sampled = jax.nn.log_softmax(POLICY[0])[:, None], jax.nn.log_softmax(SAMPLER[0])[:, None]
    rows = batch(np.ones((3, 1), np.float32), 1, old_logp=old, sampler_logp=sampled, advantage=REWARD[:3, None])
    target = -jax.grad(lambda logits: jnp.sum(jax.nn.softmax(logits) * REWARD[:3]))(POLICY[0])
    weighed = replace(rows, weight=jnp.exp(sampled) * ImportanceWeight(upper=None)(rows))
    plain = replace(rows, weight=jnp.exp(sampled))
    for objective, source in ((PolicyGradient(), weighed), (AIPO(cap=1e6), plain)):
        total = jax.grad(
            lambda logits, objective=objective, source=source: jnp.sum(
                source.weight * objective(jax.nn.log_softmax(logits)[:, None], source)[0]
            )
        )
        np.testing.assert_allclose(total(POLICY[0]), target, atol=1e-6)


def of(ratio: Any, advantage: float = 1.0, lengths: Any = None) -> Batch:
    """Batch with pi_old / mu = `ratio` [B, T] at each token."""
    ratio = np.asarray(ratio, np.float32)
    lengths = np.full(len(ratio), ratio.shape[1]) if lengths is None else np.asarray(lengths)
    mask = (np.arange(ratio.shape[1]) < lengths[:, None]).astype(np.float32)
    sampled = np.full(ratio.shape, -5.0, np.float32)
    return batch(mask, 1, sampler_logp=sampled, old_logp=sampled + np.log(ratio), advantage=advantage * mask)


TWO = of([[4.0, 1.0], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (ImportanceWeight(), [[2, 1], [0.5, 0.5]]),
        (ImportanceWeight(lower=0.8), [[2, 1], [0.8, 0.8]]),
        (ImportanceWeight("sequence"), [[2, 2], [0.25, 0.25]]),
        (ImportanceWeight("geometric", upper=None), [[2, 2], [0.5, 0.5]]),
        (ImportanceWeight(upper=None, batch_normalize=True), [[4 / 1.5, 1 / 1.5], [1 / 3, 1 / 3]]),
        (ImportanceWeight("geometric", upper=None, batch_normalize=True), [[1.6, 1.6], [0.4, 0.4]]),
        (RatioMask(0.6, 2.0), [[0, 1], [0, 0]]),
        (RatioMask(None, 2.0), [[0, 1], [1, 1]]),
        (RatioMask(0.6, None), [[1, 1], [0, 0]]),
        (RatioMask(0.4, 3.0, "sequence"), [[0, 0], [0, 0]]),
        (RatioMask(0.4, 3.0, "geometric"), [[1, 1], [1, 1]]),
        (DivergenceMask(0.5, "k2", "token"), [[0, 1], [1, 1]]),
        (DivergenceMask(0.3, "k2"), [[0, 0], [1, 1]]),
        (DivergenceMask(0.3, "k2", "sum"), [[0, 0], [0, 0]]),
        (DivergenceMask(0.9, "k2", "max"), [[0, 0], [1, 1]]),
        (DivergenceMask(0.2, "k3"), [[0, 0], [1, 1]]),
    ],
    ids=str,
)
def test_each_correction_on_two_responses(correction, expected: list):
    np.testing.assert_allclose(apply(correction, TWO), expected, rtol=1e-5)


def test_the_off_policy_mask_drops_only_distant_mistakes():
    for advantage, expected in ((1.0, [[1, 1], [1, 1]]), (-1.0, [[1, 1], [0, 0]])):
        source = of([[4.0, 1.0], [0.5, 0.5]], advantage)
        np.testing.assert_array_equal(apply(OffPolicyMask(0.5), source), expected)
    np.testing.assert_array_equal(apply(OffPolicyMask(0.8), of([[0.5, 0.5]], -1.0)), 1.0)


ALL = [
    ImportanceWeight(),
    ImportanceWeight("sequence"),
    ImportanceWeight(batch_normalize=True),
    ImportanceWeight("geometric", batch_normalize=True),
    RatioMask(level="geometric"),
    DivergenceMask(0.1),
    DivergenceMask(0.1, over="max"),
    OffPolicyMask(0.1),
]


@given(st.lists(st.floats(-3, 3, width=32), min_size=12, max_size=12), st.permutations(range(4)))
@pytest.mark.parametrize("correction", ALL, ids=str)
def test_factors_do_not_depend_on_padding_or_the_order_of_rows(correction, logs: list[float], order: list[int]):
    ratio, lengths = np.exp(np.array(logs)).reshape(4, 3), np.array([3, 1, 2, 0])
    source = of(ratio, -1.0, lengths)
    factors = np.asarray(apply(correction, source) * source.mask)
    shuffled = of(ratio[order], -1.0, lengths[order])
    np.testing.assert_allclose(apply(correction, shuffled) * shuffled.mask, factors[order], rtol=1e-5)
    other = np.where(np.asarray(source.mask) > 0, ratio, 7.0)
    np.testing.assert_allclose(apply(correction, of(other, -1.0, lengths)) * source.mask, factors, rtol=1e-6)


@pytest.mark.parametrize("correction", ALL, ids=str)
@pytest.mark.parametrize("ratio", [1e-30, 1e30])
def test_factors_are_finite_at_extreme_ratios(correction, ratio: float):
    assert np.isfinite(apply(correction, of(np.full((2, 3), ratio)))).all()


@pytest.mark.parametrize("correction", ALL, ids=str)
def test_corrections_are_refused_if_the_sampler_is_the_policy(correction):
    np.testing.assert_allclose(apply(correction, of(np.ones((2, 3)))), 1.0, rtol=1e-6)
    with pytest.raises(ValueError, match="cannot act where the sampler is the policy itself"):
        correction.check(RunShape(8, 8, 4))
    correction.check(RunShape(8, 8, 1, sampler_differs=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ImportanceWeight(upper=0.5), "ImportanceWeight.upper=0.5 is out of range; expected >= 1"),
        (lambda: ImportanceWeight(lower=0.0), "ImportanceWeight.lower=0.0 is out of range; expected > 0 and <= 1"),
        (lambda: RatioMask(1.5, 2.0), "RatioMask.lower=1.5 is out of range; expected > 0 and <= 1"),
        (lambda: RatioMask(None, None), "masks nothing"),
        (lambda: DivergenceMask(0.0), "DivergenceMask.limit=0.0 is out of range; expected > 0"),
        (lambda: OffPolicyMask(-1.0), "OffPolicyMask.limit=-1.0 is out of range; expected > 0"),
    ],
)
def test_impossible_values_are_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()
