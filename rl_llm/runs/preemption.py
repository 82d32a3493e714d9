"""Being told to stop: SIGTERM (a preempted machine, a scheduler's time limit) asks the run to save and go."""

import signal
from types import FrameType
from typing import Self


class Preempted(Exception):
    """The run was told to stop and has saved its state. The message says at which step."""


class StopSignal:
    """Notes SIGTERM instead of dying of it; the loop looks at `requested` between steps. Use it in a `with`
    statement.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
