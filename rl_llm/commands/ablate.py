"""`rl-llm ablate`: run a study (arms x seeds) and judge its hypotheses."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_llm.commands import train
from rl_llm.commands.common import (
    DONE,
    FAILED,
    NO_DEVICE,
    WRONG_USAGE,
    UsageError,
    add_accept,
    check_accept,
    no_device,
    positive,
)
from rl_llm.commands.watching import add_track, check_trackers
from rl_llm.config.terminal import show

if TYPE_CHECKING:
    from rl_llm.runs.ledger import Ledger
    from rl_llm.studies.hardware import Hardware
    from rl_llm.studies.runner import StudySchedule
    from rl_llm.studies.study import Study

SUMMARY = "run a study: compare variants (arms) over several seeds, with verdicts on its hypotheses"
EXAMPLES = """examples:
  rl-llm ablate experiments/paper/t3_group_mean_batch_std.py                    five seeds, small enough for a CPU
  rl-llm ablate experiments/paper/t3_group_mean_batch_std.py --scale smoke      does it run? (a minute or two)
  rl-llm ablate experiments/paper/t3_group_mean_batch_std.py --seeds 8 --resume       resume, or add seeds
  rl-llm ablate experiments/recipes.py --budget-tokens 200000 --budget-minutes 60     any module with an ABLATION

A member of a study is one arm with one seed; its folder is an ordinary run folder. Members run seed by seed, so an
interrupted study can already be compared. Failed members are named and left out; --resume starts them again.
A second command for the same folder is refused while the first one runs, and names it. `rl-llm repair` mends a folder
that two commands wrote at the same time with an earlier version.
Adding seeds to a judged study, including seeds that a budget left out, makes its verdicts stricter: the 5 % error rate
is divided among its judgements.

