"""Processes that work off tasks one after the other, each on a core of its own where that is asked for.

A worker keeps what it has compiled, so tasks of the same shape share one program; all share what is in the persistent
cache. A worker that dies takes its task with it, and another one is started in its place.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

SPAWN = multiprocessing.get_context("spawn")
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_OF_COMPILATION_KEPT = 0.1  # what takes longer is kept for other workers, and for a study that is resumed
Task = TypeVar("Task")


@dataclass(frozen=True)
class Job:
    """What a worker does: `work(commands, logs)` gives an exit code for each command. What the process prints goes to
    the end of the first log, beside what `work` puts there and into the others.
    """

    work: Callable[[Sequence[list[str]], Sequence[Path]], list[int]]
    commands: Sequence[list[str]]
    logs: Sequence[Path]


@dataclass
class _Worker(Generic[Task]):
    process: Any
    connection: Connection
    cores: Sequence[int] | None
    task: Task | None = None
    commands: int = 0
    began: float = 0.0


@dataclass(frozen=True)
class Ended(Generic[Task]):
    """A task that has ended: the exit code of each command (negative: the signal that killed their worker), and its
    seconds.
    """

    task: Task
    codes: list[int]
    seconds: float


@dataclass
class Workers(Generic[Task]):
    """Made by `open_workers`. `give` a task where there is an `idle` worker, `ended` waits for one that is over."""

    compiled: Path
    _workers: list[_Worker[Task]] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        return any(worker.task is None for worker in self._workers)

    @property
    def busy(self) -> bool:
        return any(worker.task is not None for worker in self._workers)

    def start(self, cores: Sequence[int] | None) -> None:
        """One worker more, on these cores only (None: on all)."""
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=_work_off, args=(there, cores, self.compiled, os.getpid()))
        process.start()
        there.close()
        self._workers.append(_Worker(process, here, cores))

    def give(self, task: Task, job: Job) -> None:
        """An idle worker begins with it."""
        worker = next(worker for worker in self._workers if worker.task is None)
        worker.connection.send(job)
        worker.task, worker.commands, worker.began = task, len(job.commands), time.monotonic()

    def ended(self) -> list[Ended[Task]]:
        """The tasks that have ended, after half a second at most."""
        working = {worker.connection: worker for worker in self._workers if worker.task is not None}
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
            assert worker.task is not None
            found.append(Ended(worker.task, codes, time.monotonic() - worker.began))
            worker.task = None
        return found

    def stop(self, number: signal.Signals) -> None:
        """Send a signal to all that work."""
        for worker in self._workers:
            if worker.task is not None and worker.process.is_alive():
                os.kill(worker.process.pid, number)


@contextmanager
def open_workers(cores: Sequence[Sequence[int] | None], compiled: Path) -> Iterator[Workers[Any]]:
    """A worker for each element of `cores`; `compiled` is the folder of the persistent cache. At the end those that
    still work are told to save and go (SIGTERM), and waited for.
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


def _work_off(connection: Connection, cores: Sequence[int] | None, compiled: Path, parent: int) -> None:
    """A worker's life. JAX starts a thread for each core that it finds when first used, so these are set first."""
    import jax

    if cores is not None:
        os.sched_setaffinity(0, cores)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else the user has said where
        jax.config.update("jax_compilation_cache_dir", str(compiled.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_OF_COMPILATION_KEPT)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    while True:
        try:
            job: Job = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        job.logs[0].parent.mkdir(parents=True, exist_ok=True)
        with job.logs[0].open("a") as log:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        connection.send(job.work(job.commands, job.logs))


def _die_with(parent: int) -> None:
    """What a killed study leaves must not run on: its members are locked as long as they do."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
