"""Statistics of few paired runs: the test of a difference, of its absence, and how many seeds decide.

What decides is Student's t on paired differences. It is valid at five seeds, where sign-flip tests cannot reach 5 %
(their smallest two-sided p-value is 2 / 2^5) and percentile bootstraps are too narrow. "No difference" means that
the arms of a seed could be exchanged, so that differences are symmetric about 0, however skewed or heavy-tailed
the arms' values are; errors are then at or below the nominal 5 %. Differences that are themselves skewed around a mean
of 0 exceed it at five pairs (6.5 % at skewness 1, 12 % for a shifted exponential), as with any test of a mean that has
power there: look at the interquartile mean, too. Equivalence knows of what was seen only: an arm that ends 0.44 lower
in one of ten runs, and else alike, is found equivalent within +-0.02 in 60 % of studies with five pairs: those in which
no run collapses. Bootstrap intervals are descriptions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05  # two-sided and family-wise for differences, one-sided for equivalence
POWER = 0.8
RESAMPLES = 2000
FEWEST_PAIRS = 3


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (low, high); None where there are too few seeds for one."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Description:
    """An arm's values over seeds: interquartile mean with a percentile bootstrap interval, mean and least value."""

    seeds: int
    iqm: Estimate
    mean: float
    minimum: float


@dataclass(frozen=True)
class PairedTest:
    """What n paired differences say, each f64[...]: `spread` is their standard deviation (n - 1), `p_value` is
    two-sided for a mean of 0, `p_equivalence` is that of two one-sided tests for a mean of +-smallest or beyond.
    """

    mean: np.ndarray
    spread: np.ndarray
    p_value: np.ndarray
    p_equivalence: np.ndarray


def paired_test(differences: np.ndarray, smallest: float, noise: float = 0.0) -> PairedTest:
    """Student's t on differences f64[..., n], against 0 and against +-`smallest` (TOST, Schuirmann 1987).

    `p_equivalence` <= 0.05 if and only if the 90 % interval of the mean lies within +-smallest. Differences that
    agree up to `noise` (their rounding) have no spread: p-values are then 0 or 1, the limits for small spreads.
    """
    n = differences.shape[-1]
    if n < 2:
        raise ValueError(f"{n} paired differences have no spread: a test takes two, and decides from {FEWEST_PAIRS} on")
    mean, spread = differences.mean(axis=-1), differences.std(axis=-1, ddof=1)
    constant = np.ptp(differences, axis=-1) <= noise
    spread = np.where(constant, 0.0, spread)
    mean = np.where(constant & (np.abs(mean) <= noise), 0.0, mean)
    error = spread / np.sqrt(n)

    def upper_tail(distance: np.ndarray) -> np.ndarray:
        limit = np.where(distance == 0, 0.0, np.copysign(np.inf, distance))
        return stats.t.sf(np.divide(distance, error, out=limit, where=error > 0), n - 1)

    return PairedTest(mean, spread, 2 * upper_tail(np.abs(mean)), upper_tail(smallest - np.abs(mean)))


def mean_interval(differences: np.ndarray, test: PairedTest, confidence: float) -> tuple[float, float]:
    """Student's interval of the mean of differences f64[n] that `test` was made of."""
    n = len(differences)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * float(test.spread) / np.sqrt(n)
    return float(test.mean - half), float(test.mean + half)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values f64[..., m] of a family of m along the last axis, however they depend."""
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, axis=-1)
    steps = np.take_along_axis(p_values, order, -1) * np.arange(p_values.shape[-1], 0, -1)
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), -1)
    return adjusted


def seeds_needed(
    spread: float, smallest: float, alpha: float = ALPHA, of_equivalence: float = ALPHA, at_least: int = FEWEST_PAIRS
) -> int:
    """Pairs with which both possible answers are found with a power of 0.8, for normal differences of this `spread`:
    an effect of `smallest` is significant at the two-sided level `alpha`, an effect of 0 is equivalent to none at the
    one-sided level `of_equivalence`.

    The effect that was observed is left out: a power at the observed effect says nothing but the p-value. A spread
    from five pairs is uncertain by a third (its standard error), which makes two thirds in the number of seeds.
    """
    if not (spread >= 0 and smallest > 0):
        raise ValueError(f"spread {spread} must be >= 0 and smallest {smallest} > 0, in the metric's units")
    at_least = max(at_least, FEWEST_PAIRS)
    if spread == 0:
        return at_least
    effect = smallest / spread

    def enough(n: int) -> bool:
        return (
            power_of_equivalence(effect, n, of_equivalence) >= POWER and power_of_difference(effect, n, alpha) >= POWER
        )

    # A known spread (the normal distribution) would take some seeds fewer: the search starts there.
    one_sided, each_side = stats.norm.isf(1 - POWER), stats.norm.isf((1 - POWER) / 2)
    distance = max(stats.norm.isf(alpha / 2) + one_sided, stats.norm.isf(of_equivalence) + each_side)
    low = max(at_least, int((distance / effect) ** 2)) - 1
    step = 1
    while not enough(low + step):
        low, step = low + step, 2 * step
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def power_of_difference(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Chance that n pairs show a true mean of `effect` standard deviations, in its direction (noncentral t)."""
    freedom = min(n - 1, 10**6)  # beyond it is a normal distribution, and SciPy's noncentral t is slow
    return float(stats.nct.sf(stats.t.isf(alpha / 2, freedom), freedom, effect * np.sqrt(n)))


