"""The arguments `--track` and `--profile`, and the watchers they ask for."""

import argparse
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rl_llm.commands.common import UsageError
from rl_llm.watching.trackers import TRACKERS

if TYPE_CHECKING:
    from rl_llm.runs.watcher import Watcher


def add_track(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names trackers."""
    track = "show the metrics in this tracker, beside TensorBoard; may be repeated"
    parser.add_argument("--track", action="append", default=[], choices=TRACKERS, help=track)


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the steps to trace."""
    profile = "trace these RL steps, counted from 1, with JAX's profiler into profile/ in the run folder"
    parser.add_argument("--profile", type=_steps, metavar="FIRST:LAST", help=profile)


def _steps(text: str) -> range:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"must be FIRST:LAST with 1 <= FIRST <= LAST, such as 3:5, not {text!r}")
    return range(first, last + 1)


def check_trackers(names: Sequence[str]) -> None:
    """Raise UsageError for a tracker that is not installed."""
    for name in names:
        missing = [package for package in TRACKERS[name].packages if find_spec(package) is None]
        if missing:
            raise UsageError(f'--track {name}: {", ".join(missing)} not installed; pip install "rl-llm[{name}]"')


def watchers_of(arguments: argparse.Namespace, steps: int) -> "list[Watcher]":
    """TensorBoard, and what the arguments ask for in a run of so many RL steps. Raises UsageError."""
    from rl_llm.watching.mirror import Mirror, TensorBoard
    from rl_llm.watching.profile import Profiler

    names, traced = dict.fromkeys(arguments.track), arguments.profile
    check_trackers(arguments.track)
    if traced and traced[-1] > steps:
        raise UsageError(f"--profile {traced[0]}:{traced[-1]}: the experiment has RL steps 1 to {steps}")
    mirrors = [Mirror(tracker) for tracker in (TensorBoard(), *(TRACKERS[name]() for name in names))]
    return [*mirrors, Profiler(traced)] if traced else [*mirrors]
