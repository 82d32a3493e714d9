"""`rl-llm compare`: compare two evaluations on the problems that both have."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rl_llm.commands.common import DONE, UsageError
from rl_llm.config.terminal import make_console, show

if TYPE_CHECKING:
    from rl_llm.evaluation.compare import Comparison
    from rl_llm.evaluation.statistics import MeanEstimate

SUMMARY = "compare two evaluations, paired by problem"
WIDE = 200  # columns of a file or pipe, so that no row of the table is broken
SHOWN = 3  # problems that only one evaluation has
EXAMPLES = """examples:
  rl-llm compare evaluations/base evaluations/after_rl         after - before, suite by suite
  rl-llm compare evaluations/base evaluations/after_rl --json  with all numbers, for a program"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    for name, which in (("first", "A"), ("second", "B")):
        parser.add_argument(name, type=Path, metavar=which, help="folder of `rl-llm evaluate --out`")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the difference B - A of avg@k for each suite, with its 95 % interval.

    Problems are paired, so it matters little how hard they are. Problems that only one evaluation has are left out and
    named. The p-value is that of a sign-flip test. Evaluations on other suites or with another sampling are refused.
    """
    from rl_llm.evaluation.compare import CompareError, compare, read_evaluation

    try:
        found = compare(read_evaluation(arguments.first), read_evaluation(arguments.second))
    except CompareError as error:
        raise UsageError(str(error)) from error
    if arguments.json:
        compared = {"first": str(arguments.first), "second": str(arguments.second)}
        show(json.dumps({**compared, "suites": {one.suite: asdict(one) for one in found}}, indent=2))
    else:
        _show(found)
    return DONE


def _show(found: "list[Comparison]") -> None:
    from rich.table import Table

    console = make_console()
    if not console.is_terminal:
        console.width = WIDE
    table = Table("suite", "problems", "A", "B", "B - A (95 % interval)", "p", "better, worse, equal")
    for one in found:
        counts = f"{one.better}, {one.worse}, {one.equal}"
        shares = (_percent(one.first), _percent(one.second), _percent(one.difference, sign="+"))
        table.add_row(one.suite, str(one.difference.problems), *shares, f"{one.p_value:.4f}", counts)
    console.print(table)
    for one in found:
        for which, others in (("A", one.only_first), ("B", one.only_second)):
            if others:
                console.print(f"{one.suite}: {len(others)} problems only in {which}, left out:")
            for problem, prompt in list(others.items())[:SHOWN]:
                console.print(f"  {problem}: {prompt[:100]!r}")
        for note in one.notes:
            console.print(f"{one.suite}: {note}")


def _percent(estimate: "MeanEstimate", sign: str = "") -> str:
    return f"{estimate.value:{sign}.1%} ({estimate.low:{sign}.1%} to {estimate.high:{sign}.1%})"
