"""The command line: `rl-llm VERB ...`. Usage errors end with exit code 2 before any device is started."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()  # a run's wall-clock seconds include the imports

DONE, FAILED, WRONG_USAGE, PREEMPTED = 0, 1, 2, 143

EXAMPLES = """examples:
  rl-llm train experiments/quickstart.py                       the main job on two CPU cores, in minutes
  rl-llm train experiments/quickstart.py --set optimizer.learning_rate=2e-4 --seed 3 --out runs/slower
  rl-llm train experiments/quickstart.py --out runs/slower --resume      go on after an interruption
  rl-llm evaluate runs/slower --problems 500                   more held-out problems, newest checkpoint
  rl-llm report runs/slower                                    rebuild report.html

exit codes: 0 done, 1 failed, 2 wrong usage, 143 preempted by SIGTERM (state saved: run again with --resume)"""


class UsageError(Exception):
    """What the user asked for cannot be done. The message names the value, the place and the way out."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except UsageError as error:
        print(f"rl-llm {parsed.verb}: {error}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        print(
            f"rl-llm {parsed.verb}: interrupted; a run goes on from its newest checkpoint with --resume",
            file=sys.stderr,
        )
        return FAILED


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="rl-llm",
        description="Reinforcement learning of language-model reasoning in pure-functional JAX.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = verbs.add_parser(
        "train", help="run an experiment", description=_train.__doc__, epilog=EXAMPLES, formatter_class=raw
    )
    train.add_argument(
        "experiment",
        metavar="EXPERIMENT[:NAME]",
        help="a Python file, and the name of a value in it or in its ABLATION (default: base)",
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=v",
        dest="overrides",
        help="change one value of the experiment; may be repeated",
    )
    train.add_argument("--seed", type=int, default=0, help="seed of every draw (default: 0)")
    train.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/FILE[-NAME]-seedN)")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest good checkpoint in --out; start there if there is no run",
    )
    train.set_defaults(run=_train)

    evaluate = verbs.add_parser(
        "evaluate", help="evaluate a run's newest checkpoint", description=_evaluate.__doc__, formatter_class=raw
    )
    evaluate.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    evaluate.add_argument("--split", choices=("train", "validation", "held_out"), default="held_out")
    evaluate.add_argument("--problems", type=int, metavar="N", help="how many problems (default: as in the experiment)")
    evaluate.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="sampling temperature, 0 for greedy (default: as in the experiment)",
    )
    evaluate.set_defaults(run=_evaluate)

    report = verbs.add_parser("report", help="write report.html of a run folder", description=_report.__doc__)
    report.add_argument("folder", type=Path, metavar="RUN", help="a run folder, finished or not")
    report.set_defaults(run=_report)
    return parser


def _load(spec: str, overrides: list[str]) -> tuple[str, Any]:
    """The experiment of a spec with its overrides; what is wrong with either is a usage error."""
    from rl_llm.config import ExperimentError, OverrideError, load_experiment, override
    from rl_llm.experiment import Experiment

    try:
        name, experiment = load_experiment(spec, Experiment)
        return name, override(experiment, overrides)
    except (ExperimentError, OverrideError) as error:
        raise UsageError(str(error)) from error


def _train(arguments: argparse.Namespace) -> int:
    """Run an experiment: warm start, reinforcement learning, evaluation before and after, report.

    The run folder gets experiment.json, metrics.jsonl, samples.jsonl, ledger.jsonl, checkpoints/, summary.json and
    report.html.
    """
    from rl_llm.run import experiment_record, open_folder, prepare

    name, experiment = _load(arguments.experiment, arguments.overrides)
    spec, out = arguments.experiment, arguments.out or _default_folder(arguments.experiment, name, arguments.seed)
    from rl_llm.runs.folder import RunFolderError
    from rl_llm.runs.ledger import LedgerError

    try:
        mesh, problems = prepare(experiment, arguments.seed)
        record = experiment_record(experiment, spec, arguments.overrides, arguments.seed)
        folder = open_folder(out, record, arguments.resume, experiment.checkpointing.keep)
    except (ValueError, RunFolderError, LedgerError) as error:
        raise UsageError(str(error)) from error

    from rl_llm.runs.checkpoint import CheckpointError
    from rl_llm.runs.preemption import Preempted
    from rl_llm.train_rl import GateError, train

    with folder:
        try:
            summary = train(experiment, arguments.seed, mesh, problems, folder, STARTED)
        except Preempted as stop:
            again = f"rl-llm train {spec} --seed {arguments.seed} --out {out} --resume"
            again += "".join(f" --set {item}" for item in arguments.overrides)
            print(f"{stop}; go on with:\n  {again}", file=sys.stderr)
            return PREEMPTED
        except (GateError, CheckpointError) as error:
            print(f"rl-llm train: {error}", file=sys.stderr)
            return FAILED
    _print_summary(summary)
    print(f"run folder  {out}\nreport      {summary['report']}")
    return DONE


def _default_folder(spec: str, name: str, seed: int) -> Path:
    stem = Path(spec.partition(":")[0] if not Path(spec).exists() else spec).stem
    return Path("runs") / f"{stem}{'' if name == 'base' else '-' + name}-seed{seed}"


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("held-out problems", "before RL", "after RL")
    for title, key, form in (
        ("accuracy, sampled", "accuracy", "{:.1%}"),
        ("accuracy, greedy", "greedy", "{:.1%}"),
        ("response length, tokens", "response_length", "{:.1f}"),
    ):
        table.add_row(title, *(form.format(summary[f"{key}_{when}"]) for when in ("before", "after")))
    console = Console()
    console.print(table)
    console.print(
        f"{summary['tokens_generated']:,} tokens generated, {summary['flops']:.3g} FLOPs of RL, "
        f"{summary['wall_seconds']:.0f} s"
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate the newest good checkpoint of a run folder on one split and print the outcome as JSON.

    Accuracy over K samples per problem, pass@k, mean response length in tokens, share of truncated responses.
    """
    from rl_llm.run import read_experiment_record

    if arguments.problems is not None and arguments.problems < 1:
        raise UsageError(f"--problems must be at least 1, not {arguments.problems}")
    try:
        record = read_experiment_record(arguments.folder)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    _, experiment = _load(record["spec"], record["overrides"])

    from rl_llm.config import fingerprint
    from rl_llm.evaluation.checkpoint import evaluate_checkpoint

    if fingerprint(experiment) != record["fingerprint"]:
        raise UsageError(
            f"{record['spec']} has changed since the run in {arguments.folder}: its fingerprint is another one"
        )
    outcome = evaluate_checkpoint(
        experiment, record["seed"], arguments.folder, arguments.split, arguments.problems, arguments.temperature
    )
    print(json.dumps(outcome, indent=2))
    return DONE


def _report(arguments: argparse.Namespace) -> int:
    """Write report.html of a run folder, finished or not, and say where it is."""
    if not (arguments.folder / "experiment.json").is_file():
        raise UsageError(f"{arguments.folder} is not a run folder: it has no experiment.json")
    from rl_llm.runs.report import write_report

    print(write_report(arguments.folder))
    return DONE
