"""Code of a grading process: load the verifier, grade jobs, end when orphaned. `process.py` starts the processes."""

import faulthandler
import json
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal, get_args

from rl_llm.problem import Problem
from rl_llm.rewards.components import Reward, read_number
from rl_llm.rewards.confinement import confine

Verify = Callable[[Problem, str], float]
Items = Sequence[tuple[Problem, str]]
Status = Literal["ok", "error", "timeout", "crashed"]

LARGEST_REWARD = 1e18  # its square is finite in float32, so one reward cannot make the spread of a batch infinite
ORPHAN_SECONDS = 3.0  # time that a hung worker outlives its time limit once its parent is gone


@dataclass(frozen=True)
class Grade:
    """Result for one response. Only the status "ok" has a reward; `message` explains a failure.

    What cannot be graded is no wrong answer: it is left out of statistics and of the loss. `tampered`: after this
    response the process graded known answers differently.
    """

    status: Status
    reward: float
    accuracy: float
    components: dict[str, float] = field(default_factory=dict)
    message: str = ""
    tampered: bool = False


def failed(status: Status, message: str, tampered: bool = False) -> Grade:
    """Make the grade of a response without a score."""
    return Grade(status=status, reward=0.0, accuracy=0.0, message=message, tampered=tampered)


def read_grade(found: dict[str, Any]) -> Grade:
    """Read a grade that a process sent. Raises ValueError, KeyError or TypeError for anything that is none."""
    accuracy, reward, status = float(found["accuracy"]), float(found["reward"]), found["status"]
    if status not in get_args(Status) or not (0.0 <= accuracy <= 1.0 and abs(reward) <= LARGEST_REWARD):
        raise ValueError(f"{found!r:.200} is no grade")
    components = {str(name): float(score) for name, score in found["components"].items()}
    return Grade(status, reward, accuracy, components, str(found["message"]))


def serve(pipe: Connection, scorer: bytes, time_limit: float, folder: str) -> None:
    """Grade the jobs that arrive in `pipe` until its other end is closed, confined to `folder`.

    Sends the protections that this system lacks, or {"error": text} if the verifier cannot be loaded; then, for each
    job, its grades, and whether processes are left that a response started. Replies are JSON: a process that ran
    foreign code must not send pickles.
    """
    os.setsid()  # processes that a verifier starts end with this group, and a terminal's Ctrl-C does not reach it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        pickle.loads(scorer)  # for its imports, before the clock of the first job starts
    except Exception as error:
        _send(pipe, {"error": f"the grading process cannot load the verifier: {_describe(error)}"})
        return
    sys.path[:] = map(os.path.abspath, sys.path)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    os.chdir(folder)
    missing = confine(folder)
    with open(os.devnull, "r+b", buffering=0) as nowhere:
        for stream in range(3):
            os.dup2(nowhere.fileno(), stream)
        _send(pipe, {"missing": missing})
        with suppress(EOFError, OSError):
            while True:
                items = pickle.loads(pipe.recv_bytes())
                # The parent ends a hung worker. Without a parent the worker ends itself, even from C code.
                faulthandler.dump_traceback_later(time_limit + ORPHAN_SECONDS, exit=True, file=nowhere)
                verify, reward = pickle.loads(scorer)  # each job has its own: a verifier may keep a state
                grades = [vars(_grade(verify, reward, problem, response)) for problem, response in items]
                faulthandler.cancel_dump_traceback_later()
                _send(pipe, {"grades": grades, "children": _has_children()})
    os.killpg(0, signal.SIGKILL)  # the parent is gone: end whatever is left


def _send(pipe: Connection, reply: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(reply).encode())


def _has_children() -> bool:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass  # ended, and collected
        return True
    return False


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
