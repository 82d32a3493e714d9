"""Shared parts of the commands: their interface, exit codes, errors of usage, and common arguments."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rl_llm.config.terminal import show

if TYPE_CHECKING:
    from rl_llm.experiment import Experiment

STARTED = time.monotonic()  # a run's wall-clock seconds include the imports

DONE, FAILED, WRONG_USAGE, INTERRUPTED, CLOSED_PIPE, PREEMPTED = 0, 1, 2, 130, 141, 143


NO_DEVICE = (RuntimeError, AssertionError)  # of JAX, which asserts that the plugin of a platform is installed


class Command(Protocol):
    """A module of this package. The docstring of `run` is the description in the command's help."""

    SUMMARY: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its parser."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command and return the exit code."""


class UsageError(Exception):
    """The user asked for something impossible. The message names the value, the place and the remedy."""


def add_experiment(parser: argparse.ArgumentParser, other: str = "") -> None:
    """Add the arguments that select an experiment, or the `other` kind of file, and change its values."""
    parser.add_argument(
        "experiment",
        metavar="EXPERIMENT[:NAME]",
        help="a Python file, and the name of an experiment in it or in its ABLATION (default: base)" + other,
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=v",
        dest="overrides",
        help="change one value of the experiment; may be repeated",
    )


def add_accept(parser: argparse.ArgumentParser) -> None:
    """Add the argument that accepts changed code."""
    accept = "with --resume: go on although code of the experiment has changed, and enter the change in the ledger"
    parser.add_argument("--accept-code-changes", action="store_true", help=accept)


def check_accept(arguments: argparse.Namespace) -> None:
    """Raise UsageError for --accept-code-changes without --resume."""
    if arguments.accept_code_changes and not arguments.resume:
        raise UsageError("--accept-code-changes cannot act without --resume: a new run records the code that it runs")


def add_step(parser: argparse.ArgumentParser, use: str) -> None:
    """Add the argument that chooses a checkpoint, for a `use`."""
    step = f"{use}, by its step in metrics.jsonl: steps of the warm start count, too (default: the newest good one)"
    parser.add_argument("--step", type=positive, metavar="N", help=step)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the argument that lets the code of a received folder run."""
    trust = "let code run that a folder names and that was never run by this user: its files are shown with their "
    trust += "SHA-256 and remembered. Folders of your own runs, and those without classes of their own, need no --trust"
    parser.add_argument("--trust", action="store_true", help=trust)


def trust_folders(*folders: Path | str) -> None:
    """Show and trust the code of run and study folders. Raises UsageError if none has code of its own."""
    from rl_llm.config.trust import listed, remember
    from rl_llm.runs.load import RecordError
    from rl_llm.runs.load import untrusted_code as code_of_run
    from rl_llm.studies.folder import REGISTERED, StudyFolderError
    from rl_llm.studies.folder import untrusted_code as code_of_study

    refusals = []
    for folder in map(Path, folders):
        try:
            files = code_of_study(folder) if (folder / REGISTERED).is_file() else code_of_run(folder)
            if files:
                show(f"trusted from now on, for {folder}:\n{listed(files)}", file=sys.stderr)
            remember(files.values())
        except (RecordError, StudyFolderError, ValueError, OSError, KeyError, TypeError) as error:
            refusals.append(str(error))
    if len(refusals) == len(folders):
        raise UsageError(f"--trust cannot act: {'; '.join(refusals) or 'no run folder is loaded'}")


def no_device(error: Exception) -> UsageError:
    """The refusal of a platform without a device, such as JAX_PLATFORMS=cuda on a machine without a GPU."""
    why = str(error).partition(" (set JAX_PLATFORMS")[0].partition("\n")[0] or "its plugin is not installed"
    return UsageError(
        f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: JAX finds no such device ({why}); unset it to use the "
        "devices of this machine, or install JAX for that platform (jax[cuda12], jax[tpu]) and check its driver"
    )


def check_devices() -> None:
    """Raise UsageError if JAX finds no device. In a run of several processes call it after `hosts.join`."""
    import jax

    try:
        jax.devices()
    except NO_DEVICE as error:
        raise no_device(error) from error


def refuse_unknown(parser: argparse.ArgumentParser, unknown: list[str]) -> None:
    """Exit with the usage of a command if there are arguments that it does not know, and suggest the nearest option."""
    from rl_llm.config import nearest

    options = {option for action in parser._actions for option in action.option_strings}
    if unknown:
        hints = [nearest(one.partition("=")[0], options) if one.startswith("-") else "" for one in unknown]
        listed = ", ".join(one + hint for one, hint in zip(unknown, hints, strict=True))
        parser.error(f"unrecognized arguments: {listed}")


def positive(text: str) -> int:
    """Parse an argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def seed(text: str) -> int:
    """Parse a seed that JAX and NumPy take unchanged."""
    if not text.isdecimal() or not 0 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**32 - 1}, not {text!r}")
    return int(text)


def share(text: str) -> float:
    """Parse an argument that is a share: above 0, at most 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be a share, above 0 and at most 1, not {text!r}")
    return number


def check_output(option: str, path: Path | None, overwrite: bool = False) -> None:
    """Raise UsageError if an output file exists already or its folder does not exist."""
    if path is not None and path.exists() and not overwrite:
        raise UsageError(f"--{option} {path} already exists: choose another file")
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"--{option} {path}: there is no folder {path.parent}")


def resolve_experiment(spec: str, overrides: list[str]) -> tuple[str, "Experiment"]:
    """Load an experiment by its spec and apply overrides; returns its name, too. Raises UsageError."""
    from rl_llm.config import ExperimentError, OverrideError, load_experiment, override, to_json
    from rl_llm.config.fields import missing_members
    from rl_llm.experiment import Experiment, Tokenizer
    from rl_llm.problem import Task

    try:
        name, experiment = load_experiment(spec, Experiment)
        experiment = override(experiment, overrides)
    except (ExperimentError, OverrideError) as error:
        raise UsageError(str(error)) from error
    try:
        to_json(experiment)
    except (TypeError, ValueError) as error:  # a lambda, functools.partial or an object of a class that is no dataclass
        remedy = "expected values, dataclasses, and functions of a module: put @dataclass(frozen=True) above a class"
        raise UsageError(f"{spec}: {error}; {remedy}") from error
    for field, kind in (("task", Task), ("tokenizer", Tokenizer)):
        value = getattr(experiment, field)
        missing = missing_members(value, kind)
        if isinstance(value, type):
            name = value.__name__
            raise UsageError(f"{spec}: {field} is the class {name}; expected a value of it: {name}()")
        if missing:
            lacks = f"{type(value).__name__} has no {', '.join(missing)}"
            raise UsageError(f"{spec}: {field}={value!r} is no {field}: {lacks}")
    return name, experiment
