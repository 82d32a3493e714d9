"""What members print that run in threads of one process: each into a log of its own."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

_LOG: ContextVar[TextIO | None] = ContextVar("log", default=None)


class _OfThread(io.TextIOBase):
    """A stream that writes to the log of the thread, and elsewhere to `otherwise`."""

    def __init__(self, otherwise: TextIO) -> None:
        self._otherwise = otherwise

    def write(self, text: str) -> int:
        return (_LOG.get() or self._otherwise).write(text)

    def flush(self) -> None:
        (_LOG.get() or self._otherwise).flush()


@contextmanager
def logs_of_threads() -> Iterator[None]:
    """In its body a thread's standard output and standard error go where `printing_to` says."""
    with redirect_stdout(_OfThread(sys.stdout)), redirect_stderr(_OfThread(sys.stderr)):
        yield


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """In its body what this thread prints goes to the end of a file."""
    with path.open("a") as log:
        token = _LOG.set(log)
        try:
            yield
        finally:
            _LOG.reset(token)
