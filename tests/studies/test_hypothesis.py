"""Hypotheses, and verdicts that follow their rules."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.config import fingerprint, to_json
from rl_llm.studies.hypothesis import Hypothesis, Verdict, decide_outcome, judge
from rl_llm.studies.statistics import ALPHA, holm, paired_test, seeds_needed

OPPOSITE = {"supported": "contradicted", "contradicted": "supported"}


@dataclass(frozen=True)
class Accuracy:
    split: str = "test"


BETTER = Hypothesis("The trick helps.", "trick", "plain", Accuracy(), "greater", 0.02)
SAME = replace(BETTER, direction="none")


def arms(differences: list[float], base: float = 0.5) -> dict[str, dict[int, float]]:
    """Values with these differences from `base`; multiples of 1/1024 are exact."""
    return {
        "trick": {seed: base + difference for seed, difference in enumerate(differences)},
        "plain": dict.fromkeys(range(len(differences)), base),
    }


def verdict(hypothesis: Hypothesis, values: dict[str, dict[int, float]]) -> Verdict:
    (only,) = judge([hypothesis], {Accuracy(): values})
    return only


@pytest.mark.parametrize(
    ("differences", "greater", "less", "none"),
    [
        ([0.10, 0.12, 0.09, 0.11, 0.10], "supported", "contradicted", "contradicted"),
        ([-0.10, -0.12, -0.09, -0.11, -0.10], "contradicted", "supported", "contradicted"),
        ([0.001, -0.002, 0.003, 0.001, 0.0], "no effect", "no effect", "supported"),
        ([0.010, 0.011, 0.009, 0.010, 0.010], "no effect", "no effect", "supported"),  # significant, and too small
        ([0.2, -0.2, 0.1, -0.1, 0.1], "undecided", "undecided", "undecided"),
        ([0.0] * 5, "no effect", "no effect", "supported"),
        ([0.0], "undecided", "undecided", "undecided"),
        ([0.1, 0.1], "undecided", "undecided", "undecided"),
        ([0.1], "undecided", "undecided", "undecided"),
        ([], "undecided", "undecided", "undecided"),
        ([0.125] * 3, "supported", "contradicted", "contradicted"),
        ([0.1] * 5, "supported", "contradicted", "contradicted"),
    ],
)
def test_the_outcome_rules(differences: list[float], greater: str, less: str, none: str):
    found = [
        verdict(replace(BETTER, direction=direction), arms(differences)) for direction in ("greater", "less", "none")
    ]
    assert [one.outcome for one in found] == [greater, less, none]
    assert {one.pairs for one in found} == {len(differences)}
    assert not any(one.identical for one in found)
    assert {one.seeds_needed is None for one in found} == {greater != "undecided" or len(differences) < 2}


@pytest.mark.parametrize(("direction", "outcome"), [("greater", "no effect"), ("none", "supported")])
def test_one_bitwise_equal_pair_decides(direction: str, outcome: str):
    hypothesis, values = replace(BETTER, direction=direction), {Accuracy(): arms([0.0])}
    (same,) = judge([hypothesis], values, {"trick": {0: "cafe"}, "plain": {0: "cafe"}})
    (other,) = judge([hypothesis], values, {"trick": {0: "cafe"}, "plain": {0: "beef"}})
    assert (same.outcome, same.identical) == (outcome, True)
    assert (other.outcome, other.identical) == ("undecided", False)


def test_looking_several_times_divides_the_level():
    values = {Accuracy(): arms([0.10, 0.12, -0.01, 0.11, 0.05])}
    once, twice = (judge([BETTER], values, looks=looks)[0] for looks in (1, 3))
    assert 0.05 / 3 < once.p_adjusted < 0.05
    assert (once.outcome, once.level) == ("supported", 0.05)
    assert (twice.outcome, twice.level) == ("undecided", 0.05 / 3)
    assert twice.equivalence_interval[0] < once.equivalence_interval[0]


def test_seeds_needed_uses_the_remaining_level():
    differences = [0.05, -0.05, 0.03, -0.03, 0.03]
    spread = float(np.std(differences, ddof=1))
    once, twice = (judge([BETTER], {Accuracy(): arms(differences)}, looks=looks)[0] for looks in (1, 2))
    assert once.seeds_needed == seeds_needed(spread, 0.02)
    assert twice.seeds_needed == seeds_needed(spread, 0.02, 0.025, 0.025) > seeds_needed(spread, 0.02, 0.025)


def test_too_few_pairs_have_a_reason_and_no_p_values():
    two = verdict(BETTER, arms([0.1, 0.12]))
    assert "2" in two.reason
    assert two.p_value is two.p_adjusted is two.p_equivalence is None
    assert two.mean.interval is not None
    assert two.seeds_needed >= 3
    assert verdict(BETTER, arms([0.1])).mean.interval is None
    assert verdict(BETTER, arms([])).mean is None


def test_pairs_are_the_common_seeds_of_both_arms():
    values = {"trick": {0: 0.6, 1: 0.7, 2: 0.9, 8: 0.0}, "plain": {9: 1.0, 2: 0.5, 1: 0.4, 0: 0.25}}
    found = verdict(BETTER, values)
    assert found.pairs == 3
    assert found.mean.value == pytest.approx((0.35 + 0.3 + 0.4) / 3)
    assert found.improvement.value == 1.0


def test_a_verdict_estimates_mean_iqm_and_improvement():
    found = verdict(BETTER, arms([0.1, 0.2, 0.3, 0.4, 2.0]))
    assert (found.mean.value, found.iqm.value) == pytest.approx((0.6, 0.3))
    low, high = found.mean.interval
    inner_low, inner_high = found.equivalence_interval
    assert low < inner_low < found.mean.value < inner_high < high
    assert found.iqm.interval[0] < 0.3 < found.iqm.interval[1]
    assert found.improvement.value == 1.0


def test_a_family_is_judged_together():
    """p = 0.03 is significant alone but not as one of two, and a hypothesis without runs counts."""
    weak = arms([0.05, 0.2, 0.1, 0.02, 0.22])
    other = replace(BETTER, claim="Another trick helps.", treatment="other")
    alone = verdict(BETTER, weak)
    assert alone.outcome == "supported"
    assert ALPHA / 2 < alone.p_value < ALPHA
    both = judge([BETTER, other], {Accuracy(): {**weak, "other": {}}})
    assert [one.outcome for one in both] == ["undecided", "undecided"]
    assert both[0].p_adjusted == pytest.approx(2 * alone.p_value)
    # If the other one is significant, Holm's correction leaves the whole level to this one.
    strong = judge([BETTER, other], {Accuracy(): {**weak, "other": arms([0.3, 0.31, 0.32, 0.3, 0.3])["trick"]}})
    assert [one.outcome for one in strong] == ["supported", "supported"]


def test_a_larger_family_needs_more_seeds():
    values = arms([0.2, -0.2, 0.1, -0.1, 0.1])
    family = [replace(BETTER, claim=f"{index}") for index in range(8)]
    assert judge(family, {Accuracy(): values})[0].seeds_needed > verdict(BETTER, values).seeds_needed > 5


def test_judge_rarely_claims_effects_in_families_without_any():
    """Simulates `judge` with three arms against one control, skewed values and every direction."""
    noise = np.random.default_rng(0)
    family = [
        replace(BETTER, treatment=f"arm {index}", direction=direction, smallest=0.01)
        for index, direction in enumerate(("greater", "less", "none"))
    ]
    wrong = 0
    for values in noise.exponential(size=(150, 4, 4)):
        table = {
            arm: dict(enumerate(row)) for arm, row in zip(("plain", "arm 0", "arm 1", "arm 2"), values, strict=True)
        }
        wrong += any(one.outcome not in ("no effect", "undecided") for one in judge(family, {Accuracy(): table}))
    assert wrong / 150 <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 150)


@pytest.mark.parametrize("kind", ["normal", "lognormal", "standard_cauchy"])
def test_the_rules_rarely_claim_an_effect_without_one(kind: str):
    noise = np.random.default_rng(1)
    first, second = (getattr(noise, kind)(size=(4000, 3, 5)) for _ in range(2))
    test = paired_test(first - second, 0.01)
    rows = zip(test.mean, holm(test.p_value), test.p_equivalence, strict=True)
    claimed = [
        any(decide_outcome(BETTER, *one) in ("supported", "contradicted") for one in zip(*row, strict=True))
        for row in rows
    ]
    assert np.mean(claimed) <= ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / 4000)


EIGHTHS = st.lists(st.integers(-200, 200), min_size=3, max_size=6).map(lambda whole: [x / 1024 for x in whole])
SHARED = [0.5, 0.25, 0.75, 0.375, 0.625, 0.125]


@given(EIGHTHS)
def test_swapped_arms_swap_the_verdict(differences: list[float]):
    values = arms(differences)
    found = verdict(BETTER, values)
    swapped = verdict(replace(BETTER, treatment="plain", control="trick"), values)
    assert swapped.outcome == OPPOSITE.get(found.outcome, found.outcome)
    assert (swapped.mean.value, swapped.iqm.value) == pytest.approx((-found.mean.value, -found.iqm.value), abs=1e-12)
    assert swapped.mean.interval == pytest.approx([-x for x in reversed(found.mean.interval)], abs=1e-12)
    assert swapped.p_value == pytest.approx(found.p_value)
    assert swapped.improvement.value == pytest.approx(1 - found.improvement.value)
    assert swapped.seeds_needed == found.seeds_needed
    turned = verdict(replace(BETTER, direction="less"), values)
    assert turned.outcome == swapped.outcome
    none = verdict(SAME, values).outcome
    assert none == verdict(replace(SAME, treatment="plain", control="trick"), values).outcome


@given(EIGHTHS, st.integers(-8, 8))
def test_a_common_shift_of_both_arms_changes_nothing(differences: list[float], whole: int):
    values = arms(differences)
    moved = {arm: {seed: x + whole + SHARED[seed] for seed, x in row.items()} for arm, row in values.items()}
    first, second = verdict(BETTER, values), verdict(BETTER, moved)
    assert replace(first, improvement=None) == replace(second, improvement=None)
    by_seed_alike = {arm: {seed: x + whole for seed, x in row.items()} for arm, row in values.items()}
    assert verdict(BETTER, by_seed_alike) == first


@given(EIGHTHS, st.randoms())
def test_the_order_of_seeds_does_not_matter(differences: list[float], random):
    values = arms(differences)
    seeds = list(range(len(differences)))
    random.shuffle(seeds)
    reordered = {arm: {seed: row[seed] for seed in seeds} for arm, row in values.items()}
    renamed = {arm: {seeds[seed]: x for seed, x in row.items()} for arm, row in values.items()}
    assert verdict(BETTER, values) == verdict(BETTER, reordered) == verdict(BETTER, renamed)


@pytest.mark.parametrize("constant", [0.1, 1e6])
def test_rounding_errors_are_no_effect(constant: float):
    """Differences in the last bit of large values are rounding errors, so p is 1."""
    thirds = [seed + constant + 1 / 3 for seed in range(5)]
    values = {
        "trick": {seed: math.nextafter(x, math.inf if seed % 4 else -math.inf) for seed, x in enumerate(thirds)},
        "plain": dict(enumerate(thirds)),
    }
    found = verdict(BETTER, values)
    assert (found.outcome, found.identical, found.p_value) == ("no effect", False, 1.0)


def test_a_verdict_is_json_and_a_hypothesis_has_a_fingerprint():
    written = json.dumps(to_json(judge([BETTER, SAME], {Accuracy(): arms([0.1, 0.12, 0.3])})))
    assert "NaN" not in written
    assert '"outcome": "undecided"' in written
    assert fingerprint(BETTER) == fingerprint(replace(BETTER))
    changed = [
        replace(BETTER, **{name: value})
        for name, value in {
            "claim": "It hurts.",
            "treatment": "x",
            "control": "x",
            "metric": Accuracy("train"),
            "direction": "less",
            "smallest": 0.03,
        }.items()
    ]
    assert len({fingerprint(one) for one in [BETTER, *changed]}) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": " "}, "claim is ' '"),
        ({"control": "trick"}, "both 'trick'"),
        ({"direction": "better"}, "'better'; expected one of greater, less, none"),
        ({"smallest": 0.0}, "smallest is 0.0"),
        ({"smallest": -1}, "smallest is -1"),
        ({"smallest": math.nan}, "smallest is nan"),
        ({"smallest": math.inf}, "smallest is inf"),
    ],
)
def test_a_malformed_hypothesis_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(BETTER, **change)


@pytest.mark.parametrize(
    ("hypotheses", "values", "message"),
    [
        ([BETTER], {}, "no values for its metric Accuracy"),
        ([BETTER], {Accuracy(): {"plain": {}, "tricks": {}}}, "unknown arm 'trick'; the arms are plain, tricks"),
        ([BETTER], {Accuracy(): arms([0.1, math.nan])}, "trick has nan at seed 1"),
        ([BETTER, BETTER], {Accuracy(): arms([0.1])}, "'The trick helps.' is given twice"),
    ],
)
def test_missing_or_invalid_values_are_refused(hypotheses, values, message: str):
    with pytest.raises(ValueError, match=message):
        judge(hypotheses, values)


def test_a_study_without_hypotheses_has_no_verdicts():
    assert judge([], {}) == ()
