"""Being told to stop: SIGTERM (a preempted machine, a scheduler's time limit) asks the run to save and go."""

import signal
import threading
from types import FrameType
from typing import ClassVar, Self


class Preempted(Exception):
    """The run was told to stop and has saved its state. The message says at which step."""


class StopSignal:
    """Notes SIGTERM instead of dying of it; the loop looks at `requested` between steps. Use it in a `with`
    statement.

    Only the main thread can be told of a signal. In another thread it notes what the one that the main thread has open
    is told, or was told before; without one it cannot be entered (RuntimeError).
    """

    _of_main: ClassVar["StopSignal | None"] = None

    def __init__(self) -> None:
        self._requested, self._heard = False, self

    @property
    def requested(self) -> bool:
        return self._heard._requested

    def __enter__(self) -> Self:
        self._before = StopSignal._of_main
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
            StopSignal._of_main = self
        elif self._before is None:
            raise RuntimeError("a StopSignal in a thread needs one that the main thread has open: it hears of signals")
        else:
            self._heard = self._before
        return self

    def __exit__(self, *exception: object) -> None:
        if self._heard is self:
            signal.signal(signal.SIGTERM, self._previous)
            StopSignal._of_main = self._before

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
