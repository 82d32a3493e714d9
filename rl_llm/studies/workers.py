"""Worker processes that run jobs one after the other, each pinned to its own core if asked.

A worker keeps its compiled programs, so jobs of the same shape share one; all workers share the persistent compilation
cache. A worker that dies loses its job and is replaced.
"""

import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

SPAWN = multiprocessing.get_context("spawn")
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_OF_COMPILATION_KEPT = 0.1  # slower compilations are cached for other workers and for resumed studies
Item = TypeVar("Item")
_THREAD_LOG: ContextVar[TextIO | None] = ContextVar("log", default=None)


@dataclass(frozen=True)
class Job:
    """Work for a worker: `work(commands, logs)` returns one exit code per command.

    The worker's own output is appended to the first log; `work` may write to all of them.
    """

    work: Callable[[Sequence[list[str]], Sequence[Path]], list[int]]
    commands: Sequence[list[str]]
    logs: Sequence[Path]


@dataclass
class _Worker(Generic[Item]):
    process: Any
    connection: Connection
    cores: Sequence[int] | None
    item: Item | None = None
    commands: int = 0
    began: float = 0.0


@dataclass(frozen=True)
class Ended(Generic[Item]):
    """A finished job. `codes` has an exit code per command, negative for the signal that killed the worker."""

    item: Item
    codes: list[int]
    seconds: float


@dataclass
class Workers(Generic[Item]):
    """A pool from `open_workers`: `give` a job to an `idle` worker, collect finished jobs with `ended`."""

    compiled: Path
    _workers: list[_Worker[Item]] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        return any(worker.item is None for worker in self._workers)

    @property
    def busy(self) -> bool:
        return any(worker.item is not None for worker in self._workers)

    def start(self, cores: Sequence[int] | None) -> None:
        """Add a worker on these cores (None: all cores)."""
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=_work, args=(there, cores, self.compiled, os.getpid()))
        process.start()
        there.close()
        self._workers.append(_Worker(process, here, cores))

    def give(self, item: Item, job: Job) -> None:
        """Start a job on an idle worker; `item` is returned with its result."""
        worker = next(worker for worker in self._workers if worker.item is None)
        worker.connection.send(job)
        worker.item, worker.commands, worker.began = item, len(job.commands), time.monotonic()

    def ended(self) -> list[Ended[Item]]:
        """Jobs that have finished, after waiting for at most half a second."""
        working = {worker.connection: worker for worker in self._workers if worker.item is not None}
        found = []
        for connection in wait(list(working), timeout=SECONDS_BETWEEN_LOOKS):
            worker = working[connection]  # type: ignore[index]
            try:
                codes = worker.connection.recv()
            except EOFError:
                worker.process.join()
                codes = [worker.process.exitcode or 1] * worker.commands
                self._workers.remove(worker)
                self.start(worker.cores)
            assert worker.item is not None
            found.append(Ended(worker.item, codes, time.monotonic() - worker.began))
            worker.item = None
        return found

    def stop(self, number: signal.Signals) -> None:
        """Send a signal to every busy worker."""
        for worker in self._workers:
            if worker.item is not None and worker.process.is_alive():
                os.kill(worker.process.pid, number)


@contextmanager
def open_workers(cores: Sequence[Sequence[int] | None], compiled: Path) -> Iterator[Workers[Any]]:
    """Open one worker per element of `cores`; `compiled` is the persistent cache folder.

    On exit, busy workers are told to save and stop (SIGTERM), and all are waited for.
    """
    workers: Workers[Any] = Workers(compiled)
    try:
        for own in cores:
            workers.start(own)
        yield workers
    finally:
        workers.stop(signal.SIGTERM)
        for worker in workers._workers:
            worker.connection.close()
            worker.process.join()


def _work(connection: Connection, cores: Sequence[int] | None, compiled: Path, parent: int) -> None:
    """Run jobs until the connection closes. Affinity comes first: JAX starts a thread per core on first use."""
    import jax

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the parent, which sends SIGTERM
    if cores is not None:
        os.sched_setaffinity(0, cores)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the user's own choice wins
        jax.config.update("jax_compilation_cache_dir", str(compiled.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_OF_COMPILATION_KEPT)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        job.logs[0].parent.mkdir(parents=True, exist_ok=True)
        with job.logs[0].open("a") as log:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        connection.send(job.work(job.commands, job.logs))


def _exit_with_parent(parent: int) -> None:
    """Exit once the parent is gone: an orphan would keep its run folders locked."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


class _ThreadStream(io.TextIOBase):
    """A stream that writes to the current thread's log, or to `default` if the thread has none."""

    def __init__(self, default: TextIO) -> None:
        self._default = default

    def write(self, text: str) -> int:
        return (_THREAD_LOG.get() or self._default).write(text)

    def flush(self) -> None:
        (_THREAD_LOG.get() or self._default).flush()


@contextmanager
def thread_logs() -> Iterator[None]:
    """Let each thread choose, with `printing_to`, where its standard output and error go."""
    with redirect_stdout(_ThreadStream(sys.stdout)), redirect_stderr(_ThreadStream(sys.stderr)):
        yield


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Append this thread's output to a file; needs an enclosing `thread_logs`."""
    with path.open("a") as log:
        token = _THREAD_LOG.set(log)
        try:
            yield
        finally:
            _THREAD_LOG.reset(token)
