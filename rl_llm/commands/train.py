"""`rl-llm train`: run one experiment."""

import argparse
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_llm.commands.common import (
    DONE,
    FAILED,
    STARTED,
    UsageError,
    add_accept,
    add_experiment,
    add_trust,
    check_accept,
    check_devices,
    resolve_experiment,
    seed,
    trust_folders,
)
from rl_llm.commands.watching import add_profile, add_track, watchers_of
from rl_llm.config.terminal import make_console, show

if TYPE_CHECKING:
    from rl_llm.config import Code
    from rl_llm.experiment import Experiment
    from rl_llm.parallel.mesh import Meshes
    from rl_llm.prepare import Problems
    from rl_llm.runs.load import SourceModels
    from rl_llm.runs.watcher import Watcher

SUMMARY = "train a model with RL: run one experiment"
EXAMPLES = """examples:
  rl-llm train experiments/quickstart.py                       minutes on two CPU cores
  rl-llm train experiments/quickstart.py --set optimizer.learning_rate=2e-4 --seed 3 --out runs/slower
  rl-llm train experiments/quickstart.py --out runs/slower --resume      resume after an interruption
  rl-llm train experiments/quickstart.py --smoke               does it run at all? seconds, with tiny sizes
  rl-llm train experiments/quickstart.py --track wandb         follow it in Weights & Biases as well
  rl-llm train experiments/quickstart.py --profile 3:5         trace three RL steps, for Perfetto or XProf

exit codes: 0 done, 1 failed, 2 wrong usage, 143 stopped by SIGTERM, 130 by Ctrl-C (state saved: run again with
--resume; a second Ctrl-C ends at once)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train`."""
    add_experiment(parser)
    parser.add_argument("--seed", type=seed, default=0, help="seed of all randomness (default: 0)")
    parser.add_argument("--out", type=_folder, metavar="DIR", help="run folder (default: runs/FILE[-NAME]-seedN)")
    resume = "resume from the newest good checkpoint in --out; start a run if there is none"
    parser.add_argument("--resume", action="store_true", help=resume)
    smoke = "make it a run of seconds: few steps, problems and tokens, and a tiny model unless there is a start"
    parser.add_argument("--smoke", action="store_true", help=f"{smoke} (default --out: runs/smoke/...)")
    add_accept(parser)
    add_trust(parser)
    add_track(parser)
    add_profile(parser)


