"""The command line: `rl-llm COMMAND ...`. Wrong usage ends with exit code 2 before any device is started."""

import argparse
import inspect
import os
import sys

from rl_llm.commands import (
    ablate,
    compare,
    data_report,
    evaluate,
    export,
    generate,
    grade,
    plan,
    repair,
    report,
    samples,
    train,
)
from rl_llm.commands.common import (
    CLOSED_PIPE,
    DONE,
    FAILED,
    INTERRUPTED,
    NO_DEVICE,
    PREEMPTED,
    WRONG_USAGE,
    Command,
    UsageError,
    check_devices,
    refuse_unknown,
)
from rl_llm.config.terminal import show
from rl_llm.plan.environment import quieten_absent_tpu

__all__ = ["DONE", "FAILED", "PREEMPTED", "WRONG_USAGE", "main"]

COMMANDS: dict[str, Command] = {
    "train": train,
    "ablate": ablate,
    "evaluate": evaluate,
    "compare": compare,
    "samples": samples,
    "generate": generate,
    "export": export,
    "plan": plan,
    "report": report,
    "repair": repair,
    "data-report": data_report,
    "grade": grade,
}

EXAMPLES = """examples, in the order of a project:
  rl-llm data-report experiments/quickstart.py                 check the problems for bias, duplicates and leaks
  rl-llm grade responses.jsonl --out grades.jsonl              check the grades of stored responses by eye
  rl-llm plan experiments/qwen3_4b_gsm8k.py:paper --topology v6e:4x4       does it fit on a TPU slice, at which cost?
  rl-llm train experiments/quickstart.py                       train: minutes on two CPU cores
  rl-llm train experiments/quickstart.py --set optimizer.learning_rate=2e-4 --seed 3 --out runs/slower
  rl-llm train experiments/quickstart.py --out runs/slower --resume      resume after an interruption
  rl-llm report runs/slower                                    write report.html again
  rl-llm evaluate runs/slower --problems 500                   evaluate the newest checkpoint on more problems
  rl-llm samples runs/slower --when after --max-reward 0       read wrong responses
  rl-llm generate runs/slower "17+25="                         ask the policy
  rl-llm export runs/slower --out exported/slower              save the policy for Hugging Face transformers
  rl-llm ablate experiments/paper/controls.py                  compare variants over several seeds

`rl-llm COMMAND --help` explains each command.

exit codes: 0 done, 1 failed, 2 wrong usage, 141 nobody reads the output any more (as after `| head`), 143 preempted by
SIGTERM, 130 stopped by Ctrl-C (train and ablate save their state: run again with --resume; a second Ctrl-C ends at
once)"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    quieten_absent_tpu()
    parsed, unknown = _parser().parse_known_args(arguments)
    refuse_unknown(parsed.parser, unknown)
    try:
        return _run(parsed)
    except BrokenPipeError:
        if not _silence_closed():  # a pipe to another process
            raise
        return CLOSED_PIPE


def _run(parsed: argparse.Namespace) -> int:
    try:
        return int(parsed.run(parsed))
    except UsageError as error:
        show(f"rl-llm {parsed.command}: {error}", file=sys.stderr)
        return WRONG_USAGE
    except NO_DEVICE as error:
        if refusal := _without_devices():
            show(f"rl-llm {parsed.command}: {refusal}", file=sys.stderr)
            return WRONG_USAGE
        raise error
    except KeyboardInterrupt:
        again = "; --resume continues from the newest checkpoint, if there is one" if "resume" in parsed else ""
        show(f"rl-llm {parsed.command}: interrupted{again}", file=sys.stderr)
        return INTERRUPTED


def _without_devices() -> UsageError | None:
    """The refusal of JAX_PLATFORMS if JAX was imported and finds no device."""
    try:
        if "jax" in sys.modules:
            check_devices()
    except UsageError as refusal:
        return refusal
    return None


def _silence_closed() -> bool:
    """Send standard output and error to nowhere if their reader has gone, as after `| head`; False if none has."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python's last flush fails, too
    return closed


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    description = "Reinforcement learning of language-model reasoning in pure-functional JAX."
    parser = argparse.ArgumentParser(prog="rl-llm", description=description, epilog=EXAMPLES, formatter_class=raw)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        details = inspect.getdoc(command.run)
        subparser = parsers.add_parser(
            name, help=command.SUMMARY, description=details, epilog=command.EXAMPLES, formatter_class=raw
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, parser=subparser)
    return parser
