"""The command line: `rl-llm COMMAND ...`. Wrong usage ends with exit code 2 before any device is started."""

import argparse
import inspect
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
    DONE,
    FAILED,
    INTERRUPTED,
    PREEMPTED,
    WRONG_USAGE,
    Command,
    UsageError,
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

exit codes: 0 done, 1 failed, 2 wrong usage, 143 preempted by SIGTERM, 130 stopped by Ctrl-C (train and ablate save
their state: run again with --resume; a second Ctrl-C ends at once)"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    quieten_absent_tpu()
    parsed, unknown = _parser().parse_known_args(arguments)
    refuse_unknown(parsed.parser, unknown)
    try:
        return int(parsed.run(parsed))
    except UsageError as error:
        show(f"rl-llm {parsed.command}: {error}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        again = "; --resume continues from the newest checkpoint, if there is one" if "resume" in parsed else ""
        show(f"rl-llm {parsed.command}: interrupted{again}", file=sys.stderr)
        return INTERRUPTED


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
