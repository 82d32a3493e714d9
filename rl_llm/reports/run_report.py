"""The report of a run: one self-contained HTML page, made from the run folder alone.

It can be written at any time. Missing data are left out of the page.
"""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_llm.reports.charts import draw_charts, warm_steps
from rl_llm.reports.page import as_float, duration, number, percent, render_page
from rl_llm.reports.settings import hyperparameters
from rl_llm.runs.evidence import examine
from rl_llm.runs.files import json_object, read_records, write_atomically
from rl_llm.runs.folder import EXPERIMENT, LEDGER, METRICS, SAMPLES, SUMMARY, read_metrics
from rl_llm.runs.ledger import Ledger, LedgerError

REPORT = "report.html"

STUDY = "study.json"  # in the folder of a study
SAMPLES_PER_REPORT = 8  # before and after, and of a step of training
STEPS_PER_REPORT = 24  # of training, evenly spaced, with the first and the last
PHASES = {"rl": "RL", "warm_start": "warm-start"}
ACTIVITIES = ("generate", "grade", "update")  # of a step, recorded as time/*
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Tile:
    """One large number of the header, with its value before training if known."""

    label: str
    value: str
    before: str | None = None


@dataclass(frozen=True)
class RunCost:
    """Steps, time and tokens of one part of the run."""

    phase: str
    steps: int
    seconds: float
    tokens: float


