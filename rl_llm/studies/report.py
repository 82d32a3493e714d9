"""The report of a study: results.json, report.html and report.md, made from the study folder at any time.

Repeating a study gives the same results; only times and costs differ. In report.md these are all under the last
heading.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_llm import config
from rl_llm.reports.page import interval, number, p_value, render_page, signed
from rl_llm.runs.files import read_records, write_atomically
from rl_llm.runs.folder import SAMPLES
from rl_llm.studies.charts import draw_learning_curves, effect_chart, points
from rl_llm.studies.fits import SigmoidFit, fit_sigmoid
from rl_llm.studies.folder import RESULTS, Member
from rl_llm.studies.grid import Grid, find_grid
from rl_llm.studies.hypothesis import Verdict
from rl_llm.studies.metric import RUN_OUTCOMES, Final, Metric, RunOutcome, count_run_outcomes
from rl_llm.studies.provenance import Provenance, read_provenance
from rl_llm.studies.results import COSTS, Results, collect_results
from rl_llm.studies.statistics import Description, Estimate, describe
from rl_llm.studies.study import Study

PAGE, SHORT = "report.html", "report.md"
SAMPLES_PER_ARM = 3
FITTED = "evaluation/accuracy"
OUTCOME_STYLES = {"supported": "right", "contradicted": "wrong", "no effect": "", "undecided": "faint"}


@dataclass(frozen=True)
class Arm:
    """A row of the table of arms. `values` are None for a metric that no run measured; `cost` is the mean of a run."""

    name: str
    run_outcomes: dict[RunOutcome, int]
    values: dict[Metric, Description | None]
    cost: dict[str, float] | None
    fit: SigmoidFit | None
    seed: int | None
    samples: list[dict[str, Any]]


def write_results(out: Path, study: Study, members: Sequence[Member]) -> str:
    """Write results and reports of the finished members; returns the verdicts as text for a terminal."""
    provenance = read_provenance(out, study, members)
    results = collect_results(study, members, provenance.looks)
    arms = [_arm(name, results, members) for name in study.arms]
    content: dict[str, Any] = {
        "study": study,
        "provenance": provenance,
        "headline": _headline(results.verdicts),
        "progress": _progress(provenance),
        "notes": [note for note in _notes(provenance, results) if note],
        "verdicts": [(verdict, effect_chart(verdict, _differences(verdict, results))) for verdict in results.verdicts],
        "styles": OUTCOME_STYLES,
        "charts": draw_learning_curves(results.runs),
        "run_outcomes": " / ".join(RUN_OUTCOMES),
        "metrics": list(results.values),
        "arms": arms,
        "grids": _grids(study, arms),
        "final": Final(),
        "totals": {name: sum(item.summary.get(name, 0.0) for item in provenance.members) for name in COSTS},
        "fitted": FITTED,
        "needed": _needed,
        "estimated": _estimated,
    }
    write_atomically(out / RESULTS, json.dumps(results.to_json(), indent=1).encode())
    for path in (PAGE, SHORT):
        write_atomically(out / path, render_page(f"{path}.jinja", Path(__file__).parent, **content).encode())
    return _for_terminal(out, content)


def _headline(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "No hypothesis was registered: the arms are described, and nothing is decided."
    counts = Counter[str](verdict.outcome for verdict in verdicts)
    total = "1 hypothesis" if len(verdicts) == 1 else f"{len(verdicts)} hypotheses"
    return f"Of {total}: " + ", ".join(f"{counts[name]} {name}" for name in OUTCOME_STYLES if counts[name]) + "."


def _progress(provenance: Provenance) -> str:
    """How many runs are done; empty if all are."""
    total = sum(item.member.is_arm for item in provenance.members)
    if provenance.count("done") == total:
        return ""
    others = [(provenance.count(state), state) for state in ("failed", "begun", "not begun")]
    listed = ", ".join(f"{count} {state}" for count, state in others if count)
    return f"Unfinished: {provenance.count('done')} of {total} runs are done ({listed})."


def _notes(provenance: Provenance, results: Results) -> tuple[str, ...]:
    """Cautions for a reader of the verdicts; an empty string for each that does not apply."""
    others = ", ".join(provenance.other_code)
    code = f"Made by other code than the study's, so they may differ in more than their arms: {others}."
    repaired = f"The ledger was repaired at {provenance.repaired}: two commands had written it at the same time."
    fixed = repaired if provenance.repaired else ""
    return _looks(provenance.looks), _short_runs(results), code if others else "", fixed


def _looks(looks: int) -> str:
    return (
        f"Judged at {looks} different numbers of seeds, so each time at a level of 5 % / {looks}." if looks > 1 else ""
    )


def _short_runs(results: Results) -> str:
    """The arms with runs that reached their last step before their token budget; empty if there are none."""
    short = {}
    for name, runs in results.runs.items():
        budget = results.study.arms[name].token_budget or 0
        short[name] = sum(summary["tokens_generated"] < budget for summary, _ in runs.values())
    listed = ", ".join(f"{name} ({count} of {len(results.runs[name])} runs)" for name, count in short.items() if count)
    return f"Runs that reached their last step before their token budget: {listed}." if listed else ""


def _differences(verdict: Verdict, results: Results) -> list[float]:
    values = results.values[verdict.hypothesis.metric]
    treatment, control = values[verdict.hypothesis.treatment], values[verdict.hypothesis.control]
    return sorted(treatment[seed] - control[seed] for seed in treatment.keys() & control.keys())


def _arm(name: str, results: Results, members: Sequence[Member]) -> Arm:
    runs = results.runs[name]
    seed = min(runs, default=None)
    folder = next((item.folder for item in members if item.is_arm and (item.name, item.seed) == (name, seed)), None)
    records = read_records(folder / SAMPLES) if folder and (folder / SAMPLES).exists() else []
    return Arm(
        name,
        run_outcomes=count_run_outcomes(runs.values()),
        values={metric: describe(arms[name]) if arms[name] else None for metric, arms in results.values.items()},
        cost=results.costs.get(name),
        fit=_fit(runs),
        seed=seed,
        samples=[record for record in records if record.get("when") == "after"][:SAMPLES_PER_ARM],
    )


def _grids(study: Study, arms: Sequence[Arm]) -> list[tuple[Metric, Grid]]:
    """A heat map of accuracy and of each hypothesis's metric, if the arms form a grid."""
    records = {name: config.to_json(arm) for name, arm in study.arms.items()}
    found = []
    for metric in dict.fromkeys([Final(), *(hypothesis.metric for hypothesis in study.hypotheses)]):
        described = {arm.name: arm.values[metric] for arm in arms}
        values = {name: value.iqm.value if value else None for name, value in described.items()}
        grid = find_grid(records, values)
        found += [(metric, grid)] if grid else []
    return found


