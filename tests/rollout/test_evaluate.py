"""pass@k from n samples: the probability that k samples drawn from them include a right one."""

from itertools import combinations

import numpy as np
import pytest

from rl_llm.rollout.evaluate import pass_at_k


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_counts_the_choices_with_a_right_sample(samples: int):
    for right in range(samples + 1):
        graded = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            expected = np.mean([any(choice) for choice in combinations(graded, k)])
            assert pass_at_k(np.array([right]), samples, k) == pytest.approx(expected)


def test_pass_at_1_is_accuracy():
    right = np.array([0, 3, 8, 1])
    assert pass_at_k(right, 8, 1) == pytest.approx(right.mean() / 8)


def test_pass_at_n_is_the_share_of_problems_with_a_right_sample():
    assert pass_at_k(np.array([0, 1, 8, 0, 2]), 8, 8) == pytest.approx(3 / 5)


def test_it_is_exact_for_many_samples():
    """The products of ratios and differences of floats in other code lose digits here."""
    assert pass_at_k(np.array([1]), 4096, 64) == pytest.approx(64 / 4096, rel=1e-9)


@pytest.mark.parametrize("k", [0, 9])
def test_k_above_the_number_of_samples_is_refused(k: int):
    with pytest.raises(ValueError, match=f"pass@{k} cannot be estimated from 8 samples"):
        pass_at_k(np.array([3]), 8, k)
