"""`rl-llm repair`: join the ledger of a study that two commands wrote at the same time."""

import argparse
import sys
from pathlib import Path

from rl_llm.commands.common import DONE, FAILED, UsageError
from rl_llm.config.terminal import show

SUMMARY = "repair the folder of a study that two commands wrote at the same time"
EXAMPLES = """examples:
  rl-llm repair runs/studies/recipes-cpu
  rl-llm ablate experiments/recipes.py --resume      then run the members that are missing, and judge

exit codes: 0 repaired, or nothing to repair; 1 the ledger was edited or damaged; 2 wrong usage, or in use"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `repair`."""
    parser.add_argument("folder", type=Path, metavar="STUDY", help="the folder of a study, which is not running")


def run(arguments: argparse.Namespace) -> int:
    """Make a study readable again whose ledger two `rl-llm ablate` wrote at the same time.

    Today the second one is refused. Without that lock both appended to ledger.jsonl, each to the last entry that it
    knew, and `ablate --resume` and `report` refuse such a ledger: "the entry does not follow the one before".

    The entries of both are joined into one chain, those of the second after those of the first, and an entry
    `repaired` says so. The ledger as it was is kept beside it. No run folder is touched, so every finished member
    counts. A ledger with lines that were edited, removed or moved is refused: nothing is changed.
    """
    from rl_llm.runs.ledger import LedgerError
    from rl_llm.studies.folder import REGISTERED, StudyFolderError
    from rl_llm.studies.lock import lock_study
    from rl_llm.studies.repair import repair_ledger

    folder: Path = arguments.folder
    if not (folder / REGISTERED).is_file():
        raise UsageError(f"{folder} is not the folder of a study: it has no {REGISTERED}. Only studies are repaired")
    try:
        with lock_study(folder):
            repaired = repair_ledger(folder)
    except (LedgerError, OSError) as error:
        show(f"rl-llm repair: {error}", file=sys.stderr)
        return FAILED
    except StudyFolderError as error:
        raise UsageError(str(error)) from error
    if repaired is None:
        show(f"{folder}: nothing to repair, the entries of its ledger form one chain")
        return DONE
    for number, branch in enumerate(repaired.branches, start=1):
        events = f"{len(branch)} entries from {branch[0]['time']} to {branch[-1]['time']}"
        show(f"part {number}: {events}, `{branch[0]['event']}` to `{branch[-1]['event']}`")
    finished = len(list(folder.glob("*/summary.json")))
    show(f"{folder}: joined the {len(repaired.branches)} parts of its ledger; as it was: {repaired.copy}")
    show(
        f"its {finished} finished runs are untouched. Go on with rl-llm ablate ... --resume, or rl-llm report {folder}"
    )
    return DONE