def write_report(run: Path | str) -> Path:
    """Write report.html into a run folder, finished or not, and return its path.

    Raises FileNotFoundError if there is no folder, ValueError naming a damaged line of metrics or samples.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is not a run folder; expected the --out of a run")
    experiment, summary = read_object(run / EXPERIMENT), read_object(run / SUMMARY)
    metrics = read_metrics(run) if (run / METRICS).exists() else []
    ledger = check_records(run)
    page = render_page(
        "report.html.jinja",
        name=run_name(run, experiment, summary),
        experiment=experiment,
        summary=summary,
        verdict=_verdict(summary, metrics),
        findings=_findings(summary, ledger),
        repeat=repeat_command(experiment) if "code" in experiment else "",
        study=_study_link(run),
        settings=hyperparameters(experiment.get("experiment", {})),
        tiles=_tiles(summary),
        charts=draw_charts(metrics),
        samples=_samples(run / SAMPLES, warm_steps(metrics)),
        costs=_costs(summary, metrics),
        flops=max((record["flops/total"] for record in metrics if "flops/total" in record), default=None),
        ledger=ledger,
    )
    write_atomically(run / REPORT, page.encode(errors="replace"))  # a lone surrogate of a response
    return run / REPORT


def read_object(path: Path) -> JsonObject:
    """A JSON file; empty if there is none. Raises ValueError for a damaged one."""
    try:
        return json_object(path.read_bytes()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def run_name(run: Path, experiment: JsonObject, summary: JsonObject) -> str:
    """Recorded name of a run, or that of its folder."""
    for name in (summary.get("experiment"), experiment.get("name"), experiment.get("experiment")):
        if isinstance(name, str):
            return name
    return run.resolve().name


def repeat_command(experiment: JsonObject) -> str:
    """The command that repeats a run in another folder."""
    overrides = [part for item in experiment["overrides"] for part in ("--set", item)]
    return shlex.join(["rl-llm", "train", experiment["spec"], "--seed", str(experiment["seed"]), *overrides])


def _verdict(summary: JsonObject, metrics: Sequence[JsonObject]) -> str:
    before, after = (as_float(summary.get(f"accuracy_{when}")) for when in ("before", "after"))
    if before is not None and after is not None:
        if after == before:
            return f"Accuracy on held-out problems stayed at {percent(after)}."
        change = "rose" if after > before else "fell" if after < before else "went"
        return f"Accuracy on held-out problems {change} from {percent(before)} to {percent(after)}."
    if metrics:
        last = metrics[-1]
        step = last["step"] - (warm_steps(metrics) if last.get("phase") == "rl" else 0)
        phase = PHASES.get(str(last.get("phase")), str(last.get("phase", "the run")))
        return f"Not finished: the last step recorded is {phase} step {step}."
    return "Not finished: no step is recorded yet."


def _findings(summary: JsonObject, ledger: JsonObject | None) -> list[JsonObject]:
    """The findings of the summary, or of the ledger so far if the run is unfinished."""
    if isinstance(found := summary.get("findings"), list):
        return [finding for finding in found if isinstance(finding, dict)]
    entries = ledger["entries"] if ledger else []
    return [entry["data"] for entry in entries if entry["event"] == "finding"]


def _tiles(summary: JsonObject) -> list[Tile]:
    pairs: list[tuple[str, str, Callable[[Any], str]]] = [
        ("Accuracy, sampled", "accuracy", percent),
        ("Accuracy, greedy", "greedy", percent),
        ("Tokens per response", "response_length", number),
    ]
    tiles = []
    for label, key, show in pairs:
        before, after = summary.get(f"{key}_before"), summary.get(f"{key}_after")
        if after is not None:
            tiles.append(Tile(label, show(after), None if before is None else show(before)))
        elif before is not None:
            tiles.append(Tile(f"{label}, before", show(before)))
    if "wall_seconds" in summary:
        tiles.append(Tile("Time", duration(summary["wall_seconds"])))
    if "tokens_generated" in summary:
        tiles.append(Tile("Tokens generated", number(summary["tokens_generated"])))
    return tiles


def _study_link(run: Path) -> str | None:
    """Relative link to the report of the study that a run is a member or a start of; None for any other run."""
    above = run.resolve().parents
    found = next((level for level in (0, 1) if len(above) > level and (above[level] / STUDY).is_file()), None)
    return None if found is None else f"{'../' * (found + 1)}{REPORT}"


def _samples(path: Path, before_rl: int) -> JsonObject:
    """The same problems before and after, side by side, and those of training by their step of RL."""
    records = read_records(path) if path.exists() else []
    graded = [record for record in records if isinstance(record.get("prompt"), str)]
    before, after = (
        {record["prompt"]: record for record in graded if record.get("when") == when} for when in ("before", "after")
    )
    # Problems with both responses come first.
    prompts = sorted({**after, **before}, key=lambda prompt: prompt not in before or prompt not in after)
    compared = [
        {"prompt": prompt, "before": before.get(prompt), "after": after.get(prompt)}
        for prompt in prompts[:SAMPLES_PER_REPORT]
    ]
    steps: dict[Any, list[JsonObject]] = {}
    for record in records:
        if record.get("when") in ("training", "ungraded"):
            step = record.get("step")
            steps.setdefault(step - before_rl if isinstance(step, int) else "unknown", []).append(record)
    shown = [round(i * (len(steps) - 1) / (STEPS_PER_REPORT - 1)) for i in range(STEPS_PER_REPORT)]
    chosen = [pair for place, pair in enumerate(steps.items()) if len(steps) <= STEPS_PER_REPORT or place in shown]
    return {"compared": compared, "training": [(step, found[:SAMPLES_PER_REPORT]) for step, found in chosen]}


def _costs(summary: JsonObject, metrics: Sequence[JsonObject]) -> list[RunCost]:
    """Split the run's time, each second once: the phases, RL by activity, and the time between steps."""
    costs = []
    for phase in dict.fromkeys(str(record.get("phase", "run")) for record in metrics):
        records = [record for record in metrics if record.get("phase", "run") == phase]
        tokens, steps = _total(records, "tokens/generated"), len(records)
        parts = {part: _total(records, f"time/{part}") for part in ACTIVITIES if f"time/{part}" in records[-1]}
        for part, seconds in parts.items():
            costs.append(RunCost(f"{phase}, {part}", steps, seconds, tokens if part == "generate" else 0.0))
        rest = _total(records, "time/step") - sum(parts.values())
        name = f"{phase}, validation and the rest" if parts else phase
        costs.append(RunCost(name, steps, rest, 0.0 if parts else tokens))
    wall = as_float(summary.get("wall_seconds"))
    if wall is not None:
        rest = wall - sum(cost.seconds for cost in costs)
        evaluated = as_float(summary.get("tokens_evaluated")) or 0.0
        costs.append(RunCost("start, evaluation before and after, checkpoints", 0, rest, evaluated))
    return costs


def _total(records: Sequence[JsonObject], metric: str) -> float:
    return sum(value for record in records if math.isfinite(value := as_float(record.get(metric)) or 0.0))


def check_records(run: Path) -> JsonObject | None:
    """The entries of the ledger, what was checked, and what is wrong; None for a folder without records.

    A broken ledger is the `error`; then nothing can be held against it.
    """
    try:
        entries = Ledger.verify(run / LEDGER) if (run / LEDGER).exists() else []
    except LedgerError as error:
        return {"entries": [], "error": str(error), "wrong": [], "checked": []}
    if not entries and not any((run / name).exists() for name in (LEDGER, METRICS, SAMPLES, SUMMARY)):
        return None
    found = examine(run, entries)
    return {"entries": entries, "error": None, "wrong": found.wrong, "checked": found.checked}


def contradictions(run: Path) -> list[str]:
    """List the contradictions between the records of a run folder, or the reason why they cannot be compared."""
    records = check_records(run) or {"error": None, "wrong": []}
    return [records["error"]] if records["error"] else list(records["wrong"])
