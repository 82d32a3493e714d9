"""Mirrors copy the numbers of metrics.jsonl to trackers: TensorBoard, Weights & Biases, MLflow.

metrics.jsonl stays the record. Each tracker has a thread that reads new lines from it, so a slow tracker falls behind
instead of slowing the run, and a failed one is dropped. A resumed run sends each tracker exactly the steps it lacks.
"""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rl_llm.runs.folder import METRICS, RunFolder, read_metrics
from rl_llm.runs.watcher import Watcher

PATIENCE = 60.0  # seconds that the end of a run waits for a tracker


class Tracker(Protocol):
    """A place that shows the numbers of a run. One thread calls all methods, `open` first and `close` last."""

    name: str

    def open(self, run: Path, restored: int) -> int:
        """Open the tracker's record of a run resumed at step `restored` (0: new); returns the last step it keeps."""

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write the finite numbers of a step."""

    def close(self) -> None:
        """Write everything that is left."""


class Mirror(Watcher):
    """Copies the steps of metrics.jsonl to one tracker, in a thread of its own. An error of the tracker is said."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._wake, self._closing, self._read = tracker, threading.Event(), False, 0
        self._thread = threading.Thread(target=self._serve, name=f"tracker {tracker.name}", daemon=True)

    def open(self, folder: RunFolder, restored: int, done: int, say: Callable[[str], None]) -> None:
        """Remember the run; the thread starts with its first line."""
        self._writes, self._run, self._restored, self._say = folder.writes, folder.path, restored, say

    def wrote(self) -> None:
        """Wake the thread."""
        if self._writes and self._thread.ident is None:
            self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Wait until the tracker has all steps, at most PATIENCE seconds."""
        self._closing = True
        self.wrote()
        if self._writes:
            self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._say(f"{self._tracker.name} lacks the last steps: it was still busy after {PATIENCE:g} s")

    def _serve(self) -> None:
        try:
            last, closing = self._tracker.open(self._run, self._restored), False
            while not closing:
                self._wake.wait()
                self._wake.clear()
                closing = self._closing  # before the lines are read, so none is left out
                for line in self._new_lines():
                    if line["step"] > last:
                        self._tracker.write(line["step"], _numbers(line))
            self._tracker.close()
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._say(f"{self._tracker.name} is no longer written ({reason}); a resume fills in the missing steps")

    def _new_lines(self) -> list[dict[str, Any]]:
        path = self._run / METRICS
        if not path.exists():
            return []
        with path.open("rb") as stream:
            stream.seek(self._read)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    numbers = {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


class TensorBoard:
    """Writes event files to `tensorboard/` in the run folder. It purges steps after the restored one."""

    name = "tensorboard"

    def open(self, run: Path, restored: int) -> int:
        """Find where the older event files end. A new one, which continues them, begins with the next step."""
        folder = run / "tensorboard"
        older = max(folder.glob("events*"), default=None)
        last = 0 if older is None else min(_last_whole_step(older, run / METRICS), restored)
        purge = None if older is None else last + 1
        # Names contain the second, so without a suffix a quick resume would overwrite the previous file.
        suffix = "" if older is None else f".after_{restored}"
        self._options = {"logdir": str(folder), "purge_step": purge, "flush_secs": 10, "filename_suffix": suffix}
        self._writer: Any = None
        return last

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write one scalar per number."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(**self._options)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


def _last_whole_step(file: Path, metrics: Path) -> int:
    """Last step with all its numbers in an event file. A kill may have torn a step: each number is an event.

    A record is length (8 bytes), check sum (4), event, check sum (4).
    """
    from tensorboardX.proto.event_pb2 import Event

    content, place, step, names = file.read_bytes(), 0, 0, set[str]()
    while place + 12 < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 8], "little")
        if end + 4 <= len(content):
            event = Event.FromString(content[place + 12 : end])
            names = {*(names if event.step == step else ()), *(value.tag for value in event.summary.value)}
            step = event.step
        place = end + 4
    records = read_metrics(metrics) if metrics.exists() else []
    expected = next((_numbers(record).keys() for record in records if record["step"] == step), names)
    return step if expected <= names else step - 1
