"""Accuracy over several samples per problem, each with a 95 % interval clustered by problem.

Every quantity is the mean over problems of one value in [0, 1] per problem, so its error comes from how the values
differ between problems; the samples of a problem are never counted as independent. Problems may have different numbers
of samples. Studies compare few runs instead of many problems: see `rl_llm.studies.statistics`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
DRAWS = 10_000  # of the bootstrap's weights, and of signs
CHUNK = 256  # problems that have their weights in memory at once

Grades = Sequence[np.ndarray]  # f[samples] of each problem, in [0, 1]; an array f[problems, samples] is one
Answers = Sequence[Sequence[Hashable | None]]  # the answer extracted from each sample; None: there was none


@dataclass(frozen=True)
class MeanEstimate:
    """A mean over `problems` problems with its 95 % interval (low, high)."""

    value: float
    low: float
    high: float
    problems: int


def average(right: Grades) -> MeanEstimate:
    """avg@k: mean grade of all k samples of a problem, averaged over problems."""
    return bounded_mean(np.array([np.mean(grades, dtype=np.float64) for grades in _checked(right)]))


def pass_at(right: Grades, k: int) -> MeanEstimate:
    """pass@k: chance that one of k samples of a problem is right (a grade of 1).

    Unbiased for any k up to the number of samples n (arXiv 2107.03374, eq. 1), without the noise of choosing k of n.
    """
    values = []
    for grades in _checked(right, k):
        wrong, samples = int((np.asarray(grades) < 1).sum()), len(grades)
        values.append(1.0 - comb(wrong, k) / comb(samples, k))  # whole numbers: exact for any number of samples
    return bounded_mean(np.array(values))


def majority_at(right: Grades, answers: Answers, k: int) -> MeanEstimate:
    """maj@k: expected grade of the most frequent answer among k samples of a problem, ties broken at random.

    The expectation is over the choice of k of the n samples and over the breaking of ties; nothing is drawn. Samples
    without an answer do not vote, and k samples without any answer are wrong.
    """
    values = [majority(grades, answer, k) for grades, answer in zip(_checked(right, k), answers, strict=True)]
    return bounded_mean(np.array(values))


def majority(right: np.ndarray, answers: Sequence[Hashable | None], k: int) -> float:
    """Expected grade of one problem's majority answer among k of its n samples (`majority_at`).

    A generating function over the distinct answers counts the subsets in which the winners have m votes each: it holds,
    by the number of samples chosen and the number of answers with m votes, the probability and the sum of the winners'
    grades. Each answer's votes are binomial with chance k / n, and the total is conditioned on k.
    """
    if len(right) != len(answers):
        raise ValueError(
            f"{len(right)} grades and {len(answers)} answers of one problem; expected one of each a sample"
        )
    n, grades = len(right), np.asarray(right, np.float64)
    members: dict[Hashable | None, list[int]] = {}
    for place, answer in enumerate(answers):
        members.setdefault(answer, []).append(place)
    silent = len(members.pop(None, ()))
    groups = [(len(places), float(grades[places].mean())) for places in members.values()]
    if n == k:  # one subset: all samples
        most = max((votes for votes, _ in groups), default=0)
        return float(np.mean([grade for votes, grade in groups if votes == most] or [0.0]))
    expected = sum(_won_with(groups, silent, k, k / n, votes) for votes in range(1, k + 1))
    return float(min(expected / stats.binom.pmf(k, n, k / n), 1.0))


def _won_with(groups: Sequence[tuple[int, float]], silent: int, k: int, chance: float, votes: int) -> float:
    """Sum over subsets of k samples, winners having `votes` votes, of probability times the winners' mean grade."""
    ties = k // votes
    if not any(size >= votes for size, _ in groups):
        return 0.0
    others = silent + sum(size for size, _ in groups if size < votes)  # cannot win, so one binomial is enough
    chosen_of_them = np.arange(min(others, k) + 1)
    probability = np.zeros((k + 1, ties + 1))  # [samples chosen, answers with `votes` votes]
    probability[: len(chosen_of_them), 0] = stats.binom.pmf(chosen_of_them, others, chance)
    won = np.zeros_like(probability)  # probability times the sum of the winners' grades
    for size, grade in groups:
        if size < votes:
            continue
        share = stats.binom.pmf(np.arange(votes + 1), size, chance)
        new, new_won = np.zeros_like(probability), np.zeros_like(won)
        for chosen in range(votes):
            new[chosen:] += share[chosen] * probability[: k + 1 - chosen]
            new_won[chosen:] += share[chosen] * won[: k + 1 - chosen]
        new[votes:, 1:] += share[votes] * probability[: k + 1 - votes, :-1]
        new_won[votes:, 1:] += share[votes] * (won + grade * probability)[: k + 1 - votes, :-1]
        probability, won = new, new_won
    return float((won[k, 1:] / np.arange(1, ties + 1)).sum())


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[MeanEstimate, float]:
    """Mean of second - first over the same problems, f64[problems] each, with its interval and p-value.

    The p-value is that of a sign-flip test: if it made no difference which of the two a value came from, a mean this
    far from 0 would be so likely.
    """
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    largest = differences_bound(differences)
    found = bounded_mean(differences, -largest, largest)
    reached = np.abs(_sign_flipped(differences)) >= abs(differences.sum()) - 1e-9
    return found, float((reached.sum() + 1) / (len(reached) + 1))


