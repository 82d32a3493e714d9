"""The command line: `rl-llm VERB ...`. Usage errors end with exit code 2 before any device is started."""

import argparse
import json
import sys
import time
from collections.abc import Callable
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


EVALUATE_EXAMPLES = """examples:
  rl-llm evaluate runs/slower                                  as the run itself did it
  rl-llm evaluate runs/slower --problems 500 --temperature 0   greedy, on more problems
  rl-llm evaluate runs/slower --split train                    has it learned its training problems by heart?
  rl-llm evaluate runs/slower --split train --problems 500 --samples graded.jsonl    to learn from elsewhere"""


EXPORT_EXAMPLES = """examples:
  rl-llm export runs/slower --out exported/slower              the newest policy, for transformers
  rl-llm export runs/slower --out gs://bucket/slower --like Qwen3-4B-Base"""


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
    parser = argparse.ArgumentParser(
        prog="rl-llm",
        description="Reinforcement learning of language-model reasoning in pure-functional JAX.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_train(_verb(verbs, _train, "run an experiment", EXAMPLES))
    _add_evaluate(_verb(verbs, _evaluate, "evaluate a run's newest checkpoint", EVALUATE_EXAMPLES))
    _add_export(_verb(verbs, _export, "write a run's policy as a Hugging Face folder", EXPORT_EXAMPLES))
    _add_report(_verb(verbs, _report, "write report.html of a run folder", "example:\n  rl-llm report runs/slower"))
    return parser


def _verb(verbs: Any, run: Callable[[argparse.Namespace], int], summary: str, examples: str) -> argparse.ArgumentParser:
    """The parser of one verb, named and described by the function that runs it."""
    raw = argparse.RawDescriptionHelpFormatter
    name = run.__name__.removeprefix("_")
    parser = verbs.add_parser(name, help=summary, description=run.__doc__, epilog=examples, formatter_class=raw)
    parser.set_defaults(run=run)
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
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
    train.add_argument("--seed", type=_seed, default=0, help="seed of every draw (default: 0)")
    train.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/FILE[-NAME]-seedN)")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest good checkpoint in --out; start there if there is no run",
    )


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    evaluate.add_argument("--split", choices=("train", "validation", "held_out"), default="held_out")
    evaluate.add_argument("--problems", type=int, metavar="N", help="how many problems (default: as in the experiment)")
    evaluate.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="sampling temperature, 0 for greedy (default: as in the experiment)",
    )
    evaluate.add_argument(
        "--samples", type=Path, metavar="FILE", help="write all responses with their rewards there (StoredResponses)"
    )
    evaluate.add_argument(
        "--logits", type=int, default=0, metavar="K", help="with --samples: and the K likeliest tokens at each place"
    )


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    export.add_argument("--out", required=True, metavar="DIR", help="the folder to write, on a disk or in a bucket")
    export.add_argument(
        "--like",
        metavar="FOLDER",
        help="write the same files as this one, tokenizer included (default: the run's start)",
    )
    export.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="without --like (default: bfloat16)"
    )


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument("folder", type=Path, metavar="RUN", help="a run folder, finished or not")


