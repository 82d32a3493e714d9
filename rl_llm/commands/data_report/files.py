"""A data file before it becomes a task: the layout that fits, its rows, and its problems without repeats."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rl_llm.commands.data_report.biases import Check
from rl_llm.config import OverrideError, override
from rl_llm.problem import Problem
from rl_llm.tasks.datasets import JsonlProblems, Questions, problem_of, read_problem_files
from rl_llm.tasks.layouts import PRESETS, fitting, value_at
from rl_llm.tasks.tables import Fields, Files, rows_of

GUESSED_FROM = 100  # first rows, by which the layout is guessed
EXAMPLES = 3  # refused rows that are shown


@dataclass(frozen=True)
class FileReport:
    """Problems of a file, one for each question with one answer, their rows, and the findings on all rows."""

    task: JsonlProblems
    problems: Sequence[Problem]
    rows: Sequence[Fields]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]


def read_data_file(path: str, assignments: Sequence[str] = ()) -> FileReport:
    """Read a file by the layout that fits most of its rows, unless `assignments` set another.

    Assignments are those of a command line: `layout=MATH`, `layout.answer=gold`.
    Raises ValueError or FileNotFoundError for a file that cannot be read, or that no layout fits.
    """
    files = read_problem_files(path, "the data file")
    short = [assignment.removeprefix("task.") for assignment in assignments]
    task, found = JsonlProblems(path), f"given by {', '.join(short)}"
    if not any(assignment.startswith(("layout.", "layout=")) for assignment in short):
        presets = _presets(files)
        task = replace(task, layout=PRESETS[presets[0]])
        also = f" (so would {', '.join(presets[1:])})" if presets[1:] else ""
        found = f"{presets[0]} fits{also}: --set task.layout={presets[0]}"
    try:
        task = override(task, short)
    except OverrideError as error:
        raise ValueError(f"{error} (a data file has the fields of JsonlProblems)") from error
    return _read(task, files, f"layout: {found}")


def write_rows(path: Path, report: FileReport, removed: Collection[int]) -> int:
    """Write the rows that remain as JSONL, with all their fields, and return their number."""
    rows = [row for place, row in enumerate(report.rows) if place not in removed]
    path.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows), "utf-8")
    return len(rows)


def _presets(files: Files) -> list[str]:
    """Names of the presets that fit most of the first rows, the most specific first.

    Raises ValueError if none fits one row, with the reason of the first row or its fields.
    """
    first = list(islice(rows_of(files), GUESSED_FROM))
    found = [row.fields for row in first if not isinstance(row.fields, ValueError)]
    fits = Counter(name for fields in found for name in fitting(fields))
    if not fits:
        path = next(iter(files))
        reasons = [f"{row.place}: {reason}" for row in first if (reason := _misfit(row.fields))]
        if reasons:
            raise ValueError(f"none of the first {len(first)} rows of {path} can be read; {reasons[0]}")
        raise ValueError(
            f"{path}: no usual layout fits the fields {', '.join(found[0])}; name them: "
            "--set layout.question=FIELD --set layout.answer=FIELD"
        )
    best = max(fits.values())
    return [name for name in PRESETS if fits[name] == best]


def _misfit(row: Fields | ValueError) -> str:
    """Reason why the first preset with fields of a row cannot read it; empty if no preset has its fields."""
    if isinstance(row, ValueError):
        return str(row)
    for layout in PRESETS.values():
        try:
            for name in (*layout.parts, layout.answer, *([layout.options] if layout.options else [])):
                value_at(row, name)
        except ValueError:
            continue
        try:
            layout.read(row)
        except ValueError as error:
            return str(error)
    return ""


def _read(task: JsonlProblems, files: Files, layout: str) -> FileReport:
    questions, refused = Questions(), list[str]()
    rows = unread = 0
    for row in task.parse(files):
        rows += 1
        if isinstance(record := row.record, ValueError):
            unread += 1
            refused += [str(record)] if len(refused) < EXAMPLES else []
        else:
            questions.add("path", row, record)
    kept, disputed = questions.undisputed, questions.disputed
    if not kept:
        reasons = "\n".join([*refused[:1], *islice(disputed.values(), 1)])
        raise ValueError(
            f"{task.path} has no problems, but {unread} rows that cannot be read and {len(disputed)} questions with "
            f"several answers, such as\n{reasons}"
        )
    repeated = f"{questions.repeated} repeat another but for case and spacing, and count once"
    checks = [
        Check("rows", f"{rows}, with {len(kept)} problems; {repeated}"),
        Check("rows that cannot be read", str(unread), "mend them or use --clean" if unread else ""),
        Check("questions with several answers", str(len(disputed)), "mend them or use --clean" if disputed else ""),
    ]
    notes = (layout, *refused, *islice(disputed.values(), EXAMPLES))
    problems = [problem_of(task.name, record) for _, _, record in kept]
    return FileReport(task, problems, [row.fields for _, row, _ in kept], tuple(checks), notes)
