"""`rl-llm ablate`: a study, arms x seeds, and the verdicts on its hypotheses."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_llm.commands import train
from rl_llm.commands.common import DONE, FAILED, PREEMPTED, WRONG_USAGE, UsageError

if TYPE_CHECKING:
    from rl_llm.studies.machine import Machine

SUMMARY = "run a study: arms x seeds, with verdicts on its hypotheses"
EXAMPLES = """examples:
  rl-llm ablate experiments/paper/t3_group_mean_batch_std.py                    five seeds at the scale of a CPU
  rl-llm ablate experiments/paper/t3_group_mean_batch_std.py --scale smoke      does it run? in a minute or two
  rl-llm ablate experiments/paper/t3_group_mean_batch_std.py --seeds 8 --resume       after an interruption, or for more
  rl-llm ablate experiments/recipes.py --budget-tokens 200000 --budget-minutes 60     any module with an ABLATION

Members run seed by seed, so what is there of a study that was cut off can be compared. Every member is an ordinary run
folder; what failed is named and left out of the comparison, and begun again with --resume.
Seeds that are added to a judged study, also those that a budget left out, make its verdicts stricter: the 5 % are
divided among its judgements.

exit codes: 0 done, 1 some members failed, 2 wrong usage, 143 preempted by SIGTERM (run again with --resume)"""


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("module", metavar="MODULE", help="a Python file with a STUDY, or an ABLATION")
    parser.add_argument(
        "--scale", default="cpu", help="smoke, cpu or paper: one of those that STUDY has (default: cpu)"
    )
    parser.add_argument("--seeds", type=_positive, metavar="N", help="seeds 0 to N - 1 (default: as the study says)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="study folder (default: runs/studies/FILE-SCALE)")
    parser.add_argument(
        "--shared",
        type=Path,
        metavar="DIR",
        help="for the policies that arms begin with, and compiled programs; studies may share it (default: --out)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out; start there if nothing is")
    parser.add_argument(
        "--budget-tokens",
        type=_positive,
        metavar="N",
        help="every arm ends when it has generated N tokens, or after its steps",
    )
    parser.add_argument(
        "--budget-minutes", type=float, metavar="M", help="begin no member that would end later than in M minutes"
    )
    parser.add_argument(
        "--budget-dollars", type=float, metavar="X", help="the same for X dollars, with --dollars-per-hour"
    )
    parser.add_argument("--dollars-per-hour", type=float, metavar="P", help="price of this machine")
    parser.add_argument(
        "--jobs",
        type=_positive,
        metavar="J",
        help="members, or populations, at a time (default: one for each CPU core; 1 on accelerators)",
    )
    parser.add_argument(
        "--population",
        type=_positive,
        metavar="N",
        help="up to N members that differ in seeds and numbers alone run as one, vectorised (default: as many as fit "
        "into the memory of a single accelerator, 64 at most; 1 on CPU and with several devices)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Run a study, or what is left of it: arms x seeds, each an ordinary run, paired by seed; then the verdicts.

    The study folder gets study.json (what was registered before the first run), the members' run folders, ledger.jsonl,
    results.json, report.html and report.md.
    """
    from rl_llm.config import ExperimentError
    from rl_llm.parallel.numbers import Numbers
    from rl_llm.runs.ledger import LedgerError
    from rl_llm.runs.preemption import Preempted
    from rl_llm.studies.folder import COMPILED, StudyFolderError, members, open_study
    from rl_llm.studies.machine import machine
    from rl_llm.studies.report import write_results
    from rl_llm.studies.runner import Plan, carry_out
    from rl_llm.studies.study import load_study

    seconds = _seconds(arguments)
    try:
        study, prefix = load_study(arguments.module, arguments.scale)
        study = study.with_budget(arguments.budget_tokens) if arguments.budget_tokens else study
    except (ExperimentError, ValueError) as error:
        raise UsageError(str(error)) from error
    out = arguments.out or Path("runs/studies") / f"{Path(arguments.module).stem}-{arguments.scale}"
    seeds = arguments.seeds or study.seeds
    here = machine()
    cores, population = _cores(here.platform, arguments.jobs), _population(here, arguments)
    try:
        asked = (arguments.module, arguments.scale, seeds, arguments.resume, arguments.budget_tokens, arguments.shared)
        ledger = open_study(out, study, *asked)
    except (StudyFolderError, LedgerError, OSError) as error:
        raise UsageError(str(error)) from error
    overrides = [f"token_budget={arguments.budget_tokens}"] if arguments.budget_tokens else []
    compiled = (arguments.shared or out) / COMPILED
    runs = members(study, out, seeds, arguments.shared)
    structures = {name: Numbers.of(arm).structure for name, arm in study.experiments.items()}
    plan = Plan(out, prefix, runs, train_members, cores, compiled, overrides, seconds, population, structures)
    try:
        outcome = carry_out(plan, ledger)
    except Preempted as stop:
        print(f"{stop}; go on with the same command and --resume", file=sys.stderr)
        return PREEMPTED
    try:
        print(write_results(out, study, plan.members))
    except StudyFolderError as error:
        print(f"rl-llm ablate: {error}", file=sys.stderr)
        return FAILED
    if outcome.left_out:
        print(f"{len(outcome.left_out)} members were left to a larger budget: go on with --resume", file=sys.stderr)
    for member, why in outcome.failed.items():
        print(f"{member} failed: {why}", file=sys.stderr)
    return FAILED if outcome.failed else DONE