def _seed(text: str) -> int:
    """A seed that JAX and NumPy both take as it is."""
    if not text.isdecimal() or not 0 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 to {2**32 - 1}, not {text!r}")
    return int(text)


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
    from rl_llm import hosts
    from rl_llm.prepare import fingerprint_of, prepare
    from rl_llm.run import experiment_record, open_folder

    name, experiment = _load(arguments.experiment, arguments.overrides)
    try:
        hosts.join()
    except hosts.HostsError as error:
        raise UsageError(str(error)) from error
    spec, out = arguments.experiment, arguments.out or _default_folder(arguments.experiment, name, arguments.seed)
    from rl_llm.recorded import RecordError
    from rl_llm.runs.checkpoint import CheckpointError
    from rl_llm.runs.folder import RunFolderError
    from rl_llm.runs.ledger import LedgerError

    try:
        meshes, problems, others = prepare(experiment, arguments.seed)
        identity = fingerprint_of(problems, others)
        record = experiment_record(experiment, spec, arguments.overrides, arguments.seed, identity, others.origins)
        folder = open_folder(out, record, arguments.resume, experiment.checkpointing.keep)
    except (ValueError, OSError, ImportError, RecordError, CheckpointError, RunFolderError, LedgerError) as error:
        raise UsageError(str(error)) from error

    from rl_llm.rewards.grader import GradingError
    from rl_llm.runs.preemption import Preempted
    from rl_llm.train_rl import GateError, train

    with folder:
        try:
            summary = train(experiment, arguments.seed, meshes, problems, others, folder, STARTED)
        except Preempted as stop:
            again = f"rl-llm train {spec} --seed {arguments.seed} --out {out} --resume"
            again += "".join(f" --set {item}" for item in arguments.overrides)
            if hosts.writes():
                print(f"{stop}; go on with:\n  {again}", file=sys.stderr)
            return PREEMPTED
        except RunFolderError as error:
            raise UsageError(str(error)) from error
        except (GateError, GradingError, CheckpointError) as error:
            print(f"rl-llm train: {error}", file=sys.stderr)
            return FAILED
        except (Exception, KeyboardInterrupt):  # all others are raised in all processes of a run
            hosts.leave_others(FAILED)
            raise
    if hosts.writes():
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
    if arguments.problems is not None and arguments.problems < 1:
        raise UsageError(f"--problems must be at least 1, not {arguments.problems}")
    if arguments.logits and arguments.samples is None:
        raise UsageError(f"--logits {arguments.logits} cannot act without --samples FILE")
    if arguments.samples is not None and arguments.samples.exists():
        raise UsageError(f"{arguments.samples} is there already: choose another --samples")
    if arguments.samples is not None and not arguments.samples.parent.is_dir():
        raise UsageError(f"--samples {arguments.samples}: there is no folder {arguments.samples.parent}")

    from rl_llm.evaluation.checkpoint import evaluate_checkpoint
    from rl_llm.mesh import make_meshes
    from rl_llm.prepare import problems_of_split
    from rl_llm.recorded import RecordError, recorded_experiment
    from rl_llm.rewards.grader import GradingError
    from rl_llm.runs.checkpoint import CheckpointError

    try:
        experiment, record = recorded_experiment(arguments.folder)
    except RecordError as error:
        raise UsageError(str(error)) from error
    if not 0 <= arguments.logits <= experiment.model.vocabulary:
        raise UsageError(f"--logits {arguments.logits}: the vocabulary has {experiment.model.vocabulary} tokens")
    if arguments.logits and arguments.temperature == 0:
        raise UsageError("--logits at --temperature 0: a greedy choice has no distribution")
    seed, sampling = record["seed"], experiment.sampling
    try:
        if arguments.temperature is not None:
            sampling = sampling.at(arguments.temperature)
        count = arguments.problems or experiment.evaluation.problems
        problems = problems_of_split(experiment, arguments.split, count, seed)
        meshes = make_meshes(experiment.mesh, experiment.sampler_mesh)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    try:
        outcome = evaluate_checkpoint(
            experiment, seed, arguments.folder, meshes, problems, sampling, arguments.samples, arguments.logits
        )
    except (CheckpointError, GradingError) as error:
        print(f"rl-llm evaluate: {error}", file=sys.stderr)
        return FAILED
    print(json.dumps({"split": arguments.split, **outcome}, indent=2))
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    """Write the newest good policy of a run as a folder that Hugging Face transformers loads.

    A run that began with such a folder is written like it: the same files, names and dtypes, tokenizer included.
    """
    from rl_llm.export import export
    from rl_llm.recorded import RecordError
    from rl_llm.runs.checkpoint import CheckpointError

    try:
        step = export(arguments.folder, arguments.out, arguments.like, arguments.dtype)
    except (RecordError, CheckpointError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    print(f"the policy of step {step}: {arguments.out}")
    return DONE


def _report(arguments: argparse.Namespace) -> int:
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
