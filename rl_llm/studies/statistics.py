"""Statistics of few paired runs: tests of a difference and of its absence, and the number of seeds they need.

Decisions use Student's t on paired differences. It is valid at five seeds, where sign-flip tests cannot reach 5 %
(their smallest two-sided p-value is 2 / 2^5) and percentile bootstraps are too narrow. The null hypothesis is that the
two arms of a seed are exchangeable: differences are symmetric about 0, however skewed or heavy-tailed the arms' values
are. Errors are then at or below the nominal 5 %. Differences that are themselves skewed around a mean of 0 exceed it at
five pairs (6.5 % at skewness 1, 12 % for a shifted exponential), as with any test of a mean that has power there; look
at the interquartile mean, too. Equivalence covers observed behaviour only: an arm that ends 0.44 lower in one of ten
runs, and alike otherwise, is found equivalent within +-0.02 in 60 % of studies with five pairs, those without a
collapse. Bootstrap intervals only describe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05  # two-sided and family-wise for differences, one-sided for equivalence
POWER = 0.8
BOOTSTRAP_RESAMPLES = 2000
FEWEST_PAIRS = 3


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (low, high), None with too few seeds."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Description:
    """Summary of an arm's values over seeds; `iqm` has a percentile bootstrap interval."""

    seeds: int
    iqm: Estimate
    mean: float
    minimum: float


@dataclass(frozen=True)
class PairedTest:
    """Tests of n paired differences, each field f64[...].

    `spread` is the standard deviation (n - 1). `p_value` is two-sided for a mean of 0; `p_equivalence` belongs to the
    two one-sided tests of a mean at or beyond +-smallest.
    """

    mean: np.ndarray
    spread: np.ndarray
    p_value: np.ndarray
    p_equivalence: np.ndarray


def paired_test(differences: np.ndarray, smallest: float, noise: float = 0.0) -> PairedTest:
    """Student's t-test of differences f64[..., n] against 0 and against +-`smallest` (TOST, Schuirmann 1987).

    `p_equivalence` <= 0.05 if and only if the 90 % interval of the mean lies within +-smallest. Differences that
    agree up to `noise` (their rounding error) have no spread: p-values are then 0 or 1, the limits for small spreads.
    """
    n = differences.shape[-1]
    if n < 2:
        raise ValueError(f"{n} paired differences have no spread; a test needs two, and decides from {FEWEST_PAIRS} on")
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
    """Student's interval of the mean of differences f64[n]; `test` is their `paired_test`."""
    n = len(differences)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * float(test.spread) / np.sqrt(n)
    return float(test.mean - half), float(test.mean + half)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values f64[..., m] of a family of m along the last axis, under any dependence."""
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, axis=-1)
    steps = np.take_along_axis(p_values, order, -1) * np.arange(p_values.shape[-1], 0, -1)
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), -1)
    return adjusted


def seeds_needed(
    spread: float, smallest: float, alpha: float = ALPHA, equivalence_alpha: float = ALPHA, at_least: int = FEWEST_PAIRS
) -> int:
    """Number of pairs that gives either answer a power of 0.8, for normal differences with this `spread`.

    An effect of `smallest` must be significant at the two-sided level `alpha`, and an effect of 0 equivalent to none at
    the one-sided level `equivalence_alpha`. The observed effect does not enter: power at the observed effect only
    restates the p-value. A spread from five pairs is uncertain by a third (its standard error), hence the number of
    seeds by two thirds.
    """
    if not (spread >= 0 and smallest > 0):
        raise ValueError(f"spread is {spread} and smallest {smallest}; expected spread >= 0 and smallest > 0")
    at_least = max(at_least, FEWEST_PAIRS)
    if spread == 0:
        return at_least
    effect = smallest / spread

    def enough(n: int) -> bool:
        return (
            power_of_equivalence(effect, n, equivalence_alpha) >= POWER
            and power_of_difference(effect, n, alpha) >= POWER
        )

    # A known spread (the normal distribution) needs a few seeds less: the search starts there.
    one_sided, each_side = stats.norm.isf(1 - POWER), stats.norm.isf((1 - POWER) / 2)
    distance = max(stats.norm.isf(alpha / 2) + one_sided, stats.norm.isf(equivalence_alpha) + each_side)
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
    freedom = min(n - 1, 10**6)  # practically normal beyond, where SciPy's noncentral t is slow
    return float(stats.nct.sf(stats.t.isf(alpha / 2, freedom), freedom, effect * np.sqrt(n)))


def power_of_equivalence(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Chance that n pairs with a true mean of 0 are found equivalent within +-`effect` standard deviations.

    Given the observed spread this is a normal probability; it is averaged over quantiles of the spread's distribution.
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
    """95 % percentile interval of `statistic`, resampling the seeds of each sample f64[n, ...].

    This is the stratified bootstrap of rliable (arXiv 2108.13264), stratified by task, for the one task of a study. The
    statistic gets arrays f64[n, resamples, ...]. Every call uses the same draws, so the interval is a function of the
    samples.
    """
    noise = np.random.default_rng(0)
    drawn = (sample[noise.integers(len(sample), size=(len(sample), BOOTSTRAP_RESAMPLES))] for sample in samples)
    low, high = np.quantile(statistic(*drawn), (ALPHA / 2, 1 - ALPHA / 2), axis=0)
    return low, high


def estimate(samples: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray]) -> Estimate:
    """`statistic` of samples f64[n] with its bootstrap interval (None for one seed), independent of their order."""
    ordered = tuple(np.sort(sample) for sample in samples)
    value = float(statistic(*(sample[:, None] for sample in ordered))[0])
    if min(map(len, ordered)) < 2:
        return Estimate(value, None)
    low, high = bootstrap_interval(ordered, statistic)
    return Estimate(value, (float(low), float(high)))


def describe(values: Mapping[int, float]) -> Description:
    """Describe one arm's values by seed. Raises ValueError if there are none, or one is not finite."""
    sample = np.sort(as_array(values, "an arm"))  # so that sums do not depend on the order of seeds
    return Description(len(sample), estimate((sample,), interquartile_mean), float(sample.mean()), float(sample.min()))


def probability_of_improvement(treatment: Mapping[int, float], control: Mapping[int, float]) -> Estimate:
    """Chance that a run of the treatment is above a run of the control, with a bootstrap interval over the runs.

    All pairs of runs count; ties count half (arXiv 2108.13264, section 4.2).
    """
    return estimate((as_array(treatment, "the treatment"), as_array(control, "the control")), _improvement)


def _improvement(treatment: np.ndarray, control: np.ndarray) -> np.ndarray:
    return (np.sign(treatment[:, None] - control[None]).mean(axis=(0, 1)) + 1) / 2


def as_array(values: Mapping[int, float], name: str) -> np.ndarray:
    """The values by ascending seed, f64[n]. Raises ValueError if there are none, or one is not finite."""
    if not values:
        raise ValueError(f"{name} has no values: none of its runs has finished")
    for seed, value in values.items():
        if not np.isfinite(value):
            raise ValueError(f"{name} has {value} at seed {seed}; leave out runs without a finite value")
    return np.array([values[seed] for seed in sorted(values)], np.float64)