def _folder(text: str) -> Path:
    """Parse a folder of a file system. Buckets have no locks, no renames and no appending."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is a bucket; a run folder needs a disk that all hosts share: mount the bucket (gcsfuse) and give "
            "the folder where it is mounted"
        )
    return Path(text)


def run(arguments: argparse.Namespace, started: float = STARTED) -> int:
    """Run an experiment: warm start, reinforcement learning, evaluation before and after, report.

    Writes experiment.json, code/, metrics.jsonl, samples.jsonl, ledger.jsonl, checkpoints/, summary.json and
    report.html into the run folder.
    """
    from rl_llm.config import ExperimentError, code_of
    from rl_llm.parallel import hosts
    from rl_llm.prepare import prepare, problems_fingerprint
    from rl_llm.runs.record import experiment_record

    check_accept(arguments)
    name, experiment = resolve_experiment(arguments.experiment, arguments.overrides)
    try:
        code = code_of(arguments.experiment, experiment)  # now: the files may change while the run is prepared
        hosts.join()
    except (ExperimentError, hosts.HostsError) as error:
        raise UsageError(str(error)) from error
    check_devices()
    spec, out = arguments.experiment, arguments.out or _default_folder(arguments.experiment, name, arguments.seed)
    if arguments.smoke:
        experiment, out = _smoke(arguments, experiment, out)
    watchers = watchers_of(arguments, experiment.steps)
    from rl_llm.runs.checkpoint import CheckpointError
    from rl_llm.runs.folder import RunFolderError
    from rl_llm.runs.load import RecordError

    if arguments.trust:
        trust_folders(*_loaded_runs(experiment))
    _say(f"run folder  {out}\npreparing: devices, problems, weights ...")
    try:
        meshes, problems, sources = prepare(experiment, arguments.seed)
        identity = problems_fingerprint(problems, sources)
        own = spec, arguments.overrides, arguments.seed
        record = experiment_record(experiment, *own, identity, sources.origins, code)
    except (ValueError, OSError, ImportError, RecordError, CheckpointError) as error:
        raise UsageError(str(error)) from error

    from rl_llm.rewards.grader import GradingError
    from rl_llm.runs.divergence import DivergedError
    from rl_llm.runs.lock import FolderLostError
    from rl_llm.runs.preemption import Preempted
    from rl_llm.train import GateError

    try:
        summary = _train(arguments, out, experiment, (meshes, problems, sources), record, code, started, watchers)
    except Preempted as stop:
        if hosts.writes():
            show(f"{stop}; resume with:\n  {_resume_command(arguments, out)}", file=sys.stderr)
        return 128 + stop.signal
    except RunFolderError as error:
        raise UsageError(str(error)) from error
    except (GateError, GradingError, DivergedError, CheckpointError, FolderLostError) as error:
        show(f"rl-llm train: {error}", file=sys.stderr)
        return FAILED
    if hosts.writes():
        _print_summary(summary)
        show(f"run folder  {out}\nreport      {summary['report']}")
    return DONE


def _resume_command(arguments: argparse.Namespace, out: Path) -> str:
    again = ["rl-llm", "train", arguments.experiment, "--seed", str(arguments.seed), "--out", str(out), "--resume"]
    again += [part for item in arguments.overrides for part in ("--set", item)]
    return shlex.join([*again, *(part for name in arguments.track for part in ("--track", name))])


def _loaded_runs(experiment: "Experiment") -> list[str]:
    """Run folders that an experiment starts from or learns from."""
    runs = [source.run for source in (experiment.teacher, experiment.reward_model) if source]
    loaded = [folder for folder in (experiment.start, *runs) if folder]
    return [folder for folder in loaded if (Path(folder) / "experiment.json").is_file()]


def _train(
    arguments: argparse.Namespace,
    out: Path,
    experiment: "Experiment",
    prepared: "tuple[Meshes, Problems, SourceModels]",
    record: dict[str, Any],
    code: "Code",
    started: float,
    watchers: "list[Watcher]",
) -> dict[str, Any]:
    """Start the grading processes, pass the gate, open the folder, train. A refusal leaves no folder."""
    from rl_llm.commands.gate import pass_gate
    from rl_llm.commands.more_steps import fewer_steps
    from rl_llm.evaluation.shared import shared_problems
    from rl_llm.parallel import hosts
    from rl_llm.reports.run_report import REPORT, write_report
    from rl_llm.rewards.grader import GradingError
    from rl_llm.rollout.engine import open_grader
    from rl_llm.runs.checkpoint import CheckpointError
    from rl_llm.runs.divergence import DivergedError
    from rl_llm.runs.folder import RunFolderError
    from rl_llm.runs.ledger import LedgerError
    from rl_llm.runs.lock import FolderLostError
    from rl_llm.runs.preemption import Preempted
    from rl_llm.runs.run import open_folder
    from rl_llm.train import GateError, train

    (_, problems, sources), seed = prepared, arguments.seed
    keep, accept = experiment.checkpointing.keep, arguments.accept_code_changes
    notes = *sources.notes, *shared_problems(experiment, experiment.evaluation.suites, problems)
    with ExitStack() as stack:
        grader = stack.enter_context(open_grader(experiment))
        try:
            if accept or not hosts.on_writer((out / "experiment.json").exists):  # a run in it has passed
                _say("checking the verifier with the problems' own answers ...")
                notes = *notes, hosts.on_writer(lambda: pass_gate(experiment, problems, seed, grader))
            begun = fewer_steps(experiment, out) if arguments.resume else None
            folder = stack.enter_context(open_folder(out, record, arguments.resume, keep, code, accept, begun))
        except (ValueError, OSError, RunFolderError, LedgerError) as error:
            raise UsageError(str(error)) from error
        for note in filter(None, notes) if hosts.writes() else ():
            show(note)
        try:
            head, report = folder.ledger.head, folder.path / REPORT
            summary = train(experiment, seed, *prepared, folder, started, grader, watchers)
            if folder.ledger.head != head or not hosts.on_writer(report.exists):  # else it had ended before
                hosts.on_writer(folder.check)
                hosts.on_writer(lambda: write_report(folder.path))
            return summary | {"report": str(report)}
        except (Preempted, RunFolderError, GateError, GradingError, DivergedError, CheckpointError):
            raise
        except FolderLostError as error:  # only the writer may have found out
            hosts.leave_others(FAILED, f"rl-llm train: {error}")
            raise
        except (Exception, KeyboardInterrupt):  # unlike those above, perhaps in one process only
            hosts.leave_others(FAILED)
            raise


def _smoke(arguments: argparse.Namespace, experiment: "Experiment", out: Path) -> "tuple[Experiment, Path]":
    """Make an experiment small, add its changes to the `--set` arguments, and choose its folder."""
    import jax

    from rl_llm.commands.smoke import free_folder, make_small
    from rl_llm.parallel import hosts

    small, assignments, replaced = make_small(experiment, arguments.overrides, jax.device_count())
    pairs = (one.partition("=") for one in assignments)
    listed = ", ".join(f"{place}={value} (was {replaced[place]})" for place, _, value in pairs)
    kept = f"; the model stays that of start={experiment.start}" if experiment.start is not None else ""
    _say(f"smoke run: {listed or 'nothing had to change'}{kept}")
    arguments.overrides += assignments
    return small, arguments.out or hosts.on_writer(lambda: free_folder(out, arguments.resume))


def _say(text: str) -> None:
    """Print where a run is before its display opens."""
    from rl_llm.parallel import hosts

    if hosts.writes():
        show(text, file=sys.stderr)


def _default_folder(spec: str, name: str, seed: int) -> Path:
    stem = Path(spec.partition(":")[0] if not Path(spec).exists() else spec).stem
    return Path("runs") / f"{stem}{'' if name == 'base' else '-' + name}-seed{seed}"


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("held-out problems", "before RL", "after RL")
    for title, key, form in (
        ("accuracy, sampled", "accuracy", "{:.1%}"),
        ("accuracy, greedy", "greedy", "{:.1%}"),
        ("response length, tokens", "response_length", "{:.1f}"),
    ):
        table.add_row(title, *(form.format(summary[f"{key}_{when}"]) for when in ("before", "after")))
    console = make_console()
    console.print(table)
    console.print(
        f"{summary['tokens_generated']:,} tokens generated, {summary['flops']:.3g} FLOPs of RL, "
        f"{summary['wall_seconds']:.0f} s"
    )
    if summary["findings"]:
        found = ", ".join(f"{finding['name']} (RL step {finding['step']})" for finding in summary["findings"])
        console.print(f"findings    {found}: see the report", soft_wrap=True)
