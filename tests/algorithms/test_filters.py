"""Filters on hand-made cases: kept rows and counted rewards."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from peers.case import batch

from rl_llm.algorithms import RunShape
from rl_llm.algorithms.advantage import Normalize
from rl_llm.algorithms.filters import DifficultyWindow, Overlong, RewardAtLeast, ZeroVariance, apply_filters
from rl_llm.types import Batch

REWARDS = np.array([[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]], np.float32)
TRUNCATED = np.arange(16) % 5 == 0

apply = jax.jit(apply_filters, static_argnums=0)


def of() -> Batch:
    return batch(np.ones((16, 2)), 4, reward=REWARDS.reshape(-1), truncated=TRUNCATED)


@pytest.mark.parametrize(
    ("component", "kept"),
    [
        (RewardAtLeast(), REWARDS == 1),
        (RewardAtLeast(-1.0), np.ones((4, 4))),
        (Overlong(), ~TRUNCATED.reshape(4, 4)),
        (ZeroVariance(), [[0] * 4, [1] * 4, [0] * 4, [1] * 4]),
        (DifficultyWindow(0.25, 0.7), [[0] * 4, [1] * 4, [0] * 4, [0] * 4]),
        (DifficultyWindow(0.25, 0.75), [[0] * 4, [1] * 4, [0] * 4, [1] * 4]),
        (DifficultyWindow(0.0, 0.9), [[0] * 4, [1] * 4, [1] * 4, [1] * 4]),
        (DifficultyWindow(0.1, 1.0), [[1] * 4, [1] * 4, [0] * 4, [1] * 4]),
    ],
    ids=str,
)
@pytest.mark.parametrize("counts", [True, False])
def test_kept_and_counted_rows(component, kept, counts: bool):
    filtered = apply((replace(component, counts=counts),), of())
    np.testing.assert_array_equal(filtered.kept, np.array(kept).reshape(-1))
    if counts:
        assert filtered.counted is None
    else:
        np.testing.assert_array_equal(filtered.counted, filtered.kept)


def test_a_row_must_pass_every_filter_and_counts_unless_dropped_by_a_filter_with_counts_false():
    filtered = apply((ZeroVariance(), Overlong(counts=False), RewardAtLeast(1.0, counts=False)), of())
    right, mixed = REWARDS.reshape(-1) == 1, np.repeat([False, True, False, True], 4)
    np.testing.assert_array_equal(filtered.kept, mixed & ~TRUNCATED & right)
    np.testing.assert_array_equal(filtered.counted, ~TRUNCATED & right)


def test_without_filters_nothing_changes():
    filtered = apply((), of())
    assert filtered.counted is None
    assert np.asarray(filtered.kept).all()


def test_counting_a_dropped_reward_changes_the_other_advantages():
    component, seen = Normalize(mean="batch", std="none"), {}
    for counts in (True, False):
        filtered = apply((Overlong(counts=counts),), of())
        seen[counts] = np.asarray(component(filtered))[~TRUNCATED, 0]
    rewards = REWARDS.reshape(-1)
    np.testing.assert_allclose(seen[True], rewards[~TRUNCATED] - rewards.mean(), atol=1e-6)
    np.testing.assert_allclose(seen[False], rewards[~TRUNCATED] - rewards[~TRUNCATED].mean(), atol=1e-6)


def test_impossible_filters_are_refused():
    with pytest.raises(ValueError, match="ZeroVariance with responses_per_prompt=1 drops every group"):
        ZeroVariance().check(RunShape(8, 1, 1))
    ZeroVariance().check(RunShape(8, 2, 1))
    with pytest.raises(ValueError, match=r"low <= high, not low=0.9, high=0.1"):
        DifficultyWindow(0.9, 0.1)
