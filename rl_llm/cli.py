"""The command line: `rl-llm VERB ...`. Usage errors end with exit code 2 before any device is started."""

import argparse
import sys

from rl_llm.commands import ablate, data_report, evaluate, export, plan, report, train
from rl_llm.commands.common import DONE, FAILED, PREEMPTED, WRONG_USAGE, UsageError
from rl_llm.plan.environment import quieten_absent_tpu

__all__ = ["DONE", "FAILED", "PREEMPTED", "WRONG_USAGE", "main"]

VERBS = {
    "train": train,
    "ablate": ablate,
    "evaluate": evaluate,
    "export": export,
    "plan": plan,
    "report": report,
    "data-report": data_report,
}

EXAMPLES = """examples:
  rl-llm train experiments/quickstart.py                       the main job on two CPU cores, in minutes
  rl-llm train experiments/quickstart.py --set optimizer.learning_rate=2e-4 --seed 3 --out runs/slower
  rl-llm train experiments/quickstart.py --out runs/slower --resume      go on after an interruption
  rl-llm ablate experiments/paper/controls.py                  a study: arms x seeds, and verdicts
  rl-llm evaluate runs/slower --problems 500                   more held-out problems, newest checkpoint
  rl-llm export runs/slower --out exported/slower              the policy, for transformers
  rl-llm report runs/slower                                    rebuild report.html
  rl-llm plan experiments/qwen3_4b_gsm8k.py:paper --topology v6e:4x4       does it fit a slice, what does it cost?
  rl-llm data-report experiments/quickstart.py                 biases, duplicates and leaks of its problems

exit codes: 0 done, 1 failed, 2 wrong usage, 143 preempted by SIGTERM (state saved: run again with --resume)"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    quieten_absent_tpu()
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
    description = "Reinforcement learning of language-model reasoning in pure-functional JAX."
    parser = argparse.ArgumentParser(prog="rl-llm", description=description, epilog=EXAMPLES, formatter_class=raw)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        of_verb = verbs.add_parser(
            name, help=verb.SUMMARY, description=verb.run.__doc__, epilog=verb.EXAMPLES, formatter_class=raw
        )
        verb.add(of_verb)
        of_verb.set_defaults(run=verb.run)
    return parser