def power_of_equivalence(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Chance that n pairs with a true mean of 0 are found equivalent within +-`effect` standard deviations.

    Given the observed spread it is a normal probability; the mean over quantiles of the spread's distribution is taken.
    """
    freedom = min(n - 1, 10**6)
    quantiles = (np.arange(512) + 0.5) / 512
    spread = np.sqrt(stats.chi2.ppf(quantiles, freedom) / freedom)
    room = effect * np.sqrt(n) - stats.t.isf(alpha, freedom) * spread
    return float(np.mean(np.maximum(2 * stats.norm.cdf(room) - 1, 0)))


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean without the lowest and highest quarter of the first axis (floor(n / 4) values each)."""
    return stats.trim_mean(values, 0.25, axis=0)


def bootstrap_interval(
    samples: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of `statistic`, with the seeds of each sample f64[n, ...] drawn anew: the stratified
    bootstrap of rliable (arXiv 2108.13264), whose strata are tasks, for the one task of a study.

    The statistic gets arrays f64[n, resamples, ...]. The draws are the same in every call: the interval is a function
    of the samples.
    """
    noise = np.random.default_rng(0)
    drawn = (sample[noise.integers(len(sample), size=(len(sample), RESAMPLES))] for sample in samples)
    low, high = np.quantile(statistic(*drawn), (ALPHA / 2, 1 - ALPHA / 2), axis=0)
    return low, high


def estimate(samples: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray]) -> Estimate:
    """`statistic` of samples f64[n] with its bootstrap interval; from one seed, without.

    Samples are sorted first: their order, that of seeds, says nothing and changes nothing.
    """
    ordered = tuple(np.sort(sample) for sample in samples)
    value = float(statistic(*(sample[:, None] for sample in ordered))[0])
    if min(map(len, ordered)) < 2:
        return Estimate(value, None)
    low, high = bootstrap_interval(ordered, statistic)
    return Estimate(value, (float(low), float(high)))


def describe(values: Mapping[int, float]) -> Description:
    """One arm's values by seed. Raises ValueError where there are none, or one is not finite."""
    sample = np.sort(as_array(values, "an arm"))  # so that sums, too, do not depend on which seed has which value
    return Description(len(sample), estimate((sample,), interquartile_mean), float(sample.mean()), float(sample.min()))


def probability_of_improvement(treatment: Mapping[int, float], control: Mapping[int, float]) -> Estimate:
    """Chance that a run of the treatment is above a run of the control, over all pairs of runs, ties counting half
    (arXiv 2108.13264, section 4.2), with a bootstrap interval over the runs of each.
    """
    return estimate((as_array(treatment, "the treatment"), as_array(control, "the control")), _improvement)


def _improvement(treatment: np.ndarray, control: np.ndarray) -> np.ndarray:
    return (np.sign(treatment[:, None] - control[None]).mean(axis=(0, 1)) + 1) / 2


def as_array(values: Mapping[int, float], whose: str) -> np.ndarray:
    """The values by ascending seed, f64[n]; ValueError where there are none or one is not finite."""
    if not values:
        raise ValueError(f"{whose} has no values: none of its runs came to an end")
    for seed, value in values.items():
        if not np.isfinite(value):
            raise ValueError(f"{whose} has {value} at seed {seed}: leave out runs without a finite value")
    return np.array([values[seed] for seed in sorted(values)], np.float64)
