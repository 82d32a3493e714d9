"""Hypotheses about the arms of a study, registered before it runs, and the verdicts on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from rl_llm.studies import statistics
from rl_llm.studies.statistics import ALPHA, FEWEST_PAIRS, Estimate, PairedTest

Direction = Literal["greater", "less", "none"]
VerdictOutcome = Literal["supported", "contradicted", "no effect", "undecided"]
ValuesByArm = Mapping[str, Mapping[int, float]]  # one metric, by arm and seed
StatesByArm = Mapping[str, Mapping[int, str]]  # digest of a run's final state, by arm and seed


@dataclass(frozen=True)
class Hypothesis:
    """A claim: the mean of `metric` over seeds is greater (or less) with arm `treatment` than with arm `control`.

    Direction `none` is a control experiment: the arms should not differ. `smallest` is the smallest effect that
    matters, in the metric's units; a difference known to lie within +-smallest counts as no effect.
    """

    claim: str
    treatment: str
    control: str
    metric: Any
    direction: Direction
    smallest: float

    def __post_init__(self) -> None:
        if not self.claim.strip():
            raise ValueError(f"claim is {self.claim!r}; state the expectation in a sentence")
        if self.treatment == self.control:
            raise ValueError(f"treatment and control are both {self.treatment!r}; compare two different arms")
        if self.direction not in get_args(Direction):
            raise ValueError(f"direction is {self.direction!r}; expected one of {', '.join(get_args(Direction))}")
        if not 0 < self.smallest < math.inf:
            raise ValueError(
                f"smallest is {self.smallest}; the smallest effect that matters must be finite and above 0"
            )


@dataclass(frozen=True)
class Verdict:
    """The verdict of a study on one hypothesis. Differences are treatment - control within a seed.

    The first rule that applies gives the outcome:

    1. The runs of each pair are bitwise the same (`identical`): `no effect`; for direction `none`, `supported`.
    2. Fewer than three pairs: `undecided`.
    3. Equivalence, by two one-sided t-tests at `level` (the interval `equivalence_interval` of the mean, 90 % for a
       level of 5 %, lies within +-smallest): `no effect`; for direction `none`, `supported`.
    4. A mean difference significant by the paired t-test, `p_adjusted` <= `level` after Holm's correction over all
       hypotheses of the study: `supported` in the claimed direction, `contradicted` against it and for direction
       `none`.
    5. Otherwise `undecided`.

    `level` is 5 % divided by the number of looks, that is judgements at different numbers of seeds: adding seeds and
    looking again gives error another chance (10 % instead of 5 % for one second look at an undivided level). Rule 4
    bounds the chance of any error in a study without effects by 5 %; equivalence is tested at 5 % per hypothesis.

    `mean` has Student's 95 % interval. `iqm` and `improvement` (probability that a treated run is above a control run)
    have bootstrap intervals; these are too narrow with few seeds and decide nothing. Fields that need more pairs than
    there are are None. `seeds_needed`, if undecided, is the number of seeds that would show either an effect of
    `smallest` or its absence with a power of 0.8; None with fewer than two pairs.
    """

    hypothesis: Hypothesis
    outcome: VerdictOutcome
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
    """Values of the seeds that both arms have, and the t-test of their differences (None with fewer than two)."""

    treatment: dict[int, float]
    control: dict[int, float]
    differences: np.ndarray
    test: PairedTest | None
    identical: bool

    @property
    def decisive_test(self) -> PairedTest | None:
        return self.test if len(self.differences) >= FEWEST_PAIRS else None


def judge(
    hypotheses: Sequence[Hypothesis],
    values: Mapping[Any, ValuesByArm],
    states: StatesByArm | None = None,
    looks: int = 1,
) -> tuple[Verdict, ...]:
    """Judge all hypotheses of a study; together they are the family of Holm's correction.

    A seed that one of the two arms lacks is left out of their comparison; an arm may have no seeds at all. A hypothesis
    without enough pairs counts in the family as not significant. Runs with equal `states` are bitwise the same. `looks`
    counts this judgement and earlier ones at other numbers of seeds.

    Raises ValueError for a duplicate hypothesis, a metric or an arm missing from `values`, or a value that is not
    finite.
    """
    if len(set(hypotheses)) < len(hypotheses):
        twice = next(item for index, item in enumerate(hypotheses) if item in hypotheses[:index])
        raise ValueError(f"the hypothesis {twice.claim!r} is given twice; remove one, as each counts in the family")
    level = ALPHA / looks
    pairs = [_pairs(hypothesis, values, states or {}) for hypothesis in hypotheses]
    adjusted = statistics.holm(np.array([float(p.decisive_test.p_value) if p.decisive_test else 1.0 for p in pairs]))
    left = level / max(int((adjusted > level).sum()), 1)  # Holm's level for the hypotheses not yet significant
    return tuple(
        _verdict(hypothesis, pair, float(p_adjusted), level, left)
        for hypothesis, pair, p_adjusted in zip(hypotheses, pairs, adjusted, strict=True)
    )


def decide_outcome(
    hypothesis: Hypothesis, mean: float, p_adjusted: float, p_equivalence: float, level: float = ALPHA
) -> VerdictOutcome:
    """Apply rules 3 to 5 of `Verdict` to a mean difference and its p-values."""
    if p_equivalence <= level:
        return "supported" if hypothesis.direction == "none" else "no effect"
    if p_adjusted > level:
        return "undecided"
    return "supported" if hypothesis.direction == ("greater" if mean > 0 else "less") else "contradicted"


def _pairs(hypothesis: Hypothesis, values: Mapping[Any, ValuesByArm], states: StatesByArm) -> _Pairs:
    if hypothesis.metric not in values:
        raise ValueError(f"{hypothesis.claim!r}: no values for its metric {hypothesis.metric!r}")
    arms = values[hypothesis.metric]
    for arm in (hypothesis.treatment, hypothesis.control):
        if arm not in arms:
            raise ValueError(f"{hypothesis.claim!r}: unknown arm {arm!r}; the arms are {', '.join(arms) or 'none'}")
    first, second = arms[hypothesis.treatment], arms[hypothesis.control]
    seeds = sorted(first.keys() & second.keys())
    treatment, control = ({seed: arm[seed] for seed in seeds} for arm in (first, second))
    if not seeds:
        return _Pairs(treatment, control, np.zeros(0), None, False)
    a, b = statistics.as_array(treatment, hypothesis.treatment), statistics.as_array(control, hypothesis.control)
    # Sorted, so that sums do not depend on the order of seeds.
    differences = np.sort(a - b)
    noise = 4 * np.finfo(np.float64).eps * max(np.abs(a).max(), np.abs(b).max())
    test = statistics.paired_test(differences, hypothesis.smallest, noise) if len(seeds) > 1 else None
    first_states, second_states = (states.get(arm, {}) for arm in (hypothesis.treatment, hypothesis.control))
    identical = all(seed in first_states and first_states[seed] == second_states.get(seed) for seed in seeds)
    return _Pairs(treatment, control, differences, test, identical)


def _verdict(hypothesis: Hypothesis, pairs: _Pairs, p_adjusted: float, level: float, left: float) -> Verdict:
    test, count = pairs.test, len(pairs.differences)
    tested = pairs.decisive_test
    outcome: VerdictOutcome = "undecided"
    reason = f"a test needs {FEWEST_PAIRS} seeds that both arms have; there are {count}"
    if tested is not None:
        mean, p_equivalence = float(tested.mean), float(tested.p_equivalence)
        outcome = decide_outcome(hypothesis, mean, p_adjusted, p_equivalence, level)
        reason = _reason(hypothesis, mean, p_adjusted, p_equivalence, level)
    if pairs.identical:
        outcome = "supported" if hypothesis.direction == "none" else "no effect"
        reason = "the runs are bitwise the same"
    needed = None
    if outcome == "undecided" and test is not None:
        needed = statistics.seeds_needed(float(test.spread), hypothesis.smallest, left, level, at_least=count + 1)
    interval = None if test is None else statistics.mean_interval(pairs.differences, test, 1 - ALPHA)
    return Verdict(
        hypothesis,
        outcome,
        reason,
        pairs=count,
        identical=pairs.identical,
        level=level,
        mean=Estimate(float(pairs.differences.mean()), interval) if count else None,
        iqm=statistics.estimate((pairs.differences,), statistics.interquartile_mean) if count else None,
        equivalence_interval=None if test is None else statistics.mean_interval(pairs.differences, test, 1 - 2 * level),
        p_value=None if tested is None else float(tested.p_value),
        p_adjusted=None if tested is None else p_adjusted,
        p_equivalence=None if tested is None else float(tested.p_equivalence),
        improvement=statistics.probability_of_improvement(pairs.treatment, pairs.control) if count else None,
        seeds_needed=needed,
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
