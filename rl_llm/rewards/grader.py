"""Grading in worker processes, so that neither a verifier nor a response can harm the run.

A verifier may raise, hang or kill its process. Each response is graded under its own time limit and has its own status;
no failure shifts another response's grade. Work is sent in chunks. If a chunk hangs, dies or changes its process, its
responses are graded again one by one, to find the culprit. SECURITY.md says what a process may do.
"""

import pickle
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Self, get_args

from rl_llm.problem import Problem
from rl_llm.rewards.components import Reward
from rl_llm.rewards.process import Canaries, GradingError, GradingProcess, Stopped
from rl_llm.rewards.worker import Grade, Items, Status, Verify


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
        self._workers: list[GradingProcess] = []
        self._idle: SimpleQueue[GradingProcess] = SimpleQueue()

    @property
    def key(self) -> tuple[bytes, int, float, int]:
        """Identity of a grader: equal for graders with the same grades at the same pace."""
        return self._scorer, self._worker_count, self._time_limit, self._chunk_size

    def __enter__(self) -> Self:
        """Start the workers. Raises GradingError if they do not come up or cannot load the verifier."""
        canaries = Canaries()
        self._threads = ThreadPoolExecutor(self._worker_count, thread_name_prefix="grader")
        try:
            for _ in range(self._worker_count):
                self._workers.append(GradingProcess(self._scorer, self._time_limit, canaries))
            for worker in self._workers:
                worker.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        for worker in self._workers:
            self._idle.put(worker)
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is None:
            return
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.stop()
        self._threads.shutdown()
        for worker in self._workers:
            worker.close()
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
        except (CancelledError, Stopped) as error:
            raise RuntimeError("the Grader was left before its grades were read") from error


def refuse_ungraded(grades: Sequence[Grade], allowed: float) -> None:
    """Raise GradingError if a response changed its process, or if more than the share `allowed` could not be graded.

    The others are no fair sample then.
    """
    for grade in grades:
        if grade.tampered:
            raise GradingError(
                f"{grade.message}. It did more than be read: code in it was run, or the verifier keeps a state. A run "
                'keeps its text in samples.jsonl ("when": "ungraded"), and no step has learned from it. Mend the '
                "verifier so that it never evaluates text of a response, then resume with --accept-code-changes"
            )
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
