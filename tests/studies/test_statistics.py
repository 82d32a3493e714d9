"""Tests, equivalence, power and intervals of few paired runs, on simulated data with known truth."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.studies.statistics import (
    ALPHA,
    bootstrap_interval,
    describe,
    holm,
    interquartile_mean,
    mean_interval,
    paired_test,
    power_of_difference,
    power_of_equivalence,
    probability_of_improvement,
    seeds_needed,
)

STUDIES = 20_000
# 5 % plus six standard errors of a rate of 5 %.
AT_MOST = ALPHA + 6 * math.sqrt(ALPHA * (1 - ALPHA) / STUDIES)

# Distributions of the values of an arm.
ARMS = {
    "normal": lambda noise, shape: noise.normal(size=shape),
    "skewed": lambda noise, shape: noise.exponential(size=shape),
    "very skewed": lambda noise, shape: noise.lognormal(size=shape),
    "heavy-tailed": lambda noise, shape: noise.standard_t(2, size=shape),
    "without a mean": lambda noise, shape: noise.standard_cauchy(size=shape),
    "found or not": lambda noise, shape: (noise.random(shape) < 0.5) + 0.01 * noise.normal(size=shape),
}


def differences(kind: str, pairs: int, family: int = 1) -> np.ndarray:
    """Differences f64[studies, family, pairs] of equal arms, all against one control."""
    noise = np.random.default_rng(pairs)
    treated = ARMS[kind](noise, (STUDIES, family, pairs))
    return treated - ARMS[kind](noise, (STUDIES, 1, pairs))


@pytest.mark.parametrize("pairs", [3, 5, 10])
@pytest.mark.parametrize("kind", ARMS)
def test_equal_arms_are_rarely_found_different(kind: str, pairs: int):
    significant = paired_test(differences(kind, pairs)[:, 0], 1.0).p_value <= ALPHA
    assert significant.mean() <= AT_MOST


@pytest.mark.parametrize("kind", ARMS)
def test_a_corrected_family_errs_as_rarely_as_one_hypothesis(kind: str):
    p_values = paired_test(differences(kind, 5, family=4), 1.0).p_value
    assert (holm(p_values).min(axis=-1) <= ALPHA).mean() <= AT_MOST
    if kind == "normal":  # without the correction it errs often, so that this could fail
        assert (p_values.min(axis=-1) <= ALPHA).mean() > 2 * ALPHA


@pytest.mark.parametrize(("gamma", "pairs", "rate"), [(4.0, 5, 0.065), (1.0, 5, 0.117), (1.0, 20, 0.082)])
def test_error_rates_of_skewed_differences_are_those_of_the_docstring(gamma, pairs, rate):
    skewed = np.random.default_rng(0).gamma(gamma, size=(STUDIES, pairs)) - gamma
    assert (paired_test(skewed, 1.0).p_value <= ALPHA).mean() == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("kind", ["normal", "skewed", "heavy-tailed"])
@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_an_effect_at_the_margin_is_rarely_found_equivalent(kind: str, spread: float):
    at_margin = 1.0 + spread * differences(kind, 5)[:, 0]
    assert (paired_test(at_margin, 1.0).p_equivalence <= ALPHA).mean() <= AT_MOST


def test_equivalence_is_found_if_the_spread_is_small():
    assert (paired_test(0.2 * differences("normal", 5)[:, 0], 1.0).p_equivalence <= ALPHA).mean() > 0.95


def test_the_t_test_matches_scipy_and_equivalence_the_interval():
    for row in differences("skewed", 5)[:50, 0]:
        test = paired_test(row, 1.5)
        assert test.p_value == pytest.approx(scipy.stats.ttest_1samp(row, 0).pvalue)
        low, high = mean_interval(row, test, 0.9)
        assert (low, high) == pytest.approx(scipy.stats.ttest_1samp(row, 0).confidence_interval(0.9))
        assert (test.p_equivalence <= 0.05) == (low >= -1.5 and high <= 1.5)


@pytest.mark.parametrize("kind", ["normal", "skewed", "heavy-tailed"])
def test_students_interval_covers_the_mean(kind: str):
    rows = 3.0 + differences(kind, 5)[:2000, 0]
    ends = [mean_interval(row, paired_test(row, 1.0), 0.95) for row in rows]
    covered = np.mean([low <= 3.0 <= high for low, high in ends])
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000) <= covered


def test_the_bootstrap_interval_covers_less_with_five_seeds_than_with_many():
    def coverage(seeds: int) -> float:
        samples = np.random.default_rng(1).normal(size=(seeds, 400))
        low, high = bootstrap_interval((samples,), interquartile_mean)
        return float(np.mean((low <= 0) & (high >= 0)))

    assert 0.91 <= coverage(40) <= 0.98
    assert 0.75 <= coverage(5) <= 0.93


@pytest.mark.parametrize("values", [[0.0] * 5, [1e-17, -2e-17, 0.0], [0.1 + 0.2 - 0.3, 0.0, 0.0]])
def test_rounding_errors_are_no_difference(values: list[float]):
    test = paired_test(np.array(values), 0.01, noise=1e-15)
    assert (float(test.mean), float(test.spread), float(test.p_value), float(test.p_equivalence)) == (0, 0, 1, 0)


def test_equal_differences_give_the_limits_of_small_spreads():
    test = paired_test(np.array([[0.1] * 3, [-0.1 + 1e-17, -0.1, -0.1]]), 0.05, noise=1e-15)
    assert test.p_value.tolist() == [0, 0]
    assert test.p_equivalence.tolist() == [1, 1]
    on_the_margin = paired_test(np.array([0.5, 0.5, 0.5]), 0.5)
    assert float(on_the_margin.p_equivalence) == 0.5
    mixed = paired_test(np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]), 0.5)
    assert mixed.p_value == pytest.approx([1.0, scipy.stats.ttest_1samp([1, 2, 3], 0).pvalue])


def test_one_pair_is_refused():
    with pytest.raises(ValueError, match="1 paired differences have no spread"):
        paired_test(np.array([1.0]), 0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_matches_its_definition(p_values: list[float]):
    adjusted = holm(np.array(p_values))
    ranked = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(ranked):
        stepped = [(len(ranked) - k) * p_values[ranked[k]] for k in range(rank + 1)]
        assert adjusted[index] == pytest.approx(min(1.0, max(stepped)))


def test_holm_on_a_known_family():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize(("spread", "alpha"), [(0.5, 0.05), (1.0, 0.05), (1.0, 0.0125), (2.0, 0.05)])
def test_seeds_needed_is_the_least_number_with_the_power(spread: float, alpha: float):
    needed = seeds_needed(spread, 1.0, alpha)

    def simulated(pairs: int) -> float:
        normal = spread * np.random.default_rng(0).normal(size=(STUDIES, pairs))
        effect, none = paired_test(1.0 + normal, 1.0), paired_test(normal, 1.0)
        found = ((effect.p_value <= alpha) & (effect.mean > 0)).mean()
        absent = (none.p_equivalence <= ALPHA).mean()
        assert found == pytest.approx(power_of_difference(1 / spread, pairs, alpha), abs=0.012)
        assert absent == pytest.approx(power_of_equivalence(1 / spread, pairs), abs=0.012)
        return float(min(found, absent))

    assert simulated(needed) >= 0.8 - 0.012
    assert simulated(needed - 1) < 0.8 + 0.012


def test_seeds_needed_is_asymptotically_normal_and_three_without_spread():
    z_sum = scipy.stats.norm.isf(0.05) + scipy.stats.norm.isf(0.1)  # both one-sided tests with a power of 0.9
    assert seeds_needed(1e4, 1.0) == pytest.approx(1e8 * z_sum**2, rel=1e-3)
    assert seeds_needed(0.0, 1.0) == 3
    assert seeds_needed(1e-9, 1.0, at_least=7) == 7
    with pytest.raises(ValueError, match="smallest 0"):
        seeds_needed(1.0, 0.0)


def test_an_arm_is_described_by_its_interquartile_mean():
    described = describe({3: 0.0, 1: 1.0, 0: 2.0, 2: 3.0, 4: 100.0})
    assert (described.seeds, described.iqm.value, described.mean, described.minimum) == (5, 2.0, 21.2, 0.0)
    low, high = described.iqm.interval
    assert 0.0 <= low < 2.0 < high <= 100.0
    assert describe({7: 0.5}).iqm.interval is None


@given(st.permutations([0.3, 0.1, 0.7, 0.4, 0.45]))
def test_the_order_of_values_does_not_matter(values: list[float]):
    assert describe(dict(enumerate(values))) == describe(dict(enumerate(sorted(values))))


@pytest.mark.parametrize(("values", "message"), [({}, "no values"), ({0: 0.1, 4: math.nan}, "nan at seed 4")])
def test_an_arm_without_values_is_refused(values: dict[int, float], message: str):
    with pytest.raises(ValueError, match=message):
        describe(values)


def test_the_probability_of_improvement_counts_pairs_of_runs():
    low, high = {0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0, 2: 4.0}
    assert probability_of_improvement(high, low).value == pytest.approx(5.5 / 6)
    assert probability_of_improvement(low, high).value == pytest.approx(0.5 / 6)
    same = probability_of_improvement(low, low)
    assert same.value == 0.5
    assert same.interval[0] <= 0.5 <= same.interval[1]
    wins = scipy.stats.mannwhitneyu(list(high.values()), list(low.values())).statistic
    assert probability_of_improvement(high, low).value == pytest.approx(wins / 6)


def test_the_interval_of_the_probability_of_improvement_covers_it():
    truth = scipy.stats.norm.cdf(0.5 / math.sqrt(2))
    noise = np.random.default_rng(2)
    covered = 0
    for _ in range(150):
        a, b = 0.5 + noise.normal(size=20), noise.normal(size=20)
        low, high = probability_of_improvement(dict(enumerate(a)), dict(enumerate(b))).interval
        covered += low <= truth <= high
    assert 0.88 <= covered / 150 <= 0.99


def test_equivalence_ignores_collapses_that_did_not_happen():
    noise = np.random.default_rng(0)
    collapsed = noise.random((4000, 5)) < 0.1
    differences = np.where(collapsed, -0.44, 0.0) + 0.003 * noise.standard_normal((4000, 5))
    test = paired_test(differences, 0.02)
    assert ((test.p_equivalence <= ALPHA) == ~collapsed.any(axis=1)).all()
    assert (test.p_equivalence <= ALPHA).mean() == pytest.approx(0.9**5, abs=0.03)
