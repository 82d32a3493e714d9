"""`rl-llm report`: report.html of a run folder, or all reports of a study folder."""

import argparse
import sys
from pathlib import Path

from rl_llm.commands.common import DONE, FAILED, UsageError

SUMMARY = "write report.html of a run folder or a study folder"
EXAMPLES = """examples:
  rl-llm report runs/slower
  rl-llm report runs/studies/t3_group_mean_batch_std-cpu      report.html, report.md and results.json of a study"""


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run folder or a study folder, finished or not")


def run(arguments: argparse.Namespace) -> int:
    """Write report.html of a run folder, finished or not, and say where it is; of a study folder results.json and
    report.md, too, from the study as it was registered.
    """
    if (arguments.folder / "study.json").is_file():
        return _of_study(arguments.folder)
    if not (arguments.folder / "experiment.json").is_file():
        raise UsageError(f"{arguments.folder} is not a run folder (experiment.json), nor that of a study (study.json)")
    from rl_llm.runs.report import write_report

    try:
        print(write_report(arguments.folder))
    except ValueError as error:
        print(f"rl-llm report: {error}", file=sys.stderr)
        return FAILED
    return DONE


def _of_study(folder: Path) -> int:
    from rl_llm.config import ExperimentError
    from rl_llm.runs.ledger import LedgerError
    from rl_llm.studies.folder import StudyFolderError, reopen_study
    from rl_llm.studies.report import write_results

    try:
        print(write_results(folder, *reopen_study(folder)))
    except (ExperimentError, LedgerError, StudyFolderError) as error:
        raise UsageError(str(error)) from error
    return DONE
