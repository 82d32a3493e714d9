"""Measure the grading of final answers: gold answers against themselves, and gradings per second.

Run:    python experiments/benchmarks/answers.py FOLDER              (all data files in FOLDER)
        python experiments/benchmarks/answers.py --responses FILE    (lines {"gold": ..., "response": ...})
        python experiments/benchmarks/answers.py --hostile

The first puts every gold answer back as \\boxed{gold} and grades it: a verifier that does not find a gold answer equal
to itself pays nothing for right answers. The table has the layout that fits each file, its golds, the share that is
graded right, and the golds that math-verify decides on. Golds that fail and rows without an answer follow below.

The second times the verifier on stored responses in CPU seconds, in this process and through a grading process. The
third times it on long hostile responses of two lengths: twice the length takes twice the time.
docs/rewards.md has the measured figures.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

from rl_llm.problem import Problem
from rl_llm.rewards.components import Reward
from rl_llm.rewards.grader import Grader
from rl_llm.tasks.answers import grade_answer, is_numeric, needs_math, split_gold
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.layouts import PRESETS, fitting
from rl_llm.tasks.tables import read_files, rows_of

REPEATED = (50_000, 100_000)
HOSTILE = (
    *("\\boxed{", "<answer>", "</answer>", "#### ", "answer is ", "1 ", "1/", "\\", "{", "}", "(1, ", "-"),
    *("1. No, ", "answer is not 1, ", "so 1 x ", "0.\\dot{1}", "\\color{"),
)


def main() -> int:
    """Measure a folder of gold answers, or stored responses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="folder of JSONL, JSON, CSV or parquet")
    parser.add_argument("--responses", type=Path, metavar="FILE", help="stored responses to time the verifier on")
    parser.add_argument("--hostile", action="store_true", help="time the verifier on long hostile responses")
    arguments = parser.parse_args()
    if [arguments.folder is None, arguments.responses is None, not arguments.hostile].count(False) != 1:
        parser.error("give one of FOLDER, --responses FILE and --hostile")
    if arguments.hostile:
        time_hostile()
        return 0
    if arguments.responses is not None:
        time_responses(arguments.responses)
        return 0
    files = sorted(path for path in arguments.folder.iterdir() if path.is_file())
    if not files:
        parser.error(f"{arguments.folder} has no files")
    print("| file | layout | golds | graded right | decided by math-verify |\n|---|---|---|---|---|")
    findings = [finding for path in files for finding in put_back(path)]
    print("\n" + "\n".join(findings))
    return 0


def put_back(path: Path) -> list[str]:
    """Grade the golds of a file as \\boxed{gold} and print a row of the table; returns what is wrong.

    Raises ValueError if no layout fits the first row.
    """
    rows = fields_by_place(path)
    name = next(iter(fitting(next(iter(rows.values())))), None)
    if name is None:
        raise ValueError(f"{path}: no layout of rl_llm.tasks.layouts fits its first row")
    golds, findings = {}, []
    for place, fields in rows.items():
        try:
            golds[place] = split_gold(PRESETS[name].read(fields).answer)[1]
        except ValueError as error:
            findings.append(f"{place}: no answer: {error}")
    failed = [
        f"{place}: not equal to itself: {gold!r}"
        for place, gold in golds.items()
        if grade_answer(rf"So the answer is $\boxed{{{gold}}}$.", gold) != 1.0
    ]
    right, expressions = 1 - len(failed) / len(golds), sum(map(needs_math, golds.values()))
    print(f"| {path.name} | {name} | {len(golds)} | {right:.2%} | {expressions} |", flush=True)
    return failed + findings


def time_hostile() -> None:
    """Print CPU seconds for repetitions of each hostile text."""
    print(f"| repeated | {' | '.join(f'{count} times' for count in REPEATED)} |\n|---|---|---|")
    for text in HOSTILE:
        seconds = []
        for count in REPEATED:
            start = time.process_time()
            grade_answer(text * count, "7")
            seconds.append(time.process_time() - start)
        print(f"| {text!r} | " + " | ".join(f"{value:.2f} s" for value in seconds) + " |", flush=True)


def time_responses(path: Path) -> None:
    """Print gradings per second for the numeric golds of a file and for its other golds."""
    rows = fields_by_place(path).values()
    items = [(Problem(0, "", split_gold(str(row["gold"]))[1]), str(row["response"])) for row in rows]
    task = JsonlProblems(path)
    for kind, numeric in (("numeric golds", True), ("other golds", False)):
        chosen = [item for item in items if is_numeric(item[0].answer) == numeric]
        if not chosen:
            continue
        task.expect(problem.answer for problem, _ in chosen)
        start = time.process_time()
        for problem, response in chosen:
            task.verify(problem, response)
        per_second = len(chosen) / (time.process_time() - start)
        through = len(chosen) / (grader_seconds(task, chosen) - grader_seconds(task, []))
        print(
            f"{kind}: {len(chosen)} responses, gradings per CPU second: {per_second:.0f} in this process, "
            f"{through:.0f} through a grading process",
            flush=True,
        )


def grader_seconds(task: JsonlProblems, items: Sequence[tuple[Problem, str]]) -> float:
    """CPU seconds of starting a grading process and grading with it, those of both processes."""
    before = cpu_seconds()
    with Grader(task.verify, Reward(), workers=1) as grader:
        grader.grade([problem for problem, _ in items], [response for _, response in items])
    return cpu_seconds() - before


def cpu_seconds() -> float:
    """CPU seconds of this process and its ended children."""
    return sum(used.ru_utime + used.ru_stime for used in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def fields_by_place(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Rows of a file by place. Raises ValueError for a row that cannot be read."""
    rows = list(rows_of(read_files(path)))
    for row in rows:
        if isinstance(row.fields, ValueError):
            raise ValueError(f"{row.place}: {row.fields}")
    return {row.place: row.fields for row in rows if not isinstance(row.fields, ValueError)}


if __name__ == "__main__":
    sys.exit(main())
