"""Preemption: SIGTERM (a preempted machine, a scheduler's time limit) asks the run to save and stop."""

import signal
import threading
from typing import ClassVar, Self


class Preempted(Exception):
    """The run was stopped and has saved its state. The message names the step."""


class StopSignal:
    """Records SIGTERM, so that the loop can check `requested` between steps. Use it in a `with` statement.

    Only the main thread receives signals. In another thread it reflects the StopSignal that the main thread has open;
    without one, entering raises RuntimeError.
    """

    _in_main_thread: ClassVar["StopSignal | None"] = None

    def __init__(self) -> None:
        self._requested, self._receiver = False, self

    @property
    def requested(self) -> bool:
        return self._receiver._requested

    def __enter__(self) -> Self:
        self._outer = StopSignal._in_main_thread
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
            StopSignal._in_main_thread = self
        elif self._outer is None:
            raise RuntimeError("a StopSignal in a thread needs one in the main thread, which receives the signals")
        else:
            self._receiver = self._outer
        return self

    def __exit__(self, *exception: object) -> None:
        if self._receiver is self:
            signal.signal(signal.SIGTERM, self._previous)
            StopSignal._in_main_thread = self._outer

    def _note(self, *_: object) -> None:
        self._requested = True
