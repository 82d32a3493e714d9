"""What the verbs share: exit codes, the error of wrong usage, and how an experiment is named."""

import argparse
import time
from typing import Any

STARTED = time.monotonic()  # a run's wall-clock seconds include the imports

DONE, FAILED, WRONG_USAGE, PREEMPTED = 0, 1, 2, 143


class UsageError(Exception):
    """What the user asked for cannot be done. The message names the value, the place and the way out."""


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """The arguments that name an experiment, and change it."""
    parser.add_argument(
        "experiment",
        metavar="EXPERIMENT[:NAME]",
        help="a Python file, and the name of a value in it or in its ABLATION (default: base)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=v",
        dest="overrides",
        help="change one value of the experiment; may be repeated",
    )


def share(text: str) -> float:
    """An argument that is a share of something."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"a share is a number above 0 and up to 1, not {text!r}")
    return number


def load(spec: str, overrides: list[str]) -> tuple[str, Any]:
    """The experiment of a spec with its overrides; what is wrong with either is a usage error."""
    from rl_llm.config import ExperimentError, OverrideError, load_experiment, override
    from rl_llm.experiment import Experiment

    try:
        name, experiment = load_experiment(spec, Experiment)
        return name, override(experiment, overrides)
    except (ExperimentError, OverrideError) as error:
        raise UsageError(str(error)) from error