def train_members(commands: Sequence[list[str]], logs: Sequence[Path]) -> list[int]:
    """The exit codes of `rl-llm train` with the arguments of each command: of one as it is, of several as a population.
    Each prints into a log of its own. To be called by the main thread, which alone hears of signals.
    """
    from rl_llm.parallel import hosts
    from rl_llm.parallel.population import run_together
    from rl_llm.runs.preemption import StopSignal
    from rl_llm.studies.streams import logs_of_threads, printing_to

    if len(commands) == 1:
        return [train_member(commands[0])]

    def of_member(command: list[str], log: Path) -> int:
        with printing_to(log):
            return train_member(command)

    hosts.join()
    with StopSignal(), logs_of_threads():
        return run_together([partial(of_member, *pair) for pair in zip(commands, logs, strict=True)])


def train_member(arguments: list[str]) -> int:
    """`rl-llm train` with these arguments, in a process that may have run others before."""
    parser = argparse.ArgumentParser(prog="rl-llm train")
    train.add(parser)
    try:
        return train.run(parser.parse_args(arguments), time.monotonic())
    except UsageError as error:
        print(f"rl-llm train: {error}", file=sys.stderr)
        return WRONG_USAGE
    except (Exception, KeyboardInterrupt):
        traceback.print_exc()
        return FAILED


def _seconds(arguments: argparse.Namespace) -> float | None:
    """What may be spent."""
    dollars, price = arguments.budget_dollars, arguments.dollars_per_hour
    if (dollars is None) != (price is None):
        raise UsageError("--budget-dollars X and --dollars-per-hour P go together: X / P hours may be spent")
    for option in ("budget_minutes", "budget_dollars", "dollars_per_hour"):
        value = getattr(arguments, option)
        if value is not None and not value > 0:  # nor what is not a number, which would limit nothing
            raise UsageError(f"--{option.replace('_', '-')} {value:g}: a budget and a price are more than 0")
    limits = [60.0 * arguments.budget_minutes] if arguments.budget_minutes is not None else []
    limits += [3600.0 * dollars / price] if dollars is not None else []
    return min(limits, default=None)


def _population(here: "Machine", arguments: argparse.Namespace) -> int:
    """How many members run as one."""
    from rl_llm.studies.machine import members_that_fit

    asked: int | None = arguments.population
    if here.devices > 1:
        if asked not in (None, 1):
            raise UsageError(
                f"--population {asked}: members are vectorised on one device, and there are {here.devices}, which a "
                "run's mesh is made of: leave it out, or show the study one device (CUDA_VISIBLE_DEVICES=0)"
            )
        return 1
    return asked or (1 if here.platform == "cpu" else members_that_fit(arguments.module, arguments.scale))


def _cores(platform: str, jobs: int | None) -> list[list[int] | None]:
    """The cores of each worker: on CPU one each, so that they do not wait for each other; an accelerator has one worker
    with all of them.
    """
    if platform != "cpu":
        if jobs not in (None, 1):
            raise UsageError(f"--jobs {jobs}: an accelerator belongs to one process at a time; leave it out")
        return [None]
    cores: list[Any] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    if len(cores) == 1 or jobs == 1:
        return [None] * (jobs or 1)
    return [[cores[index % len(cores)]] for index in range(jobs or len(cores))]
