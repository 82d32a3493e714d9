"""The results of a study: its members' metrics by arm and seed, and the verdicts on its hypotheses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_llm import config
from rl_llm.studies.folder import Member
from rl_llm.studies.hypothesis import StatesByArm, ValuesByArm, Verdict, judge
from rl_llm.studies.metric import Drop, Final, Metric, Speed, count_run_outcomes
from rl_llm.studies.study import Study

ALWAYS: tuple[Metric, ...] = (Final(), Speed(), Drop())  # in every report, beside the hypotheses' own metrics
COSTS = ("tokens_generated", "wall_seconds", "flops")
Runs = Mapping[str, Mapping[int, tuple[dict[str, Any], list[dict[str, Any]]]]]
"""summary.json and the lines of metrics.jsonl, by arm and seed."""


@dataclass(frozen=True)
class Results:
    """Results of the finished runs of a study's arms."""

    study: Study
    runs: Runs
    values: Mapping[Metric, ValuesByArm]
    states: StatesByArm
    verdicts: tuple[Verdict, ...]

    @property
    def costs(self) -> dict[str, dict[str, float]]:
        """Mean cost of a run, by arm."""
        return {
            arm: {name: sum(summary[name] for summary, _ in runs.values()) / len(runs) for name in COSTS}
            for arm, runs in self.runs.items()
            if runs
        }

    def to_json(self) -> dict[str, Any]:
        """All numbers and verdicts except the costs, which vary between repetitions."""
        values = [{"metric": config.to_json(metric), "of": _text_keys(arms)} for metric, arms in self.values.items()]
        return {
            "sha256": self.study.registered()["sha256"],
            "values": values,
            "fates": {arm: count_run_outcomes(runs.values()) for arm, runs in self.runs.items()},
            "verdicts": [config.to_json(verdict) for verdict in self.verdicts],
            "states": _text_keys(self.states),
        }


def _text_keys(by_arm: Mapping[str, Mapping[int, Any]]) -> dict[str, dict[str, Any]]:
    return {arm: {str(seed): value for seed, value in seeds.items()} for arm, seeds in by_arm.items()}


def collect_results(study: Study, members: Sequence[Member], looks: int = 1) -> Results:
    """Collect the results of the finished members; the study may be unfinished. `looks` is that of `judge`."""
    runs: dict[str, dict[int, tuple[dict[str, Any], list[dict[str, Any]]]]] = {arm: {} for arm in study.arms}
    for member in members:
        if member.is_arm and member.done:
            runs[member.name][member.seed] = member.read()
    metrics = dict.fromkeys((*(hypothesis.metric for hypothesis in study.hypotheses), *ALWAYS))
    values = {metric: _values(metric, study, runs) for metric in metrics}
    states = {arm: {seed: run[0]["state_sha256"] for seed, run in seeds.items()} for arm, seeds in runs.items()}
    return Results(study, runs, values, states, judge(study.hypotheses, values, states, looks))


def _values(metric: Metric, study: Study, runs: Runs) -> dict[str, dict[int, float]]:
    """A metric by arm and seed, without runs that did not measure it or diverged (not finite)."""
    found: dict[str, dict[int, float]] = {arm: {} for arm in runs}
    for arm, seeds in runs.items():
        for seed, (summary, lines) in seeds.items():
            value = metric(summary | {"token_budget": study.arms[arm].token_budget}, lines)
            if value is not None and math.isfinite(value):
                found[arm][seed] = value
    return found
