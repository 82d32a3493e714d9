"""Aggregates: sums of weights, invariances, and the responses that they favour."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from peers.case import batch

from rl_llm.algorithms import RunShape
from rl_llm.algorithms.aggregate import Balanced, FixedLength, SequenceMean, SequenceSum, TokenMean, VLNorm
from rl_llm.learner.train_step import split
from rl_llm.types import Batch

N, K, T = 4, 3, 6

# Components hash by value, so equal ones share a program.
apply = jax.jit(lambda component, batch: component(batch.mask, batch), static_argnums=0)

SUM_TO_ONE = [TokenMean(), TokenMean("group"), TokenMean("mini-batch", 2), SequenceMean(), Balanced()]
ALL = [
    *SUM_TO_ONE,
    SequenceMean("counted"),
    SequenceSum(),
    SequenceSum("counted"),
    FixedLength(8),
    FixedLength(8, rows="sum"),
    VLNorm(8),
    VLNorm(8, alpha=0.5),
]
ids = {"ids": str}


def of(lengths: Any, advantage: Any = None, responses: int = K, width: int = T) -> Batch:
    """Batch with responses of these lengths and one advantage each (default: 1, -1, 1, ...)."""
    lengths = np.asarray(lengths).reshape(-1)
    mask = (np.arange(width) < lengths[:, None]).astype(np.float32)
    given = np.where(np.arange(len(lengths)) % 2, -1.0, 1.0) if advantage is None else np.asarray(advantage)
    return batch(mask, responses, advantage=given.reshape(-1, 1).astype(np.float32) * mask)


def weigh(component: Any, source: Batch) -> np.ndarray:
    return np.asarray(apply(component, source))


some_lengths = st.lists(st.integers(0, T), min_size=N * K, max_size=N * K).map(np.array)


@given(some_lengths)
@pytest.mark.parametrize("component", ALL, **ids)
def test_weights_have_the_documented_sum_and_lie_on_tokens(component, lengths: np.ndarray):
    source = of(lengths)
    weight = weigh(component, source)
    np.testing.assert_array_equal(weight > 0, np.asarray(source.mask) > 0)
    tokens, rows = lengths.sum(), max((lengths > 0).sum(), 1)
    inverse = np.where(lengths > 0, np.maximum(lengths, 1.0) ** -getattr(component, "alpha", 1.0), 0.0)
    promised = {
        SequenceMean("counted"): rows / (N * K),
        SequenceSum(): tokens / rows,
        SequenceSum("counted"): tokens / (N * K),
        FixedLength(8): tokens / 8 / (N * K),
        FixedLength(8, rows="sum"): tokens / 8,
        VLNorm(8): (inverse * lengths).sum() / max(inverse.sum(), 1e-9) / 8,
        VLNorm(8, alpha=0.5): (inverse * lengths).sum() / max(inverse.sum(), 1e-9) / 8,
    }
    expected = promised.get(component, 1.0) if tokens else 0.0
    assert weight.sum() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(some_lengths, st.permutations(range(N)), st.permutations(range(K)))
@pytest.mark.parametrize("component", ALL, **ids)
def test_groups_and_rows_may_come_in_any_order(component, lengths, groups: list[int], rows: list[int]):
    if component == TokenMean("mini-batch", 2):
        groups = list(range(N))  # which update sees a prompt is decided by its place
    order = np.arange(N * K).reshape(N, K)[groups][:, rows].reshape(-1)
    advantage = np.where(np.arange(N * K) % 2, -1.0, 1.0)
    weight = weigh(component, of(lengths, advantage))
    np.testing.assert_allclose(weigh(component, of(lengths[order], advantage[order])), weight[order], rtol=1e-6)


@given(some_lengths)
@pytest.mark.parametrize("component", ALL, **ids)
def test_padding_does_not_change_a_weight(component, lengths: np.ndarray):
    wide = weigh(component, of(lengths, width=T + 3))
    np.testing.assert_allclose(wide[:, :T], weigh(component, of(lengths)), rtol=1e-6)


def test_each_aggregate_gives_equal_weight_to_its_unit():
    source = of([4, 1, 0, 2, 2, 1])
    mask = np.asarray(source.mask)
    np.testing.assert_allclose(weigh(TokenMean(), source), mask / 10)
    np.testing.assert_allclose(weigh(TokenMean("group"), source), mask / 5 / 2)
    rows = np.array([4, 1, 1, 2, 2, 1])[:, None]
    np.testing.assert_allclose(weigh(SequenceMean(), source), mask / rows / 5, rtol=1e-6)
    np.testing.assert_allclose(weigh(SequenceMean("counted"), source), mask / rows / 6, rtol=1e-6)
    np.testing.assert_allclose(weigh(FixedLength(6), source), weigh(SequenceSum("counted"), source) / 6, rtol=1e-6)
    np.testing.assert_allclose(weigh(VLNorm(6, alpha=0.0), source), weigh(SequenceSum(), source) / 6, rtol=1e-6)


@given(some_lengths)
@pytest.mark.parametrize("component", [each for each in ALL if each != TokenMean("mini-batch", 2)], **ids)
def test_a_group_that_is_not_counted_is_as_if_it_had_not_been_sampled(component, lengths: np.ndarray):
    counted = np.repeat([True, True, True, False], K)
    advantage = np.where(np.arange(N * K) % 2, -1.0, 1.0)
    whole = replace(of(lengths * counted, advantage), counted=jax.numpy.asarray(counted))
    rest = of(lengths[counted], advantage[counted])
    np.testing.assert_allclose(weigh(component, whole)[counted], weigh(component, rest), rtol=1e-6)


def test_the_mini_batch_token_mean_matches_the_mini_batches_of_updates():
    source = of(np.random.default_rng(0).integers(1, T + 1, N * K))
    whole = replace(source, weight=apply(TokenMean("mini-batch", 2), source))
    for update in range(2):
        share = jax.tree.map(lambda x: x[update], split(whole, 2))  # noqa: B023
        np.testing.assert_allclose(share.weight * 2, apply(TokenMean(), share), rtol=1e-6)


def test_balanced_weighs_signs_by_responses_at_any_length():
    """Under the token mean the two long wrong responses would outweigh the right one by 12 to 1."""
    source = of([1, 6, 6], advantage=[2.0, -1.0, -1.0])
    by_row = weigh(Balanced(), source).sum(axis=1)
    np.testing.assert_allclose(by_row, [1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    longer = weigh(Balanced(), of([1, 6, 2], advantage=[2.0, -1.0, -1.0])).sum(axis=1)
    np.testing.assert_allclose(longer, [1 / 3, 2 / 3 * 6 / 8, 2 / 3 * 2 / 8], rtol=1e-6)


def test_responses_of_one_token_weigh_the_same_under_every_mean():
    source = of(np.ones(N * K, int))
    for component in (*SUM_TO_ONE, SequenceSum(), FixedLength(1), VLNorm(1)):
        np.testing.assert_allclose(weigh(component, source), np.asarray(source.mask) / (N * K), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TokenMean("group", 4), "TokenMean.mini_batches=4 cannot act with scope='group'"),
        (lambda: TokenMean("mini-batch"), "needs mini_batches >= 2, not 1"),
        (lambda: FixedLength(0), "FixedLength.length=0 is out of range; expected >= 1"),
        (lambda: VLNorm(0), "VLNorm.length=0 is out of range; expected >= 1"),
        (lambda: VLNorm(8, alpha=1.5), "VLNorm.alpha=1.5 is out of range; expected >= 0 and <= 1"),
        (lambda: TokenMean("mini-batch", 4).check(RunShape(8, 8, 2)), "mini_batches=4 with updates_per_rollout=2"),
        (lambda: TokenMean("group").check(RunShape(1, 8, 1)), "scope='group' cannot act with prompts_per_step=1"),
        (lambda: Balanced().check(RunShape(8, 1, 1)), "Balanced with responses_per_prompt=1"),
    ],
)
def test_refusals(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_accepted_where_they_act():
    TokenMean("mini-batch", 4).check(RunShape(8, 8, 4))
    Balanced().check(RunShape(8, 2, 1))
