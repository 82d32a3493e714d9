"""Code of a grading process: load the verifier, grade chunks, end when orphaned. `grader.py` starts the processes."""

import faulthandler
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from rl_llm.problem import Problem
from rl_llm.rewards.components import Reward, read_number

Verify = Callable[[Problem, str], float]
Items = Sequence[tuple[Problem, str]]
Status = Literal["ok", "error", "timeout", "crashed"]

LARGEST_REWARD = 1e18  # its square is finite in float32, so one reward cannot make the spread of a batch infinite
ORPHAN_SECONDS = 3.0  # time that a hung worker outlives its time limit once its parent is gone


@dataclass(frozen=True)
class Grade:
    """Result for one response. Only the status "ok" has a reward; `message` explains a failure.

    What cannot be graded is no wrong answer: it is left out of statistics and of the loss.
    """

    status: Status
    reward: float
    accuracy: float
    components: dict[str, float] = field(default_factory=dict)
    message: str = ""


def failed(status: Status, message: str) -> Grade:
    """Make the grade of a response without a score."""
    return Grade(status=status, reward=0.0, accuracy=0.0, message=message)


def start_worker(scorer: bytes) -> None:
    """Prepare a worker process before the clock of its first job starts."""
    # pebble handles SIGTERM in Python code, which a verifier stuck in C code (9**9**9) never reaches.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the parent, which still grades a step
    # pebble takes exit code 0 for a normal end and never settles the job of that worker.
    exit_process = os._exit

    def exit_as_failure(status: int) -> NoReturn:
        exit_process(status or 1)

    os._exit = exit_as_failure
    with suppress(Exception):
        pickle.loads(scorer)  # for its imports; each job loads it again and reports errors


def grade_items(scorer: bytes, items: bytes, time_limit: float) -> list[Grade]:
    """Grade the pickled (problem, response) pairs of one job, in order.

    Raises RuntimeError if the verifier cannot be loaded.
    """
    try:
        verify, reward = pickle.loads(scorer)
    except Exception as error:
        raise RuntimeError(f"the grading process cannot load the verifier: {_describe(error)}") from None
    with open(os.devnull, "w") as nowhere:
        # The parent ends a hung worker. Without a parent the worker ends itself, even from C code.
        faulthandler.dump_traceback_later(time_limit + ORPHAN_SECONDS, exit=True, file=nowhere)
        try:
            return [_grade(verify, reward, problem, response) for problem, response in pickle.loads(items)]
        finally:
            faulthandler.cancel_dump_traceback_later()


def _grade(verify: Verify, reward: Reward, problem: Problem, response: str) -> Grade:
    try:
        expected = "a number (float, int or bool) from 0 to 1"
        accuracy = read_number(verify(problem, response), "the verifier", expected, 0.0, 1.0)
        total, components = reward(problem, response, accuracy)
        if not abs(total) <= LARGEST_REWARD:
            raise ValueError(f"the reward {total!r}, of {components}, is not a number that float32 can hold")
    except BaseException as error:  # a verifier may call sys.exit
        return failed("error", _describe(error))
    return Grade(status="ok", reward=float(total), accuracy=accuracy, components=components)


def _describe(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()[:500]
