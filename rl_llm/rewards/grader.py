"""Grading in worker processes, so that no verifier can harm the run.

A verifier may raise, hang or kill its process. Each response is graded under its own time limit and has its own status;
no failure shifts another response's grade. Work is sent in chunks. If a chunk hangs or dies, its responses are graded
again one by one, to find the culprit.

Workers are spawned, never forked (the parent runs JAX's threads), and import no JAX.
"""

import multiprocessing
import pickle
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from queue import SimpleQueue
from threading import Lock
from typing import Self, get_args

from pebble import ProcessExpired, ProcessPool

from rl_llm.problem import Problem
from rl_llm.rewards.components import Reward
from rl_llm.rewards.worker import Grade, Items, Status, Verify, failed, grade_items, start_worker

START_SECONDS = 120.0  # enough to import a heavy verifier on a busy machine


class GradingError(RuntimeError):
    """The processes do not start, or too many responses cannot be graded."""


class Grader:
    """Pool of grading processes, used as a context manager.

    `verify` (the task's verifier) and `reward` must be picklable. `time_limit` is in seconds, for one response and for
    a chunk before it is graded one by one; a worker receives `chunk_size` responses at once. Raises ValueError for
    arguments out of range and TypeError for values that cannot be pickled.
    """

    def __init__(
        self, verify: Verify, reward: Reward, workers: int = 2, time_limit: float = 5.0, chunk_size: int = 64
    ) -> None:
        for name, value in (("workers", workers), ("time_limit", time_limit), ("chunk_size", chunk_size)):
            if value <= 0:
                raise ValueError(f"{name}={value} is out of range; expected > 0")
        try:
            self._scorer = pickle.dumps((verify, reward))
        except Exception as error:
            raise TypeError(
                f"{verify!r} with {reward!r} cannot be sent to a grading process ({error}); define verifiers and "
                "components at the top level of a module, without locks, open files or lambdas"
            ) from error
        self._worker_count = workers
        self._time_limit = time_limit
        self._chunk_size = chunk_size
        self._threads: ThreadPoolExecutor | None = None
        self._workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()

    @property
    def key(self) -> tuple[bytes, int, float, int]:
        """Identity of a grader: equal for graders with the same grades at the same pace."""
        return self._scorer, self._worker_count, self._time_limit, self._chunk_size

    def __enter__(self) -> Self:
        """Start the workers. Raises GradingError if they do not come up or cannot load the verifier."""
        self._workers = [_Worker(self._scorer, self._time_limit) for _ in range(self._worker_count)]
        self._threads = ThreadPoolExecutor(self._worker_count, thread_name_prefix="grader")
        try:
            starts = [worker.schedule([]) for worker in self._workers]
            for worker, start in zip(self._workers, starts, strict=True):
                worker.wait(start)
        except (RuntimeError, TimeoutError, ProcessExpired) as error:
            self.__exit__()
            raise GradingError(
                f"a grading process did not start: {error}. Its own message, if any, is above. A script that starts "
                'processes needs `if __name__ == "__main__":`; an experiment file with its own task needs a name that '
                "no installed module has"
            ) from error
        for worker in self._workers:
            self._idle.put(worker)
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is None:
            return
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()
        self._threads.shutdown()
        self._threads, self._workers, self._idle = None, [], SimpleQueue()

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Grade `responses[i]` to `problems[i]`, for every i, in order."""
        return self.submit(problems, responses).result()

    def submit(self, problems: Sequence[Problem], responses: Sequence[str]) -> "PendingGrades":
        """Start grading and return at once, so that the device can work meanwhile.

        Raises ValueError for different lengths and RuntimeError outside the `with` block.
        """
        if self._threads is None:
            raise RuntimeError("the Grader is not running; use it inside `with Grader(...) as grader:`")
        if len(problems) != len(responses):
            raise ValueError(f"{len(problems)} problems but {len(responses)} responses; give one problem per response")
        items = list(zip(problems, responses, strict=True))
        chunks = [items[i : i + self._chunk_size] for i in range(0, len(items), self._chunk_size)]
        return PendingGrades([self._threads.submit(self._grade_chunk, chunk) for chunk in chunks])

    def _grade_chunk(self, items: Items) -> list[Grade]:
        worker = self._idle.get()  # one is idle: there are as many workers as threads
        try:
            return worker.grade(items)
        finally:
            self._idle.put(worker)


class PendingGrades:
    """Grades under way; read the result inside the `with` block of the Grader."""

    def __init__(self, chunks: Sequence[Future[list[Grade]]]) -> None:
        self._chunks = chunks

    def result(self) -> list[Grade]:
        """Wait for one grade per response, in order. Raises RuntimeError if the Grader has been left too early."""
        try:
            return [grade for chunk in self._chunks for grade in chunk.result()]
        except (CancelledError, _Stopped) as error:
            raise RuntimeError("the Grader was left before its grades were read") from error


class _Stopped(RuntimeError):
    """The worker was stopped in the middle of a job."""


class _Worker:
    """One grading process, replaced whenever it hangs or dies.

    It is a pebble pool of one process with one job at a time. A shared pool may blame the wrong job: a worker can
    finish one job and die in the next before the parent has heard of either.
    """

    def __init__(self, scorer: bytes, time_limit: float) -> None:
        self._scorer = scorer
        self._time_limit = time_limit
        self._pool = self._new_pool()
        self._stopped = False
        self._replacing = Lock()

    def stop(self) -> None:
        """End the process. A job under way raises _Stopped in the thread that waits for it."""
        with self._replacing:
            self._stopped = True
            self._pool.stop()

    def join(self) -> None:
        """Wait for the process to end, after `stop`."""
        self._pool.join()

    def grade(self, items: Items) -> list[Grade]:
        """Grade a chunk, or each item on its own if the chunk hangs or dies. Raises _Stopped."""
        outcome = self._try(items)
        if isinstance(outcome, list):
            return outcome
        if len(items) == 1:
            return [outcome]
        return [grade for item in items for grade in self.grade([item])]

    def _try(self, items: Items) -> list[Grade] | Grade:
        """Return the grades of one job, or the failure that ended it."""
        for _ in range(2):
            try:
                return self.wait(self.schedule(items))
            except TimeoutError:
                return failed("timeout", f"no score within {self._time_limit:g} s")
            except ProcessExpired as error:
                return failed("crashed", f"the grading process ended with exit code {error.exitcode}")
            except BrokenProcessPool:
                # The process died before pebble knew its job, perhaps while idle (killed for memory, say), so the job
                # gets a second try.
                self._replace()
        return failed("crashed", "the grading process died twice")

    def schedule(self, items: Items) -> Future[list[Grade]]:
        """Send one job. Raises BrokenProcessPool if the process is dead."""
        arguments = (self._scorer, pickle.dumps(items), self._time_limit)
        try:
            return self._pool.schedule(grade_items, args=arguments, timeout=self._time_limit)
        except RuntimeError as error:
            raise BrokenProcessPool("the grading process died") from error

    def wait(self, job: Future[list[Grade]]) -> list[Grade]:
        """Wait for the grades of a job. Raises TimeoutError, ProcessExpired or BrokenProcessPool if there are none."""
        # A pool that breaks or is stopped may never settle its job.
        deadline = time.monotonic() + START_SECONDS + self._time_limit
        while not job.done():
            if not self._pool.active or time.monotonic() > deadline:
                raise BrokenProcessPool("the grading process died")
            wait([job], timeout=0.5)
        return job.result()

    def _replace(self) -> None:
        with self._replacing:
            if self._stopped:
                raise _Stopped
            self._pool.stop()
            self._pool.join()
            self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPool:
        context = multiprocessing.get_context("spawn")
        return ProcessPool(max_workers=1, initializer=start_worker, initargs=(self._scorer,), context=context)


def refuse_ungraded(grades: Sequence[Grade], allowed: float) -> None:
    """Raise GradingError if more than the share `allowed` could not be graded: the rest is no fair sample."""
    failed = [grade for grade in grades if grade.status != "ok"]
    if len(failed) > allowed * len(grades):
        raise GradingError(
            f"{len(failed)} of {len(grades)} responses could not be graded ({len(failed) / len(grades):.0%}; "
            f"grading.ungraded allows {allowed:.0%}); the first: {failed[0].status}, {failed[0].message}. A run keeps "
            'their texts in samples.jsonl ("when": "ungraded"). Mend the task\'s verifier or the components of the '
            "reward, then resume with --accept-code-changes"
        )


def count_statuses(grades: Sequence[Grade]) -> dict[str, int]:
    """Count the grades of each status, zeros included."""
    counts = Counter(grade.status for grade in grades)
    return {status: counts[status] for status in get_args(Status)}
