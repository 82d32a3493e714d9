"""Sigmoid fits of reward against compute (ScaleRL, arXiv 2510.13786, eq. 1), reported only if the data determine one.

R(C) = R0 + (A - R0) / (1 + (Cmid / C)^B): R0 is the reward before training, A the asymptote, B the efficiency (the
steepness on a logarithmic axis), Cmid the compute at half the gain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from rl_llm.studies.curves import Curve, arrays
from rl_llm.studies.statistics import ALPHA, Estimate, paired_test

FIT_RESAMPLES = 200  # one fit each
FEWEST_SEEDS = 3
FEWEST_POINTS = 4  # after the start: one more than there are parameters
WIDEST = 4.0  # ratio of the ends of an interval; a wider one leaves the parameter undetermined
PARAMETERS = ("gain", "efficiency", "midpoint")
EFFICIENCIES = (0.1, 20.0)


@dataclass(frozen=True)
class SigmoidFit:
    """A fitted sigmoid. `start` is R0, the mean of the seeds' first values; compute is in the unit of the curves.

    Intervals are 95 % bootstrap intervals over seeds and too narrow with few of them: with five, that of A covered the
    truth in 85 to 97 % of simulated studies. If the data do not determine a sigmoid, its three parameters are None and
    `undetermined` is the reason.
    """

    seeds: int
    start: float
    asymptote: Estimate | None
    efficiency: Estimate | None
    midpoint: Estimate | None
    undetermined: str | None


def sigmoid(
    compute: np.ndarray | float, start: float, asymptote: float, efficiency: float, midpoint: float
) -> np.ndarray:
    """Reward at each compute >= 0; same shape as `compute`."""
    with np.errstate(divide="ignore"):
        return start + (asymptote - start) * expit(efficiency * (np.log(compute) - np.log(midpoint)))


def fit_sigmoid(curves: Mapping[int, Curve]) -> SigmoidFit:
    """Fit one sigmoid to the curves of all seeds by least squares; a curve is (compute, reward) from compute 0 on.

    The fit is undetermined if
    - there are fewer than three seeds, or four points after the start;
    - rewards do not rise (the later half of a seed's points against its start, paired t-test);
    - rewards fall again (the last quarter of the points against each of the others, Bonferroni);
    - it ends at a bound of the search (gain A - R0 from 1/100 to 10 times the range of rewards, B from 0.1 to 20, Cmid
      from 1/10 of the least to 10 times the largest compute);
    - a power law R0 + k C^B, the limit of an infinite asymptote, is not significantly worse (paired t-test of the
      seeds' squared errors);
    - the interval of the gain, B or Cmid spans more than a factor of 4;
    - the interval of Cmid leaves the computes of the data: half the gain must have been observed.

    Raises ValueError for no curves, a malformed curve, or one that does not begin at compute 0.
    """
    if not curves:
        raise ValueError("there are no curves to fit: no run has recorded one")
    tables = [arrays(curves[seed], f"seed {seed}") for seed in sorted(curves)]
    for seed, (compute, _) in zip(sorted(curves), tables, strict=True):
        if compute[0] != 0:
            raise ValueError(
                f"seed {seed}: the first point is at compute {compute[0]:g}; expected (0, reward before training)"
            )
    tables.sort(key=lambda table: (len(table[0]), *table[0], *table[1]))  # independent of the order of seeds
    start = float(np.mean([rewards[0] for _, rewards in tables]))
    try:
        _check_tables(tables)
        return _bootstrapped(_Data.from_tables(tables), start)
    except _Undetermined as reason:
        return SigmoidFit(len(tables), start, None, None, None, str(reason))


class _Undetermined(Exception):
    """The data do not determine a sigmoid; the message says why."""


def _check_tables(tables: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Raise _Undetermined for too few seeds or points, and for rewards that do not rise or that fall again."""
    if len(tables) < FEWEST_SEEDS:
        raise _Undetermined(f"intervals need {FEWEST_SEEDS} seeds; there are {len(tables)}")
    if (fewest := min(len(compute) - 1 for compute, _ in tables)) < FEWEST_POINTS:
        raise _Undetermined(f"a seed has {fewest} points after its start; a fit needs {FEWEST_POINTS}")
    rises = np.array([rewards[-(len(rewards) // 2) :].mean() - rewards[0] for _, rewards in tables])
    noise = 1e-12 * max(float(np.abs(rewards).max()) for _, rewards in tables)  # rounding of means
    test = paired_test(np.sort(rises), smallest=1.0, noise=noise)
    if test.mean <= 0 or test.p_value > ALPHA:
        later = f"the later half is {float(test.mean):.3g} above the start (p = {float(test.p_value):.2g})"
        raise _Undetermined(f"rewards do not rise: {later}")
    *earlier, last = np.array([[part.mean() for part in np.array_split(rewards[1:], 4)] for _, rewards in tables]).T
    tests = [paired_test(np.sort(quarter - last), smallest=1.0, noise=noise) for quarter in earlier]
    if falls := [test for test in tests if test.mean > 0 and test.p_value <= ALPHA / len(tests)]:
        worst = max(falls, key=lambda test: float(test.mean))
        fall = f"{float(worst.mean):.3g} below an earlier one (p = {float(worst.p_value):.2g})"
        raise _Undetermined(f"rewards fall again: the last quarter is {fall}")


@dataclass(frozen=True)
class _Data:
    """The points after the start of all seeds, concatenated."""

    log_compute: np.ndarray  # f64[points]
    rewards: np.ndarray  # f64[points]
    seed: np.ndarray  # i[points]
    starts: np.ndarray  # f64[seeds], rewards at compute 0

    @staticmethod
    def from_tables(tables: Sequence[tuple[np.ndarray, np.ndarray]]) -> "_Data":
        return _Data(
            np.concatenate([np.log(compute[1:]) for compute, _ in tables]),
            np.concatenate([rewards[1:] for _, rewards in tables]),
            np.concatenate([np.full(len(rewards) - 1, index) for index, (_, rewards) in enumerate(tables)]),
            np.array([rewards[0] for _, rewards in tables]),
        )

    @property
    def bounds(self) -> np.ndarray:
        """Logarithms of the least and largest gain, efficiency and midpoint, f64[2, 3]."""
        low = (np.log(self.range / 100), np.log(EFFICIENCIES[0]), self.log_compute.min() - np.log(10))
        high = (np.log(self.range * 10), np.log(EFFICIENCIES[1]), self.log_compute.max() + np.log(10))
        return np.array([low, high])

    @property
    def range(self) -> float:
        """Largest minus smallest reward, > 0."""
        return float(np.ptp(np.append(self.rewards, self.starts)))


def _bootstrapped(data: _Data, start: float) -> SigmoidFit:
    seeds, bounds = len(data.starts), data.bounds
    middle = np.median(data.log_compute)
    gain = np.log(max(float(data.rewards.max() - data.starts.mean()), np.exp(bounds[0, 0])))
    guesses = [np.array([gain, log_b, m]) for log_b in (0.0, 1.0) for m in (middle, data.log_compute.min())]
    fits = [_fit(data, np.ones(seeds), guess) for guess in guesses]
    best, errors = min(fits, key=lambda fit: float(np.sum(fit[1] ** 2)))
    for name, value, least, most in zip(PARAMETERS, best, *bounds, strict=True):
        if value - least < 0.02 or most - value < 0.02:
            end = "smallest" if value - least < 0.02 else "largest"
            raise _Undetermined(f"the best fit has the {end} {name} of the search range, {np.exp(value):.3g}")
    excess = np.bincount(data.seed, _power_law_errors(data) ** 2 - errors**2)
    test = paired_test(np.sort(excess), smallest=1.0, noise=1e-15)
    if test.mean <= 0 or test.p_value > ALPHA:
        raise _Undetermined(f"a power law, which has no asymptote, fits as well (p = {float(test.p_value):.2g})")
    noise = np.random.default_rng(0)
    counts = noise.multinomial(seeds, np.full(seeds, 1 / seeds), size=FIT_RESAMPLES)
    drawn = np.stack([_fit(data, count, best)[0] for count in counts])
    low, high = np.quantile(drawn, (ALPHA / 2, 1 - ALPHA / 2), axis=0)
    for name, least, most in zip(PARAMETERS, np.exp(low), np.exp(high), strict=True):
        if most > WIDEST * least:
            raise _Undetermined(f"over bootstrap resamples the {name} is between {least:.3g} and {most:.3g}")
    first, last = data.log_compute.min(), data.log_compute.max()
    if low[2] < first or high[2] > last:
        reached = f"the midpoint is between {np.exp(low[2]):.3g} and {np.exp(high[2]):.3g}"
        raise _Undetermined(f"{reached}; the data cover {np.exp(first):.3g} to {np.exp(last):.3g}")
    asymptotes = counts @ data.starts / seeds + np.exp(drawn[:, 0])
    asymptote, efficiency, midpoint = (
        Estimate(float(value), (float(ends[0]), float(ends[1])))
        for value, ends in (
            (start + np.exp(best[0]), np.quantile(asymptotes, (ALPHA / 2, 1 - ALPHA / 2))),
            *((np.exp(best[index]), np.exp([low[index], high[index]])) for index in (1, 2)),
        )
    )
    return SigmoidFit(seeds, start, asymptote, efficiency, midpoint, undetermined=None)


def _fit(data: _Data, counts: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, float]:
    """Weighted least-squares fit; `counts` is how often the resample contains each seed.

    Returns logarithms of gain, efficiency and midpoint f64[3], and errors f64[points] in units of the range of rewards.
    """
    weights = np.sqrt(counts)[data.seed] / data.range  # makes tolerances independent of the unit of rewards
    start = counts @ data.starts / counts.sum()

    def residuals(logs: np.ndarray) -> np.ndarray:
        rise = expit(np.exp(logs[1]) * (data.log_compute - logs[2]))
        return weights * (start + np.exp(logs[0]) * rise - data.rewards)

    def jacobian(logs: np.ndarray) -> np.ndarray:
        gain, steepness = np.exp(logs[:2])
        distance = steepness * (data.log_compute - logs[2])
        rise = expit(distance)
        slope = gain * rise * (1 - rise)
        return weights[:, None] * np.stack([gain * rise, slope * distance, -slope * steepness], axis=1)

    inner = data.bounds + np.array([[1e-6], [-1e-6]])
    found = least_squares(residuals, np.clip(guess, *inner), jacobian, data.bounds)
    return found.x, found.fun


def _power_law_errors(data: _Data) -> np.ndarray:
    """Errors f64[points], as in `_fit`, of R0 + k C^B: the sigmoid's limit for an infinite asymptote."""
    start, latest = data.starts.mean(), data.log_compute.max()

    def residuals(logs: np.ndarray) -> np.ndarray:
        rise = np.exp(logs[0] + np.exp(logs[1]) * (data.log_compute - latest))
        return rise - (data.rewards - start) / data.range

    low, high = np.log(EFFICIENCIES)
    return least_squares(residuals, (0.0, 0.0), bounds=([-np.inf, low], [np.inf, high])).fun
