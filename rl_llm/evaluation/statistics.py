"""Accuracy over several samples per problem, each with a 95 % interval clustered by problem.

Every quantity is the mean over problems of one value in [0, 1] per problem, so its error comes from how the values
differ between problems; the samples of a problem are never counted as independent. Problems may have different numbers
of samples. Studies compare few runs instead of many problems: see `rl_llm.studies.statistics`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
DRAWS = 4000  # of the bootstrap's weights

Grades = Sequence[np.ndarray]  # f[samples] of each problem, in [0, 1]; an array f[problems, samples] is one
Answers = Sequence[Sequence[Hashable | None]]  # the answer extracted from each sample; None: there was none


@dataclass(frozen=True)
class Estimate:
    """A mean over `problems` problems with its 95 % interval (low, high)."""

    value: float
    low: float
    high: float
    problems: int


def average(right: Grades) -> Estimate:
    """avg@k: mean grade of all k samples of a problem, averaged over problems."""
    return bounded_mean(np.array([np.mean(grades, dtype=np.float64) for grades in _checked(right)]))


def pass_at(right: Grades, k: int) -> Estimate:
    """pass@k: chance that one of k samples of a problem is right (a grade of 1).

    Unbiased for any k up to the number of samples n (arXiv 2107.03374, eq. 1), without the noise of choosing k of n.
    """
    values = []
    for grades in _checked(right, k):
        wrong, samples = int((np.asarray(grades) < 1).sum()), len(grades)
        values.append(1.0 - comb(wrong, k) / comb(samples, k))  # whole numbers: exact for any number of samples
    return bounded_mean(np.array(values))


def majority_at(right: Grades, answers: Answers, k: int) -> Estimate:
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
    probability = np.zeros((k + 1, ties + 1))  # [samples chosen, answers with `votes` votes]
    probability[: min(silent, k) + 1, 0] = stats.binom.pmf(np.arange(min(silent, k) + 1), silent, chance)
    won = np.zeros_like(probability)  # probability times the sum of the winners' grades
    for size, grade in groups:
        share = stats.binom.pmf(np.arange(votes + 1), size, chance)
        new, new_won = np.zeros_like(probability), np.zeros_like(won)
        for chosen in range(min(votes - 1, size) + 1):
            new[chosen:] += share[chosen] * probability[: k + 1 - chosen]
            new_won[chosen:] += share[chosen] * won[: k + 1 - chosen]
        if size >= votes:
            new[votes:, 1:] += share[votes] * probability[: k + 1 - votes, :-1]
            new_won[votes:, 1:] += share[votes] * (won + grade * probability)[: k + 1 - votes, :-1]
        probability, won = new, new_won
    return float((won[k, 1:] / np.arange(1, ties + 1)).sum())


def bounded_mean(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> Estimate:
    """Mean of independent values f64[problems] in [`low`, `high`] with its 95 % interval.

    A Bayesian bootstrap in which one more problem might have the lowest or the highest value (Gaffke 2005): it keeps
    its level for skewed values, and where all problems are alike (all right, say), Student's t does not. For values 0
    and 1 it nearly is the interval of Clopper and Pearson. Same values, same interval.
    """
    if not len(values):
        raise ValueError("there are no problems; expected at least one")
    values = np.sort(np.asarray(values, np.float64))
    weights, unseen = _weights(len(values))
    sums, totals = values @ weights, weights.sum(axis=0) + unseen
    tail = (1 - CONFIDENCE) / 2
    bottom = np.quantile((sums + low * unseen) / totals, tail)
    top = np.quantile((sums + high * unseen) / totals, 1 - tail)
    return Estimate(float(values.mean()), float(bottom), float(top), len(values))


@cache
def _weights(problems: int) -> tuple[np.ndarray, np.ndarray]:
    """Exponential weights f64[problems, draws] of the problems and f64[draws] of one that was not seen."""
    noise = np.random.default_rng(0)
    return noise.standard_exponential((problems, DRAWS)), noise.standard_exponential(DRAWS)


def _checked(right: Grades, k: int = 1) -> Grades:
    """The grades. Raises ValueError if there are none, or a problem has fewer than k samples."""
    if not len(right):
        raise ValueError("there are no problems to average over; expected at least one")
    fewest = min(map(len, right))
    if not 1 <= k <= fewest:
        raise ValueError(f"k is {k}; expected 1 to {fewest}, the fewest samples of a problem")
    return right