def differences_bound(differences: np.ndarray) -> np.ndarray:
    """Largest difference f64[...] that a problem not seen among f64[..., problems] is thought to have.

    Half as much again as the largest one seen, at most 1; and 1 if none was seen.
    """
    seen = np.abs(differences).max(axis=-1)
    return np.where(seen > 0, np.minimum(1.5 * seen, 1.0), 1.0)


def bounded_mean(values: np.ndarray, low: float | np.ndarray = 0.0, high: float | np.ndarray = 1.0) -> MeanEstimate:
    """Mean of independent values f64[problems] in [`low`, `high`] with its `interval`."""
    if not len(values):
        raise ValueError("there are no problems; expected at least one")
    bottom, top = interval(np.asarray(values, np.float64), low, high)
    return MeanEstimate(float(np.mean(values)), float(bottom), float(top), len(values))


def interval(
    values: np.ndarray, low: float | np.ndarray = 0.0, high: float | np.ndarray = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals f64[...] of the means of independent values f64[..., problems] in [`low`, `high`].

    A Bayesian bootstrap in which one more problem has the lowest or the highest value (Gaffke 2005). It keeps its level
    where Student's t does not: with few problems, skewed values, or all problems right. For values of 0 and 1 it is
    Clopper and Pearson's interval, up to the noise of its draws. They are fixed: the same values give the same bounds.
    """
    values = np.sort(values, axis=-1)
    noise = np.random.default_rng(0)
    unseen = noise.standard_exponential(DRAWS)
    sums, total = np.zeros((*values.shape[:-1], DRAWS)), unseen.copy()
    for start in range(0, values.shape[-1], CHUNK):
        part = values[..., start : start + CHUNK]
        weights = noise.standard_exponential((part.shape[-1], DRAWS))
        sums += part @ weights
        total += weights.sum(axis=0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.asarray(low)[..., None], np.asarray(high)[..., None]
    bottom = np.quantile((sums + low * unseen) / total, tail, axis=-1)
    return bottom, np.quantile((sums + high * unseen) / total, 1 - tail, axis=-1)


def _sign_flipped(differences: np.ndarray) -> np.ndarray:
    """Sums f64[DRAWS] of the differences with random signs."""
    noise, sums = np.random.default_rng(1), np.zeros(DRAWS)
    for start in range(0, len(differences), CHUNK):
        part = differences[start : start + CHUNK]
        sums += part @ (2.0 * noise.integers(0, 2, (len(part), DRAWS), dtype=np.int8) - 1.0)
    return sums


def _checked(right: Grades, k: int = 1) -> Grades:
    """The grades. Raises ValueError if there are none, or a problem has fewer than k samples."""
    if not len(right):
        raise ValueError("there are no problems to average over; expected at least one")
    fewest = min(map(len, right))
    if not 1 <= k <= fewest:
        raise ValueError(f"k is {k}; expected 1 to {fewest}, the fewest samples of a problem")
    return right
