"""Preemption: SIGTERM (a preempted machine, a time limit) and Ctrl-C ask the run to save and stop."""

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import ClassVar, Self

SHOW_CURSOR = "\x1b[?25h"  # the bars on a terminal hide it


class Preempted(Exception):
    """The run was stopped and has saved its state. The message names the step; `signal` is the one that stopped it."""

    def __init__(self, message: str, received: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.signal = received


class StopSignal:
    """Records SIGTERM and Ctrl-C, so that the loop can check `received` between steps. Use it in a `with` statement.

    A second Ctrl-C ends the process at once. Only the main thread receives signals. In another thread it reflects the
    StopSignal that the main thread has open; without one, entering raises RuntimeError.
    """

    _in_main_thread: ClassVar["StopSignal | None"] = None

    def __init__(self) -> None:
        self._received, self._receiver = 0, self

    @property
    def received(self) -> int:
        """Number of the first signal that asked to stop; 0 if none did."""
        return self._receiver._received

    def __enter__(self) -> Self:
        self._outer = StopSignal._in_main_thread
        if threading.current_thread() is threading.main_thread():
            # An ignored SIGINT stays ignored: a shell does this for background jobs, a study for its workers.
            caught = [signal.SIGTERM, *([signal.SIGINT] if signal.getsignal(signal.SIGINT) != signal.SIG_IGN else [])]
            self._previous = {number: signal.signal(number, self._note) for number in caught}
            self._watch()
            StopSignal._in_main_thread = self
        elif self._outer is None:
            raise RuntimeError("a StopSignal in a thread needs one in the main thread, which receives the signals")
        else:
            self._receiver = self._outer
        return self

    def __exit__(self, *exception: object) -> None:
        if self._receiver is self:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._outer_wakeup)
            os.close(self._write)  # ends the thread
            StopSignal._in_main_thread = self._outer

    def _note(self, number: int, _: object) -> None:
        self._received = self._received or number

    def _watch(self) -> None:
        """Watch for Ctrl-C in a thread: Python calls handlers between bytecodes, and a compilation lasts minutes."""
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._outer_wakeup = signal.set_wakeup_fd(self._write)
        threading.Thread(target=_end_at_second, args=(read,), daemon=True, name="ctrl-c").start()


def _end_at_second(read: int) -> None:
    """Read signal numbers until the pipe is closed; acknowledge the first Ctrl-C and end the process at the second."""
    presses = 0
    while number := os.read(read, 1):
        if number[0] != signal.SIGINT:
            continue
        presses += 1
        said = "stopping after this step to save the state; Ctrl-C again ends at once" if presses == 1 else "ended"
        with suppress(OSError, ValueError):  # a terminal that has gone
            print(f"\n{said}{SHOW_CURSOR if sys.stderr.isatty() else ''}", file=sys.stderr, flush=True)
        if presses > 1:
            os._exit(128 + signal.SIGINT)
    os.close(read)
