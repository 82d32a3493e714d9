"""Grading in worker processes, so that no verifier can hurt the run.

A verifier may raise, hang or kill its process: each response is graded under its own time limit and reported
under its own status, and no failure shifts the grade of another response. Work travels in chunks. A chunk
that hangs or dies does not say which of its responses did it, so they are graded again, one by one.

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

START_SECONDS = 120.0  # Enough to import a heavy verifier on a busy machine.


class GradingError(RuntimeError):
    """Nothing can be graded: the processes do not come up, or every response of a rollout failed."""


class Grader:
    """A pool of grading processes; use it as a context manager.

    verify, reward: the task's verifier and the composition of the reward; both must be picklable.
    workers: the number of processes.
    time_limit: seconds for one response (and for a chunk, before it is graded one by one).
    chunk_size: responses sent to a worker at once.
    Raises ValueError for arguments out of range, and TypeError for what cannot be pickled.
    """

    def __init__(
        self,
        verify: Verify,
        reward: Reward,
        workers: int = 2,
        time_limit: float = 5.0,
        chunk_size: int = 64,
    ) -> None:
        for name, value in (("workers", workers), ("time_limit", time_limit), ("chunk_size", chunk_size)):
            if value <= 0:
                raise ValueError(f"{name}={value}: it must be positive")
        try:
            self._scorer = pickle.dumps((verify, reward))
        except Exception as error:
            raise TypeError(
                f"{verify!r} with {reward!r} cannot be sent to a grading process ({error}): define verifiers "
                "and components at the top level of a module, without locks, open files or lambdas"
            ) from error
        self._worker_count = workers
        self._time_limit = time_limit
        self._chunk_size = chunk_size
        self._threads: ThreadPoolExecutor | None = None
        self._workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()

    @property
    def key(self) -> tuple[bytes, int, float, int]:
        """Equal for graders that would give the same grades at the same pace."""
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
                f"a grading process did not start: {error}. Its own message, if any, is above; a script that starts "
                'processes needs its `if __name__ == "__main__":`, and an experiment file with a task of its own needs '
                "a name that no installed module has"
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
        """One grade for each response, in order; `responses[i]` answers `problems[i]`."""
        return self.submit(problems, responses).result()

    def submit(self, problems: Sequence[Problem], responses: Sequence[str]) -> "PendingGrades":
        """Start grading and return at once, so that the device can work meanwhile.

        Raises ValueError if the lengths differ and RuntimeError outside the `with` block.
        """
        if self._threads is None:
            raise RuntimeError("the Grader is not running: use it inside `with Grader(...) as grader:`")
        if len(problems) != len(responses):
            raise ValueError(f"{len(problems)} problems but {len(responses)} responses: give a problem for each")
        items = list(zip(problems, responses, strict=True))
        chunks = [items[i : i + self._chunk_size] for i in range(0, len(items), self._chunk_size)]
        return PendingGrades([self._threads.submit(self._grade_chunk, chunk) for chunk in chunks])

    def _grade_chunk(self, items: Items) -> list[Grade]:
        worker = self._idle.get()  # There are as many workers as threads, so one is idle.
        try:
            return worker.grade(items)
        finally:
            self._idle.put(worker)


class PendingGrades:
    """Grades under way; ask for their result before the Grader is left."""

    def __init__(self, chunks: Sequence[Future[list[Grade]]]) -> None:
        self._chunks = chunks

    def result(self) -> list[Grade]:
        """Wait for all: one grade for each response, in the order of the responses.

        Raises RuntimeError if the Grader was left before the grading was done.
        """
        try:
            return [grade for chunk in self._chunks for grade in chunk.result()]
        except (CancelledError, _Stopped) as error:
            raise RuntimeError("the Grader was left before its grades were asked for") from error


class _Stopped(RuntimeError):
    """The worker was stopped in the middle of a job."""


class _Worker:
    """One grading process, replaced whenever it hangs or dies.

    It is a pebble pool of its own with one job at a time. In a shared pool, a worker that ends one job and
    dies in the next before the parent has read of either leaves the death to the wrong job.
    """

    def __init__(self, scorer: bytes, time_limit: float) -> None:
        self._scorer = scorer
        self._time_limit = time_limit
        self._pool = self._new_pool()
        self._stopped = False
        self._replacing = Lock()

    def stop(self) -> None:
        """End the process; a job under way raises _Stopped in the thread that waits for it."""
        with self._replacing:
            self._stopped = True
            self._pool.stop()

    def join(self) -> None:
        """Wait for the end, after `stop`."""
        self._pool.join()

    def grade(self, items: Items) -> list[Grade]:
        """The grades of a chunk; of each item on its own if the chunk hangs or dies. Raises _Stopped."""
        outcome = self._try(items)
        if isinstance(outcome, list):
            return outcome
        if len(items) == 1:
            return [outcome]
        return [grade for item in items for grade in self.grade([item])]

    def _try(self, items: Items) -> list[Grade] | Grade:
        """The grades of one job, or the one failure that ended it."""
        for _ in range(2):
            try:
                return self.wait(self.schedule(items))
            except TimeoutError:
                return failed("timeout", f"no score within {self._time_limit:g} s")
            except ProcessExpired as error:
                return failed("crashed", f"the grading process ended with exit code {error.exitcode}")
            except BrokenProcessPool:
                # The process died before pebble knew which job it had. It may have died while idle (killed
                # for memory, say), so the job gets a second try.
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
        """The grades of a job. Raises TimeoutError, ProcessExpired or BrokenProcessPool if it has none."""
        # A pool that breaks or is stopped may leave its job without an end.
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


def refuse_all_failed(grades: Sequence[Grade]) -> None:
    """Raises GradingError when not one response could be graded: such rewards say nothing of the policy."""
    if all(grade.status != "ok" for grade in grades):
        raise GradingError(
            f"none of {len(grades)} responses could be graded; the first: {grades[0].status}, {grades[0].message}. "
            "Mend the task's verifier or the components of the reward."
        )


def count_statuses(grades: Sequence[Grade]) -> dict[str, int]:
    """How many grades have each status, with a 0 for those that none has."""
    counts = Counter(grade.status for grade in grades)
    return {status: counts[status] for status in get_args(Status)}
