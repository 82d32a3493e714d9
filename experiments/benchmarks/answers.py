"""Put every gold answer of a folder of data files back as \\boxed{gold} and grade it.

Run:    python experiments/benchmarks/answers.py FOLDER       (every data file in FOLDER, by the layout that fits)

A verifier that does not find a gold answer equal to itself pays nothing for right answers of that kind. For each file
the table has the layout, the golds, the share that is graded right, and the golds that math-verify has to decide on.
The golds that fail are listed below the table. docs/rewards.md has the measured figures.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

from rl_llm.tasks.answers import grade_answer, needs_math, split_gold
from rl_llm.tasks.layouts import PRESETS, fitting
from rl_llm.tasks.tables import read_files, rows_of


class Measured(NamedTuple):
    """Golds of a file: those that fail, and counts."""

    layout: str
    golds: int
    failed: list[str]
    unread: list[str]
    expressions: int
    seconds: float


def main() -> int:
    """Measure all files of the folder and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of JSONL, JSON, CSV or parquet files")
    parser.add_argument("--show", type=int, default=5, metavar="N", help="failing golds to list per file (default: 5)")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.iterdir() if path.is_file())
    if not files:
        parser.error(f"{arguments.folder} has no files")
    print("| file | layout | golds | graded right | decided by math-verify | golds/s |\n|---|---|---|---|---|---|")
    failures: list[str] = []
    for path in files:
        found = measure(path)
        right = 1 - len(found.failed) / max(1, found.golds)
        speed = found.golds / found.seconds
        print(
            f"| {path.name} | {found.layout} | {found.golds} | {right:.2%} | {found.expressions} | {speed:.0f} |",
            flush=True,
        )
        shown = [*found.failed[: arguments.show], *found.unread[: arguments.show]]
        failures += [f"{path.name}: {text}" for text in shown]
    print("\n" + "\n".join(failures))
    return 0


def measure(path: Path) -> Measured:
    """Grade the golds of one file. Raises ValueError if no layout fits its first row."""
    rows = [row for row in rows_of(read_files(path)) if isinstance(row.fields, dict)]
    name = next(iter(fitting(rows[0].fields)), None)
    if name is None:
        raise ValueError(f"{path}: no layout of rl_llm.tasks.layouts fits the fields {', '.join(rows[0].fields)}")
    failed, unread, expressions, golds = [], [], 0, 0
    start = time.perf_counter()
    for place, fields in rows:
        try:
            _, gold = split_gold(PRESETS[name].read(fields).answer)
        except ValueError as error:
            unread.append(f"{place.rpartition(':')[2]}: {error}")
            continue
        golds += 1
        expressions += needs_math(gold)
        if grade_answer(rf"So the answer is $\boxed{{{gold}}}$.", gold) != 1.0:
            failed.append(repr(gold))
    return Measured(name, golds, failed, unread, expressions, time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
