"""`rl-llm report`: report.html of a run folder."""

import argparse
import sys
from pathlib import Path

from rl_llm.verbs.common import DONE, FAILED, UsageError

SUMMARY = "write report.html of a run folder"
EXAMPLES = "example:\n  rl-llm report runs/slower"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder, finished or not")


def run(arguments: argparse.Namespace) -> int:
    """Write report.html of a run folder, finished or not, and say where it is."""
    if not (arguments.folder / "experiment.json").is_file():
        raise UsageError(f"{arguments.folder} is not a run folder: it has no experiment.json")
    from rl_llm.runs.report import write_report

    try:
        print(write_report(arguments.folder))
    except ValueError as error:
        print(f"rl-llm report: {error}", file=sys.stderr)
        return FAILED
    return DONE