def _fit(runs: Mapping[int, tuple[dict[str, Any], list[dict[str, Any]]]]) -> SigmoidFit | None:
    """The sigmoid fit of an arm; None if no run was evaluated during training."""
    curves = {seed: (summary["accuracy_before"], points(lines, FITTED)) for seed, (summary, lines) in runs.items()}
    later = {seed: [(0.0, start), *(p for p in line if p[0] > 0)] for seed, (start, line) in curves.items()}
    later = {seed: line for seed, line in later.items() if len(line) > 1}
    return fit_sigmoid(later) if later else None


def _needed(verdict: Verdict) -> str:
    """How many seeds would decide an undecided hypothesis, in words."""
    if verdict.outcome != "undecided":
        return ""
    return f"{verdict.seeds_needed or 'an unknown number of'} seeds would decide"


def _estimated(value: Estimate | None, sign: bool = False) -> str:
    if value is None:
        return "–"
    write = signed if sign else number
    return f"{write(value.value)} {interval(value.interval, write)}".strip()


def _for_terminal(out: Path, content: Mapping[str, Any]) -> str:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    lines = [content["study"].title, *filter(None, (content["headline"], content["progress"])), *content["notes"], ""]
    for verdict, _ in content["verdicts"]:
        effect = "bitwise the same" if verdict.identical else _estimated(verdict.mean, sign=True)
        lines += [
            f"{verdict.outcome.upper()}: {verdict.hypothesis.claim}",
            f"  {verdict.hypothesis.treatment} - {verdict.hypothesis.control}, {verdict.hypothesis.metric}: {effect}; "
            f"{verdict.hypothesis.smallest:g} matters; p {p_value(verdict.p_adjusted)}; {verdict.pairs} pairs",
            *(f"  {needed}" for needed in [_needed(verdict)] if needed),
        ]
    table = Table("arm", "/".join(RUN_OUTCOMES), *map(str, content["metrics"]), "tokens", "seconds", box=SIMPLE)
    for arm in content["arms"]:
        cost = [number(arm.cost["tokens_generated"]), f"{arm.cost['wall_seconds']:.0f}"] if arm.cost else ["–", "–"]
        table.add_row(
            arm.name,
            "/".join(map(str, arm.run_outcomes.values())),
            *(_estimated(value and value.iqm) for value in arm.values.values()),
            *cost,
        )
    written = io.StringIO()
    Console(file=written, width=max(100, 30 * len(content["metrics"]))).print(table)
    tables = "\n".join(line.rstrip() for line in written.getvalue().splitlines())
    return "\n".join([*lines, tables, f"report  {out / PAGE}, {out / SHORT}, {out / RESULTS}"])
