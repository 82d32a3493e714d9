"""Claims about the arms of a study, written down before it runs, and the verdicts on them afterwards."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from rl_llm.studies.statistics import (
    ALPHA,
    FEWEST_PAIRS,
    Estimate,
    PairedTest,
    as_array,
    estimate,
    holm,
    interquartile_mean,
    mean_interval,
    paired_test,
    probability_of_improvement,
    seeds_needed,
)

Direction = Literal["greater", "less", "none"]
Outcome = Literal["supported", "contradicted", "no effect", "undecided"]
Values = Mapping[str, Mapping[int, float]]  # of one metric, by arm and seed
States = Mapping[str, Mapping[int, str]]  # what names the whole outcome of a run, by arm and seed


@dataclass(frozen=True)
class Hypothesis:
    """A claim in one sentence: with `treatment`, `metric` is greater or less than with `control`, in the mean over
    seeds. Direction `none` is a control experiment: the arms should not differ.

    `smallest` is the smallest effect that matters, in the metric's units: a difference known to be within +-smallest
    counts as no effect. `metric` is whatever the study reads values by.
    """

    claim: str
    treatment: str
    control: str
    metric: Any
    direction: Direction
    smallest: float

    def __post_init__(self) -> None:
        if not self.claim.strip():
            raise ValueError(f"claim is {self.claim!r}: say in a sentence what is expected")
        if self.treatment == self.control:
            raise ValueError(f"treatment and control are both {self.treatment!r}: compare two arms")
        if self.direction not in get_args(Direction):
            raise ValueError(f"direction is {self.direction!r}: it is one of {', '.join(get_args(Direction))}")
        if not 0 < self.smallest < math.inf:
            raise ValueError(f"smallest is {self.smallest}: the smallest effect that matters is above 0 and finite")


@dataclass(frozen=True)
class Verdict:
    """What a study says about one of its hypotheses. Differences are treatment - control within a seed.

    The first rule that fits gives the outcome:

    1. The runs of each pair are bitwise the same (`identical`): `no effect`; for direction `none`, `supported`.
    2. Fewer than three pairs: `undecided`.
    3. Equivalence, by two one-sided t-tests at `level` (the interval `equivalence_interval` of the mean, 90 % for a
       level of 5 %, lies within +-smallest): `no effect`; for direction `none`, `supported`.
    4. A mean difference significant by the paired t-test, `p_adjusted` <= `level` after Holm's correction over all
       hypotheses judged together: `supported` in the claimed direction, `contradicted` against it and for direction
       `none`.
    5. Else `undecided`.

    `level` is 5 %, divided by how often the study was judged with other numbers of seeds: who adds seeds to what is
    undecided, and looks again, has more chances to be wrong (without that 10 % instead of 5 % for one second look).
    Under rule 4 the chance of any error in a study without effects is 5 %; equivalence is at 5 % per hypothesis. `mean`
    has Student's 95 % interval, `iqm` and `improvement` (probability that a treated run is above a run of the control)
    have bootstrap intervals, which are too narrow at few seeds and decide nothing. What takes more pairs than there
    are is None. `seeds_needed`, where undecided, would show either an effect of `smallest` or its absence with a
    power of 0.8; None where fewer than two pairs show no spread.
    """

    hypothesis: Hypothesis
    outcome: Outcome
    reason: str
    pairs: int
    identical: bool
    level: float
    mean: Estimate | None
    iqm: Estimate | None
    equivalence_interval: tuple[float, float] | None
    p_value: float | None
    p_adjusted: float | None
    p_equivalence: float | None
    improvement: Estimate | None
    seeds_needed: int | None


@dataclass(frozen=True)
class _Pairs:
    """The seeds that both arms of a hypothesis have, and the test of their differences where there are enough."""

    treatment: dict[int, float]
    control: dict[int, float]
    differences: np.ndarray
    test: PairedTest | None
    identical: bool

    @property
    def decisive(self) -> bool:
        return len(self.differences) >= FEWEST_PAIRS


def judge(
    hypotheses: Sequence[Hypothesis], values: Mapping[Any, Values], states: States | None = None, looks: int = 1
) -> tuple[Verdict, ...]:
    """A verdict for each hypothesis of a study, which are the family of Holm's correction.

    `values` are by metric, arm and seed. A seed that one of two arms lacks is left out of their comparison, and an arm
    may have no seeds at all; a hypothesis without enough pairs counts in the family as one that is not significant.
    Runs with the same `states` are bitwise the same. `looks` counts this judgement and those at other numbers of seeds.

    Raises ValueError for a hypothesis given twice, a metric or an arm that `values` lack, or a value not finite.
    """
    if len(set(hypotheses)) < len(hypotheses):
        twice = next(item for index, item in enumerate(hypotheses) if item in hypotheses[:index])
        raise ValueError(f"the hypothesis {twice.claim!r} is given twice: each counts once in the family")
    level = ALPHA / looks
    pairs = [_pairs(hypothesis, values, states or {}) for hypothesis in hypotheses]
    adjusted = holm(np.array([float(p.test.p_value) if p.test and p.decisive else 1.0 for p in pairs]))
    left = level / max(int((adjusted > level).sum()), 1)  # what Holm's correction leaves to those not yet significant
    return tuple(
        _verdict(hypothesis, pair, float(p_adjusted), level, left)
        for hypothesis, pair, p_adjusted in zip(hypotheses, pairs, adjusted, strict=True)
    )


def outcome_of(
    hypothesis: Hypothesis, mean: float, p_adjusted: float, p_equivalence: float, level: float = ALPHA
) -> Outcome:
    """Rules 3 to 5 of `Verdict`, for a mean difference and its p-values."""
    if p_equivalence <= level:
        return "supported" if hypothesis.direction == "none" else "no effect"
    if p_adjusted > level:
        return "undecided"
    return "supported" if hypothesis.direction == ("greater" if mean > 0 else "less") else "contradicted"


def _pairs(hypothesis: Hypothesis, values: Mapping[Any, Values], states: States) -> _Pairs:
    if hypothesis.metric not in values:
        raise ValueError(f"{hypothesis.claim!r}: there are no values of its metric {hypothesis.metric!r}")
    arms = values[hypothesis.metric]
    for arm in (hypothesis.treatment, hypothesis.control):
        if arm not in arms:
            raise ValueError(f"{hypothesis.claim!r}: there is no arm {arm!r}; there are {', '.join(arms) or 'none'}")
    first, second = arms[hypothesis.treatment], arms[hypothesis.control]
    seeds = sorted(first.keys() & second.keys())
    treatment, control = ({seed: arm[seed] for seed in seeds} for arm in (first, second))
    if not seeds:
        return _Pairs(treatment, control, np.zeros(0), None, False)
    a, b = as_array(treatment, hypothesis.treatment), as_array(control, hypothesis.control)
    # The same multiset of differences gives the same sums, whichever seeds they belong to.
    differences = np.sort(a - b)
    noise = 4 * np.finfo(np.float64).eps * max(np.abs(a).max(), np.abs(b).max())
    test = paired_test(differences, hypothesis.smallest, noise) if len(seeds) > 1 else None
    first_states, second_states = (states.get(arm, {}) for arm in (hypothesis.treatment, hypothesis.control))
    identical = all(seed in first_states and first_states[seed] == second_states.get(seed) for seed in seeds)
    return _Pairs(treatment, control, differences, test, identical)


def _verdict(hypothesis: Hypothesis, pairs: _Pairs, p_adjusted: float, level: float, left: float) -> Verdict:
    test, count = pairs.test, len(pairs.differences)
    verdict = _described(hypothesis, pairs, level)
    if test is not None and pairs.decisive:
        p_equivalence = float(test.p_equivalence)
        verdict = dataclasses.replace(
            verdict,
            outcome=outcome_of(hypothesis, float(test.mean), p_adjusted, p_equivalence, level),
            reason=_reason(hypothesis, float(test.mean), p_adjusted, p_equivalence, level),
            p_value=float(test.p_value),
            p_adjusted=p_adjusted,
            p_equivalence=p_equivalence,
        )
    if pairs.identical:
        outcome: Outcome = "supported" if hypothesis.direction == "none" else "no effect"
        return dataclasses.replace(verdict, outcome=outcome, reason="the runs are bitwise the same")
    if verdict.outcome == "undecided" and test is not None:
        needed = seeds_needed(float(test.spread), hypothesis.smallest, left, level, at_least=count + 1)
        return dataclasses.replace(verdict, seeds_needed=needed)
    return verdict


def _described(hypothesis: Hypothesis, pairs: _Pairs, level: float) -> Verdict:
    """A verdict without a test: what there is to say about any number of pairs."""
    test, count = pairs.test, len(pairs.differences)
    interval, equivalence_interval = None, None
    if test is not None:
        interval = mean_interval(pairs.differences, test, 1 - ALPHA)
        equivalence_interval = mean_interval(pairs.differences, test, 1 - 2 * level)
    return Verdict(
        hypothesis,
        outcome="undecided",
        reason=f"a test takes {FEWEST_PAIRS} seeds that have both arms, and there are {count}",
        pairs=count,
        identical=pairs.identical,
        level=level,
        mean=Estimate(float(pairs.differences.mean()), interval) if count else None,
        iqm=estimate((pairs.differences,), interquartile_mean) if count else None,
        equivalence_interval=equivalence_interval,
        p_value=None,
        p_adjusted=None,
        p_equivalence=None,
        improvement=probability_of_improvement(pairs.treatment, pairs.control) if count else None,
        seeds_needed=None,
    )


def _reason(hypothesis: Hypothesis, mean: float, p_adjusted: float, p_equivalence: float, level: float) -> str:
    if p_equivalence <= level:
        share = f"{100 * (1 - 2 * level):.3g} %"
        return f"the {share} interval of the mean difference lies within +-{hypothesis.smallest:g}"
    if p_adjusted <= level:
        return f"the mean difference {mean:.3g} is significant (adjusted p = {p_adjusted:.2g})"
    return (
        f"the mean difference is neither significant (adjusted p = {p_adjusted:.2g}) "
        f"nor surely within +-{hypothesis.smallest:g}"
    )
