"""What came of a study: the numbers of its members, arm by arm and seed by seed, and the verdicts on its hypotheses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_llm import config
from rl_llm.studies.fate import count_fates
from rl_llm.studies.folder import Member
from rl_llm.studies.hypothesis import Values, Verdict, judge
from rl_llm.studies.metric import Drop, Final, Metric, Speed
from rl_llm.studies.study import Study

# Every report shows these, beside what the hypotheses are about.
ALWAYS: tuple[Metric, ...] = (Final(), Speed(), Drop())
COSTS = ("tokens_generated", "wall_seconds", "flops")


@dataclass(frozen=True)
class Results:
    """`runs` are summary.json and the lines of metrics.jsonl of the arms' members that are done, by arm and seed."""

    study: Study
    runs: Mapping[str, Mapping[int, tuple[dict[str, Any], list[dict[str, Any]]]]]
    values: Mapping[Metric, Values]
    verdicts: tuple[Verdict, ...]

    @property
    def costs(self) -> dict[str, dict[str, float]]:
        """Means over the seeds of what an arm's run cost, by arm."""
        return {
            arm: {name: sum(summary[name] for summary, _ in runs.values()) / len(runs) for name in COSTS}
            for arm, runs in self.runs.items()
            if runs
        }

    def to_json(self) -> dict[str, Any]:
        """All numbers and verdicts but the costs, which two runs do not have alike."""
        return {
            "sha256": self.study.registered()["sha256"],
            "values": [{"metric": config.to_json(metric), "of": _text_keys(of)} for metric, of in self.values.items()],
            "fates": {arm: count_fates(runs.values()) for arm, runs in self.runs.items()},
            "verdicts": [config.to_json(verdict) for verdict in self.verdicts],
            "states": {
                arm: {str(seed): summary["state_sha256"] for seed, (summary, _) in runs.items()}
                for arm, runs in self.runs.items()
            },
        }


def _text_keys(values: Values) -> dict[str, dict[str, float]]:
    return {arm: {str(seed): value for seed, value in of.items()} for arm, of in values.items()}


def results_of(study: Study, members: Sequence[Member], looks: int = 1) -> Results:
    """The results of the members that are done; those of a study that is not over, too. `looks` as in `judge`."""
    runs: dict[str, dict[int, tuple[dict[str, Any], list[dict[str, Any]]]]] = {arm: {} for arm in study.arms}
    for member in members:
        if member.of_arm and member.done:
            runs[member.name][member.seed] = member.read()
    metrics = dict.fromkeys((*(hypothesis.metric for hypothesis in study.hypotheses), *ALWAYS))
    values = {metric: _values(metric, study, runs) for metric in metrics}
    states = {arm: {seed: summary["state_sha256"] for seed, (summary, _) in of.items()} for arm, of in runs.items()}
    return Results(study, runs, values, judge(study.hypotheses, values, states, looks))


def _values(
    metric: Metric, study: Study, runs: Mapping[str, Mapping[int, tuple[dict, list]]]
) -> dict[str, dict[int, float]]:
    """Without the runs that did not measure it, or whose value is not finite: a diverged run has no number."""
    budgets = {arm: {"token_budget": experiment.token_budget} for arm, experiment in study.arms.items()}
    found = {arm: {seed: metric(run[0] | budgets[arm], run[1]) for seed, run in of.items()} for arm, of in runs.items()}
    return {
        arm: {seed: value for seed, value in of.items() if value is not None and math.isfinite(value)}
        for arm, of in found.items()
    }
