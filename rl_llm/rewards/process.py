"""The parent's side of one grading process: send jobs, wait for grades, replace a process that failed.

The process is confined (`confinement.py`), and its replies are JSON. Between jobs it grades canaries: answers with
known verdicts. If a verdict changes, a response has changed the process.
"""

import json
import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from rl_llm.problem import Problem
from rl_llm.rewards.worker import Grade, Items, failed, read_grade, serve

START_SECONDS = 120.0  # enough to import a heavy verifier on a busy machine
LARGEST_REPLY = 64 << 20  # bytes
# Candidates, in the forms that verifiers read; {} is the gold. The best and the worst become canaries.
CANARIES = ("{}", r"\boxed{{{}}}", "<answer>{}</answer>", "#### {}", "junk", "0", "")

Known = tuple[tuple[Problem, str], Grade]

logger = logging.getLogger(__name__)


class GradingError(RuntimeError):
    """The processes do not start, too many responses cannot be graded, or one changed its process."""


class Stopped(RuntimeError):
    """The process was stopped in the middle of a job."""


class Canaries:
    """Known answers to one problem with their grades by a fresh process, for all processes of a Grader."""

    def __init__(self) -> None:
        self._choosing = Lock()
        self._known: list[Known] | None = None

    def choose(self, process: "GradingProcess", problems: Sequence[Problem]) -> None:
        """Keep the best and the worst known answer to the first problem that has some which can be graded.

        Does nothing if they were chosen before. `process` has not graded a response yet.
        """
        with self._choosing:
            if self._known is not None:
                return
            end = time.monotonic() + process.time_limit
            found = next(filter(None, (_grade_answers(process, problem, end) for problem in problems)), [])
            found.sort(key=lambda known: known[1].accuracy)
            self._known = [*found[:1], *found[1:][-1:]]
            if not found:
                self.give_up("none of its known answers could be graded in time and without an error")

    def changed(self, process: "GradingProcess") -> str | None:
        """Describe the first canary that a process grades differently; None if there is none."""
        known = self._known or []
        again = process.grade_once([item for item, _ in known]) if known else []
        for ((_, answer), before), after in zip(known, again if isinstance(again, list) else [], strict=False):
            if after != before:
                return f"the answer {answer[:80]!r} had {_verdict(before)} before it and has {_verdict(after)} after it"
        return None

    def give_up(self, reason: str) -> None:
        """Use no canaries from now on, and say so."""
        self._known = []
        logger.warning("a response that changes its grading process would go unseen with this verifier: %s", reason)


class GradingProcess:
    """One grading process with one job at a time. It is replaced whenever it hangs, dies or was changed."""

    def __init__(self, scorer: bytes, time_limit: float, canaries: Canaries) -> None:
        self.time_limit = time_limit
        self._scorer = scorer
        self._canaries = canaries
        self._ready = self._stopped = self._has_children = False
        self._replacing = Lock()
        self._start()

    def stop(self) -> None:
        """End the process. A job under way raises Stopped in the thread that waits for it."""
        with self._replacing:
            self._stopped = True
            self._kill()

    def close(self) -> None:
        """Free the pipe and the folder, after `stop` and when no thread waits for a job."""
        self._process.join()
        self._pipe.close()
        self._folder.cleanup()

    def grade(self, items: Items) -> list[Grade]:
        """Grade a chunk, or each item on its own if the chunk hangs, dies or changes the process. Raises Stopped."""
        self._canaries.choose(self, [problem for problem, _ in items])
        outcome = self._grade_and_check(items)
        if isinstance(outcome, list):
            return outcome
        if len(items) == 1:
            return [outcome]
        grades = [grade for item in items for grade in self.grade([item])]
        alone = not outcome.tampered or any(grade.tampered for grade in grades)
        return grades if alone else [outcome] * len(items)

    def _grade_and_check(self, items: Items) -> list[Grade] | Grade:
        grades = self.grade_once(items)
        if not isinstance(grades, list):
            return grades
        change = self._canaries.changed(self)
        if change is not None:
            self._replace()
            if self._canaries.changed(self) is None:
                return failed("error", f"the response changed its grading process: {change}", tampered=True)
            self._canaries.give_up("it grades one answer differently at times")
        elif self._has_children:
            self._replace()
        return grades

    def grade_once(self, items: Items) -> list[Grade] | Grade:
        """Return the grades of one job, or the failure that ended it and the process."""
        try:
            self._send(items)
            reply = self._receive(self.time_limit)
            self._has_children = bool(reply["children"])
            return [read_grade(found) for found in reply["grades"]]
        except TimeoutError:
            failure = failed("timeout", f"no score within {self.time_limit:g} s")
        except (EOFError, ConnectionError):
            self._process.join(1.0)
            failure = failed("crashed", f"the grading process ended with exit code {self._process.exitcode}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            failure = failed("crashed", f"the grading process sent no grades: {error!r}")
        self._replace()
        return failure

    def wait_until_ready(self) -> None:
        """Wait until the verifier is loaded. Raises GradingError if that fails."""
        if self._ready:
            return
        try:
            reply = self._receive(START_SECONDS)
        except (OSError, EOFError) as error:
            if self._stopped:
                raise Stopped from None
            self._process.join(1.0)
            reply = {"error": f"{error!r}, exit code {self._process.exitcode}"}
        if "error" in reply:
            raise GradingError(
                f"a grading process did not start: {reply['error']}. Its own message, if any, is above. A script that "
                'starts processes needs `if __name__ == "__main__":`; an experiment file with its own task needs a '
                "name that no installed module has"
            )
        _say_missing(tuple(reply["missing"]))
        self._ready = True

    def _send(self, items: Items) -> None:
        if self._ready and not self._process.is_alive():
            self._replace()  # it died while idle, perhaps killed for memory
        self.wait_until_ready()
        self._pipe.send_bytes(pickle.dumps(items))

    def _receive(self, seconds: float) -> dict[str, Any]:
        if not self._pipe.poll(seconds):
            raise TimeoutError
        return json.loads(self._pipe.recv_bytes(LARGEST_REPLY))

    def _replace(self) -> None:
        with self._replacing:
            if self._stopped:
                raise Stopped
            self._kill()
            self.close()
            self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # never forked: the parent runs JAX's threads
        self._folder = TemporaryDirectory(prefix="rl_llm_grading_", ignore_cleanup_errors=True)
        self._pipe, other_end = context.Pipe()
        arguments = (other_end, self._scorer, self.time_limit, self._folder.name)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._ready = self._has_children = False
        self._process.start()
        assert self._process.pid is not None
        self._pid = self._process.pid
        other_end.close()

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # before it leads its group; on macOS, once it has ended
            os.killpg(self._pid, signal.SIGKILL)
        self._process.kill()


def _grade_answers(process: GradingProcess, problem: Problem, end: float) -> list[Known]:
    """Known answers to a problem that are graded alike twice, until one hangs or the time is over."""
    found: list[Known] = []
    for item in ((problem, text.format(problem.answer)) for text in CANARIES):
        first = process.grade_once([item]) if time.monotonic() < end else None
        if not isinstance(first, list):
            break
        if first[0].status == "ok" and process.grade_once([item]) == first:
            found.append((item, first[0]))
    return found


def _verdict(grade: Grade) -> str:
    return f"reward {grade.reward:g}" if grade.status == "ok" else f"{grade.status}, {grade.message[:80]}"


@lru_cache(maxsize=1)
def _say_missing(missing: Sequence[str]) -> None:
    if missing:
        logger.warning("grading processes run without protection of: %s (see SECURITY.md)", ", ".join(missing))
