"""The report of a study: results.json, report.html and report.md, made from the study's folder at any time.

What comes of a study is the same whenever it is repeated; only its times and costs are not. In report.md these are all
under the last heading.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_llm.runs.files import write_atomically
from rl_llm.runs.folder import SAMPLES
from rl_llm.runs.metrics import read_records
from rl_llm.runs.page import interval, number, p_value, render, signed
from rl_llm.studies.charts import draw_learning_curves, effect_chart, points
from rl_llm.studies.fate import FATES, Fate, count_fates
from rl_llm.studies.fits import SigmoidFit, fit_sigmoid
from rl_llm.studies.folder import RESULTS, Member
from rl_llm.studies.hypothesis import Verdict
from rl_llm.studies.metric import Metric
from rl_llm.studies.provenance import Provenance, provenance_of
from rl_llm.studies.results import COSTS, Results, results_of
from rl_llm.studies.statistics import Description, Estimate, describe
from rl_llm.studies.study import Study

PAGE, SHORT = "report.html", "report.md"
SAMPLES_SHOWN = 3  # of each arm
FITTED = "evaluation/accuracy"
OUTCOMES = {
    "supported": "right",
    "contradicted": "wrong",
    "no effect": "",
    "undecided": "faint",
}  # -> style of the word


@dataclass(frozen=True)
class Arm:
    """A row of the table of arms: `fates` are numbers of runs, `values` are by metric, None where no run has one;
    `cost` is the mean of a run.
    """

    name: str
    fates: dict[Fate, int]
    values: dict[Metric, Description | None]
    cost: dict[str, float] | None
    fit: SigmoidFit | None
    seed: int | None
    samples: list[dict[str, Any]]


def write_results(out: Path, study: Study, members: Sequence[Member]) -> str:
    """Write all that can be said of the members that are done; returns the verdicts as text for a terminal."""
    provenance = provenance_of(out, study, members)
    results = results_of(study, members, provenance.looks)
    arms = [_arm(name, results, members) for name in study.arms]
    told: dict[str, Any] = {
        "study": study,
        "provenance": provenance,
        "headline": _headline(results.verdicts),
        "progress": _progress(provenance),
        "notes": [note for note in (_looks(provenance.looks), _short(results)) if note],
        "verdicts": [(verdict, effect_chart(verdict, _differences(verdict, results))) for verdict in results.verdicts],
        "outcomes": OUTCOMES,
        "charts": draw_learning_curves(results.runs),
        "fates": " / ".join(FATES),
        "metrics": list(results.values),
        "arms": arms,
        "totals": _totals(provenance),
        "fitted": FITTED,
        "needed": _needed,
        "estimated": _estimated,
    }
    write_atomically(out / RESULTS, json.dumps(results.to_json(), indent=1).encode())
    for path in (PAGE, SHORT):
        write_atomically(out / path, render(f"{path}.jinja", Path(__file__).parent, **told).encode())
    return _for_terminal(out, told)


def _headline(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "No hypothesis was registered: the arms are described, and nothing is decided."
    counts = Counter[str](verdict.outcome for verdict in verdicts)
    of = "1 hypothesis" if len(verdicts) == 1 else f"{len(verdicts)} hypotheses"
    return f"Of {of}: " + ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name]) + "."


def _progress(provenance: Provenance) -> str:
    """How much of the study there is; empty where it is whole."""
    of_arms = sum(item.member.of_arm for item in provenance.members)
    if provenance.count("done") == of_arms:
        return ""
    others = [(provenance.count(state), state) for state in ("failed", "begun", "not begun")]
    listed = ", ".join(f"{count} {state}" for count, state in others if count)
    return f"Not over: {provenance.count('done')} of {of_arms} runs are done ({listed})."


def _looks(looks: int) -> str:
    """What is to be known of a study that was judged before; empty where it was not."""
    return f"Judged at {looks} numbers of seeds, so each time at 5 % / {looks}." if looks > 1 else ""


def _short(results: Results) -> str:
    """The arms of which runs ended by their steps before the budget of tokens was spent; empty where none did."""
    short = {}
    for name, runs in results.runs.items():
        budget = results.study.arms[name].token_budget or 0
        short[name] = sum(summary["tokens_generated"] < budget for summary, _ in runs.values())
    listed = ", ".join(f"{name} ({count} of {len(results.runs[name])} runs)" for name, count in short.items() if count)
    return f"Ended by their number of steps, before the budget of tokens was spent: {listed}." if listed else ""


def _differences(verdict: Verdict, results: Results) -> list[float]:
    values = results.values[verdict.hypothesis.metric]
    treatment, control = values[verdict.hypothesis.treatment], values[verdict.hypothesis.control]
    return sorted(treatment[seed] - control[seed] for seed in treatment.keys() & control.keys())


def _arm(name: str, results: Results, members: Sequence[Member]) -> Arm:
    runs = results.runs[name]
    seed = min(runs, default=None)
    folder = next((item.folder for item in members if item.of_arm and (item.name, item.seed) == (name, seed)), None)
    records = read_records(folder / SAMPLES) if folder and (folder / SAMPLES).exists() else []
    return Arm(
        name,
        fates=count_fates(runs.values()),
        values={metric: describe(of[name]) if of[name] else None for metric, of in results.values.items()},
        cost=results.costs.get(name),
        fit=_fit(runs),
        seed=seed,
        samples=[record for record in records if record.get("when") == "after"][:SAMPLES_SHOWN],
    )


def _fit(runs: Mapping[int, tuple[dict[str, Any], list[dict[str, Any]]]]) -> SigmoidFit | None:
    """None where no run was evaluated on its way."""
    curves = {seed: (summary["accuracy_before"], points(lines, FITTED)) for seed, (summary, lines) in runs.items()}
    later = {seed: [(0.0, start), *(p for p in line if p[0] > 0)] for seed, (start, line) in curves.items()}
    later = {seed: line for seed, line in later.items() if len(line) > 1}
    return fit_sigmoid(later) if later else None


def _totals(provenance: Provenance) -> dict[str, float]:
    """What the whole study has cost, its starts included."""
    return {name: sum(item.summary.get(name, 0.0) for item in provenance.members) for name in COSTS}


def _needed(verdict: Verdict) -> str:
    """How many seeds would decide, where that is a question."""
    if verdict.outcome != "undecided":
        return ""
    return f"{verdict.seeds_needed} seeds would decide" if verdict.seeds_needed else "too few seeds to say how many"


def _estimated(value: Estimate | None, sign: bool = False) -> str:
    """A value with its interval."""
    if value is None:
        return "–"
    write = signed if sign else number
    return f"{write(value.value)} {interval(value.interval, write)}".strip()


def _for_terminal(out: Path, told: Mapping[str, Any]) -> str:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    lines = [told["study"].title, *filter(None, (told["headline"], told["progress"])), *told["notes"], ""]
    for verdict, _ in told["verdicts"]:
        effect = "bitwise the same" if verdict.identical else _estimated(verdict.mean, sign=True)
        lines += [
            f"{verdict.outcome.upper()}: {verdict.hypothesis.claim}",
            f"  {verdict.hypothesis.treatment} - {verdict.hypothesis.control}, {verdict.hypothesis.metric}: {effect}; "
            f"{verdict.hypothesis.smallest:g} matters; p {p_value(verdict.p_adjusted)}; {verdict.pairs} pairs",
            *(f"  {needed}" for needed in [_needed(verdict)] if needed),
        ]
    table = Table("arm", "/".join(FATES), *map(str, told["metrics"]), "tokens", "seconds", box=SIMPLE)
    for arm in told["arms"]:
        cost = [number(arm.cost["tokens_generated"]), f"{arm.cost['wall_seconds']:.0f}"] if arm.cost else ["–", "–"]
        table.add_row(
            arm.name,
            "/".join(map(str, arm.fates.values())),
            *(_estimated(value and value.iqm) for value in arm.values.values()),
            *cost,
        )
    written = io.StringIO()
    Console(file=written, width=max(100, 30 * len(told["metrics"]))).print(table)
    tables = "\n".join(line.rstrip() for line in written.getvalue().splitlines())
    return "\n".join([*lines, tables, f"report  {out / PAGE}, {out / SHORT}, {out / RESULTS}"])
