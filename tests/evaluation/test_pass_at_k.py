"""avg@k, pass@k and maj@k against enumerations, and intervals that keep their level."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.benchmarks.coverage import Case, coverage
from rl_llm.evaluation.statistics import average, bounded_mean, majority, majority_at, paired_difference, pass_at


def graded(right: int, samples: int) -> np.ndarray:
    return np.array([1.0] * right + [0.0] * (samples - right))


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_counts_the_choices_with_a_right_sample(samples: int):
    for right in range(samples + 1):
        grades = graded(right, samples)
        for k in range(1, samples + 1):
            expected = np.mean([max(choice) for choice in combinations(grades, k)])
            assert pass_at([grades], k).value == pytest.approx(expected)


def test_pass_at_1_is_the_average_also_with_different_numbers_of_samples():
    table = [graded(0, 3), graded(3, 8), graded(8, 8), graded(1, 2)]
    assert pass_at(table, 1) == average(table)
    assert average(table).value == pytest.approx((0 + 3 / 8 + 1 + 1 / 2) / 4)


def test_pass_at_n_is_the_share_of_problems_with_a_right_sample():
    assert pass_at([graded(right, 8) for right in (0, 1, 8, 0, 2)], 8).value == pytest.approx(3 / 5)


def test_pass_at_k_is_exact_for_many_samples():
    """Products of ratios and differences of floats lose digits here."""
    assert pass_at([graded(1, 4096)], 64).value == pytest.approx(64 / 4096, rel=1e-9)


def test_a_partly_right_sample_does_not_pass():
    assert pass_at([np.array([0.5, 0.9])], 2).value == 0
    assert average([np.array([0.5, 0.9])]).value == pytest.approx(0.7)


@pytest.mark.parametrize("k", [0, 5])
def test_k_above_the_fewest_samples_of_a_problem_is_refused(k: int):
    with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 4, the fewest samples of a problem"):
        pass_at([graded(3, 8), graded(1, 4)], k)


def test_no_problems_are_refused():
    with pytest.raises(ValueError, match="there are no problems"):
        average([])


def enumerated(grades: list[int], answers: list[int | None], k: int) -> float:
    """Expected grade over all choices of k samples; tied answers share, and so do the samples of an answer."""
    found = []
    for chosen in combinations(range(len(answers)), k):
        votes = [answers[place] for place in chosen if answers[place] is not None]
        most = max(map(votes.count, votes), default=0)
        winners = {answer for answer in votes if votes.count(answer) == most}
        of = [np.mean([grades[place] for place in chosen if answers[place] == answer]) for answer in winners]
        found.append(np.mean(of) if of else 0.0)
    return float(np.mean(found))


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([None, 1, 2, 3])), min_size=1, max_size=7), st.data())
def test_maj_at_k_is_the_expectation_over_choices_and_ties(samples: list[tuple[int, int | None]], data: st.DataObject):
    k = data.draw(st.integers(1, len(samples)))
    grades, answers = [grade for grade, _ in samples], [answer for _, answer in samples]
    assert majority(np.array(grades), answers, k) == pytest.approx(enumerated(grades, answers, k), abs=1e-9)


def test_maj_at_k_with_many_samples_approaches_the_likeliest_answer():
    answers = ["a"] * 250 + ["b"] * 150 + [f"other {n}" for n in range(100)]
    right = np.array([answer == "a" for answer in answers], np.float64)
    assert majority(right, answers, 1) == pytest.approx(0.5)
    assert 0.8 < majority(right, answers, 32) < majority(right, answers, 128) <= 1.0


def test_maj_at_k_needs_an_answer_of_every_sample():
    with pytest.raises(ValueError, match="2 grades and 1 answers"):
        majority_at([np.ones(2)], [["a"]], 1)


@pytest.mark.parametrize(("right", "problems"), [(0, 30), (3, 30), (250, 500), (100, 100)])
def test_the_interval_of_single_samples_is_that_of_clopper_and_pearson(right: int, problems: int):
    found = average([graded(1, 1)] * right + [graded(0, 1)] * (problems - right))
    exact = stats.binomtest(right, problems).proportion_ci(0.95)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_samples_of_one_problem_do_not_narrow_the_interval():
    once, often = ([graded(size, size), graded(0, size)] * 20 for size in (1, 16))
    assert average(once) == average(often)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_interval_holds_the_mean_does_not_depend_on_order_and_stays_in_bounds(values: list[float]):
    found = bounded_mean(np.array(values))
    assert 0 <= found.low <= found.value + 1e-9
    assert found.value <= found.high + 1e-9
    assert found.high <= 1
    again = bounded_mean(np.array(values[::-1]))
    assert (again.low, again.high) == (found.low, found.high)


def test_a_paired_difference_is_narrower_than_that_of_two_separate_means():
    noise = np.random.default_rng(0)
    difficulty = noise.beta(0.5, 0.5, 200)
    first, second = noise.binomial(8, difficulty) / 8, noise.binomial(8, np.minimum(difficulty + 0.05, 1)) / 8
    found, p_value = paired_difference(first, second)
    separate = np.hypot(*(np.diff([bounded_mean(one).low, bounded_mean(one).high]) for one in (first, second)))
    assert found.high - found.low < separate[0] / 2
    assert found.low > 0
    assert p_value < 0.01


def test_equal_evaluations_differ_by_nothing():
    same = np.array([0.0, 0.5, 1.0] * 20)
    found, p_value = paired_difference(same, same)
    assert found.value == 0
    assert found.low < 0 < found.high
    assert p_value == 1


@pytest.mark.parametrize(
    "case",
    [
        Case("avg", problems=30, samples=16, mean=0.05, spread=0.3),
        Case("avg", problems=60, samples=1, mean=0.95, spread=1.0),
        Case("pass", problems=30, samples=8, mean=0.7, spread=4.0),
        Case("maj", problems=30, samples=8, mean=0.3, spread=1.0),
        Case("difference", problems=30, samples=16, mean=0.9, spread=0.3),
    ],
    ids=str,
)
def test_95_percent_intervals_cover_at_least_93_percent(case: Case):
    assert coverage(case, repeats=400, seed=0).share >= 0.93
