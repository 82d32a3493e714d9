"""`rl-llm report`: write the reports of a run folder or of a study folder."""

import argparse
import sys
from pathlib import Path

from rl_llm.commands.common import DONE, FAILED, UsageError

SUMMARY = "write the report of a run or of a study"
EXAMPLES = """examples:
  rl-llm report runs/slower
  rl-llm report runs/studies/t3_group_mean_batch_std-cpu      report.html, report.md and results.json of a study"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run folder or a study folder, finished or not")


def run(arguments: argparse.Namespace) -> int:
    """Write report.html of a run folder, finished or not, and print its path.

    For a study folder, write results.json and report.md as well, from the study as it was registered.
    """
    if (arguments.folder / "study.json").is_file():
        return _report_study(arguments.folder)
    if not (arguments.folder / "experiment.json").is_file():
        raise UsageError(f"{arguments.folder} is not a run folder (experiment.json) or a study folder (study.json)")
    from rl_llm.reports.run_report import write_report

    try:
        print(write_report(arguments.folder))
    except ValueError as error:
        print(f"rl-llm report: {error}", file=sys.stderr)
        return FAILED
    return DONE


def _report_study(folder: Path) -> int:
    from rl_llm.config import ExperimentError
    from rl_llm.runs.ledger import LedgerError
    from rl_llm.studies.folder import StudyFolderError, changes_since, reopen_study
    from rl_llm.studies.report import write_results

    try:
        study, members = reopen_study(folder)
        if changes := changes_since(folder, study):
            note = f"note: the code has changed since the study in {folder}:"
            print(note, *changes.values(), sep="\n", file=sys.stderr)
        print(write_results(folder, study, members))
    except (ExperimentError, LedgerError, StudyFolderError) as error:
        raise UsageError(str(error)) from error
    return DONE