exit codes: 0 done, 1 some members failed, 2 wrong usage, 143 stopped by SIGTERM, 130 by Ctrl-C (run again with
--resume; a second Ctrl-C ends at once)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ablate`."""
    parser.add_argument("module", metavar="MODULE", help="a Python file with a STUDY, or an ABLATION")
    parser.add_argument("--scale", default="cpu", help="smoke, cpu or paper, if STUDY has it (default: cpu)")
    parser.add_argument("--seeds", type=positive, metavar="N", help="seeds 0 to N - 1 (default: the study's)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="study folder (default: runs/studies/FILE-SCALE)")
    shared = "folder for starting policies and compiled programs; studies may share it (default: --out)"
    parser.add_argument("--shared", type=Path, metavar="DIR", help=shared)
    parser.add_argument("--resume", action="store_true", help="resume the study in --out; start one if there is none")
    add_accept(parser)
    add_track(parser)
    tokens = "end every member when it has generated N tokens, or after its steps"
    parser.add_argument("--budget-tokens", type=positive, metavar="N", help=tokens)
    minutes = "start no member that would end after M minutes"
    parser.add_argument("--budget-minutes", type=float, metavar="M", help=minutes)
    dollars = "start no member that would exceed X dollars; needs --dollars-per-hour"
    parser.add_argument("--budget-dollars", type=float, metavar="X", help=dollars)
    parser.add_argument("--dollars-per-hour", type=float, metavar="P", help="price of this machine")
    jobs = "members or populations that run at the same time (default: one per CPU core; 1 on accelerators)"
    parser.add_argument("--jobs", type=positive, metavar="J", help=jobs)
    parser.add_argument(
        "--population",
        type=positive,
        metavar="N",
        help="vectorise up to N members that differ only in seeds and numbers (default: as many as fit into the memory "
        "of a single accelerator, at most 64; 1 on CPU and with several devices)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run a study, or the rest of one: every arm with every seed, paired by seed, and then the verdicts.

    Writes study.json (the study as registered before the first run), the members' run folders, ledger.jsonl,
    results.json, report.html and report.md into the study folder.
    """
    from rl_llm.config import ExperimentError
    from rl_llm.parallel.numbers import partition
    from rl_llm.runs.ledger import LedgerError
    from rl_llm.studies.folder import COMPILED, StudyFolderError, members, open_study, registered_code
    from rl_llm.studies.hardware import probe_hardware
    from rl_llm.studies.lock import lock_study
    from rl_llm.studies.runner import StudySchedule
    from rl_llm.studies.study import load_study

    seconds, accept = _seconds(arguments), arguments.accept_code_changes
    check_accept(arguments)
    check_trackers(arguments.track)
    try:
        study, prefix = load_study(arguments.module, arguments.scale)
        study = study.with_budget(arguments.budget_tokens) if arguments.budget_tokens else study
    except (ExperimentError, ValueError) as error:
        raise UsageError(str(error)) from error
    out = arguments.out or Path("runs/studies") / f"{Path(arguments.module).stem}-{arguments.scale}"
    seeds = arguments.seeds or study.seeds
    try:
        here = probe_hardware()
    except NO_DEVICE as error:
        raise no_device(error) from error
    cores, population = _cores(here.platform, arguments.jobs), _population(here, arguments)
    overrides = [f"token_budget={arguments.budget_tokens}"] if arguments.budget_tokens else []
    compiled = (arguments.shared or out) / COMPILED
    runs = members(study, out, seeds, arguments.shared)
    structures = {name: partition(arm)[1] for name, arm in study.experiments.items()}
    asked = (arguments.module, arguments.scale, seeds, arguments.resume, arguments.budget_tokens, arguments.shared)
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(lock_study(out))
            ledger = open_study(out, study, *asked, accept, lock.check)
            code = registered_code(out)
        except (StudyFolderError, LedgerError, ValueError, OSError) as error:
            raise UsageError(str(error)) from error
        settings = cores, compiled, overrides, seconds, population, structures, code, accept, arguments.track
        return _carry_out(study, StudySchedule(out, prefix, runs, train_members, *settings), ledger)


def _carry_out(study: "Study", schedule: "StudySchedule", ledger: "Ledger") -> int:
    """Run the members of a locked study, and judge it."""
    from rl_llm.runs.lock import FolderLostError
    from rl_llm.runs.preemption import Preempted
    from rl_llm.studies.folder import StudyFolderError
    from rl_llm.studies.report import write_results
    from rl_llm.studies.runner import run_study

    try:
        outcome = run_study(schedule, ledger)
        ledger.check()
        show(write_results(schedule.out, study, schedule.members))
    except Preempted as stop:
        show(f"{stop}; resume with the same command and --resume", file=sys.stderr)
        return 128 + stop.signal
    except (StudyFolderError, FolderLostError) as error:
        show(f"rl-llm ablate: {error}", file=sys.stderr)
        return FAILED
    if outcome.left_out:
        show(f"{len(outcome.left_out)} members did not fit into the budget: raise it and use --resume", file=sys.stderr)
    for member, why in outcome.failed.items():
        show(f"{member} failed: {why}", file=sys.stderr)
    return FAILED if outcome.failed else DONE


def train_members(commands: Sequence[list[str]], logs: Sequence[Path]) -> list[int]:
    """Run `rl-llm train` with the arguments of each command, several as one population; returns the exit codes.

    Members of a population print into their own logs. Call this in the main thread: only that one receives signals.
    """
    from rl_llm.parallel import hosts
    from rl_llm.parallel.population import run_together
    from rl_llm.runs.preemption import StopSignal
    from rl_llm.studies.workers import printing_to, thread_logs

    if len(commands) == 1:
        return [train_member(commands[0])]

    def train_logged(command: list[str], log: Path) -> int:
        with printing_to(log):
            return train_member(command)

    hosts.join()
    with StopSignal(), thread_logs():
        return run_together([partial(train_logged, *pair) for pair in zip(commands, logs, strict=True)])


def train_member(arguments: list[str]) -> int:
    """Run `rl-llm train` in this process, which may have run others before; returns the exit code."""
    parser = argparse.ArgumentParser(prog="rl-llm train")
    train.add_arguments(parser)
    try:
        return train.run(parser.parse_args(arguments), time.monotonic())
    except UsageError as error:
        show(f"rl-llm train: {error}", file=sys.stderr)
        return WRONG_USAGE
    except Exception:
        traceback.print_exc()
        return FAILED


def _seconds(arguments: argparse.Namespace) -> float | None:
    """The budget in seconds; None without one."""
    dollars, price = arguments.budget_dollars, arguments.dollars_per_hour
    if (dollars is None) != (price is None):
        raise UsageError("--budget-dollars X and --dollars-per-hour P need each other: the budget is X / P hours")
    for option in ("budget_minutes", "budget_dollars", "dollars_per_hour"):
        value = getattr(arguments, option)
        if value is not None and not value > 0:  # NaN included, which would limit nothing
            raise UsageError(f"--{option.replace('_', '-')} {value:g} must be above 0")
    limits = [60.0 * arguments.budget_minutes] if arguments.budget_minutes is not None else []
    limits += [3600.0 * dollars / price] if dollars is not None else []
    return min(limits, default=None)


def _population(here: "Hardware", arguments: argparse.Namespace) -> int:
    """Members of a population."""
    from rl_llm.studies.hardware import members_that_fit

    asked: int | None = arguments.population
    if "wandb" in arguments.track:
        if asked not in (None, 1):
            raise UsageError(f"--population {asked} cannot act with --track wandb: a process shows one run; drop one")
        return 1
    if here.devices > 1:
        if asked not in (None, 1):
            raise UsageError(
                f"--population {asked} needs a single device; there are {here.devices}, all used by the mesh of a run: "
                "leave it out, or give the study one device (CUDA_VISIBLE_DEVICES=0)"
            )
        return 1
    return asked or (1 if here.platform == "cpu" else members_that_fit(arguments.module, arguments.scale))


def _cores(platform: str, jobs: int | None) -> list[list[int] | None]:
    """CPU cores of each worker: on CPU one each, so that they do not compete; all for an accelerator's one worker."""
    if platform != "cpu":
        if jobs not in (None, 1):
            raise UsageError(f"--jobs {jobs} cannot act: an accelerator belongs to one process at a time; leave it out")
        return [None]
    cores: list[Any] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    if len(cores) == 1 or jobs == 1:
        return [None] * (jobs or 1)
    return [[cores[index % len(cores)]] for index in range(jobs or len(cores))]
