"""`rl-llm report`: write the reports of a run folder or of a study folder, or compare runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rl_llm.commands.common import DONE, FAILED, UsageError, add_trust, check_output, trust_folders
from rl_llm.config.terminal import show

SUMMARY = "write the report of a run or of a study, or compare runs"
EXAMPLES = """examples:
  rl-llm report runs/slower
  rl-llm report runs/slower runs/faster              one page with the curves of both and their differences
  rl-llm report runs/studies/t3_group_mean_batch_std-cpu      report.html, report.md and results.json of a study"""
STUDY, RUN = "study.json", "experiment.json"
LONGEST_NAME = 100  # characters of the page's name; file systems take 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    several = "a run folder or a study folder, finished or not; several run folders are compared"
    parser.add_argument("folders", type=Path, metavar="FOLDER", nargs="+", help=several)
    out = "page of a comparison (default: compared_with_OTHERS.html in the first folder)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=out)
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write report.html of a run folder, finished or not, and print its path.

    For a study folder, write results.json and report.md as well, from the study as it was registered. For several run
    folders, write one page with all their curves, their results and the differences of their settings.

    The files of a run are held against its ledger, and the ledger against summary.json and the checkpoints. An edit of
    one of them is named, here and on the page; the exit code is 1 then. The page says what was checked.
    """
    first, *others = folders = arguments.folders
    for folder in folders:
        if not ((folder / RUN).is_file() or (folder / STUDY).is_file()):
            raise UsageError(f"{folder} is not a run folder ({RUN}) or a study folder ({STUDY})")
    if arguments.trust and (others or not (first / STUDY).is_file()):
        raise UsageError("--trust cannot act: the report of a run runs none of its code; that of a study does")
    if arguments.trust:
        trust_folders(first)
    if not others:
        if arguments.out is not None:
            raise UsageError(f"--out {arguments.out} cannot act: the report of one folder is its report.html")
        if (first / STUDY).is_file():
            return _report_study(first)
    from rl_llm.reports.comparison import write_comparison
    from rl_llm.reports.run_report import contradictions, write_report

    try:
        show(write_comparison(folders, _page(folders, arguments.out)) if others else write_report(first))
    except ValueError as error:
        show(f"rl-llm report: {error}; no page was written, and one that is there is older", file=sys.stderr)
        return FAILED
    wrong = [f"rl-llm report: {folder}: {fault}" for folder in folders for fault in contradictions(folder)]
    for fault in wrong:
        show(fault, file=sys.stderr)
    return FAILED if wrong else DONE


def _page(folders: Sequence[Path], out: Path | None) -> Path:
    """Page of a comparison. Raises UsageError if the folders cannot be compared, or the page cannot be written."""
    for index, folder in enumerate(folders):
        if (folder / STUDY).is_file():
            raise UsageError(f"{folder} is a study, whose own report compares its arms; give its run folders")
        if folder.resolve() in [other.resolve() for other in folders[:index]]:
            raise UsageError(f"{folder} is given twice; give different runs")
    check_output("out", out, overwrite=True)
    if out is not None and out.is_dir():
        raise UsageError(f"--out {out} is a folder; give the file to write, such as {out / 'comparison.html'}")
    others = "_".join(folder.resolve().name for folder in folders[1:])
    return out or folders[0] / f"compared_with_{others[:LONGEST_NAME]}.html"


def _report_study(folder: Path) -> int:
    from rl_llm.config import ExperimentError
    from rl_llm.runs.ledger import LedgerError
    from rl_llm.studies.folder import StudyFolderError, changes_since, reopen_study
    from rl_llm.studies.report import write_results

    try:
        study, members = reopen_study(folder)
        if changes := changes_since(folder, study):
            note = f"note: the code has changed since the study in {folder}:"
            show(note, *changes.values(), file=sys.stderr)
        show(write_results(folder, study, members))
    except (ExperimentError, LedgerError, StudyFolderError) as error:
        raise UsageError(str(error)) from error
    return DONE
