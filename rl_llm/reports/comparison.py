"""The comparison of runs: one self-contained page with their curves, results and differences of settings."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_llm.reports.charts import COLORS, compare_charts
from rl_llm.reports.page import duration, number, percent, render_page
from rl_llm.reports.run_report import REPORT, read_object, run_name
from rl_llm.reports.settings import brief, varying
from rl_llm.runs.files import write_atomically
from rl_llm.runs.folder import EXPERIMENT, METRICS, SUMMARY, read_metrics

# Of experiment.json. Its fingerprint follows from the experiment, and spec and folder are only where that was written.
SURROUNDINGS = ("seed", "problems", "tokenizer", "sources", "versions", "python", "devices", "commit", "code")
RESULTS = (
    ("accuracy before", "accuracy_before", percent),
    ("accuracy after", "accuracy_after", percent),
    ("greedy before", "greedy_before", percent),
    ("greedy after", "greedy_after", percent),
    ("tokens per response before", "response_length_before", number),
    ("tokens per response after", "response_length_after", number),
    ("tokens generated", "tokens_generated", number),
    ("time", "wall_seconds", duration),
)


def write_comparison(runs: Sequence[Path], page: Path) -> Path:
    """Write a page that compares run folders, finished or not, and return its path.

    Raises ValueError for more runs than colors, or naming a damaged file.
    """
    if len(runs) > len(COLORS):
        raise ValueError(f"{len(runs)} runs are too many for one page; compare at most {len(COLORS)}")
    records, summaries = ([read_object(run / name) for run in runs] for name in (EXPERIMENT, SUMMARY))
    metrics = [read_metrics(run) if (run / METRICS).exists() else [] for run in runs]
    names = _names(runs, records)
    settings = varying([record.get("experiment") for record in records])
    around = varying([{name: record.get(name) for name in SURROUNDINGS} for record in records])
    found = [", ".join(item["name"].replace("_", " ") for item in one.get("findings", [])) for one in summaries]
    rows = [(label, [_shown(one.get(key), show) for one in summaries]) for label, key, show in RESULTS]
    write_atomically(
        page,
        render_page(
            "comparison.html.jinja",
            names=names,
            links=[_link(page, run) for run in runs],
            results=[*rows, ("findings", found)],
            settings=_in_brief(settings),
            surroundings=_in_brief(around),
            charts=compare_charts(dict(zip(names, metrics, strict=True))),
        ).encode(),
    )
    return page


def _names(runs: Sequence[Path], records: Sequence[dict[str, Any]]) -> list[str]:
    """Folder names, or whole paths if two are the same."""
    names = [run.resolve().name or run_name(run, record, {}) for run, record in zip(runs, records, strict=True)]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _link(page: Path, run: Path) -> str | None:
    report = run / REPORT
    return Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix() if report.exists() else None


def _shown(value: Any, show: Any) -> str:
    return "–" if value is None else show(value)


def _in_brief(places: dict[str, list[Any]]) -> list[tuple[str, list[str]]]:
    return [(place or "experiment", [brief(value) for value in values]) for place, values in places.items()]
