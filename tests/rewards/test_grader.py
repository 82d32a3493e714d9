"""Grading processes with verifiers that misbehave, and the composition of rewards."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rl_llm.problem import Problem
from rl_llm.rewards.components import Accuracy, Reward
from rl_llm.rewards.grader import Grader, count_statuses
from rl_llm.rewards.worker import Grade

TIME_LIMIT = 0.5


@dataclass(frozen=True)
class Length:
    weight: float = 1.0
    offset: float = 0.0

    def __call__(self, problem: Problem, response: str, accuracy: float) -> float:
        return len(response) + self.offset


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def mark(paths: list[str]) -> None:
    """Open named pipes, so that a test can wait until the verifier runs (it may not write)."""
    for path in paths:
        Path(path).open().close()


def behave(problem: Problem, response: str) -> float:
    """A verifier that obeys the response."""
    match response.split():
        case ["raise"]:
            raise KeyError(problem.prompt)
        case ["raise-unprintable"]:
            raise Unprintable
        case ["hang", *marks]:
            mark(marks)
            while True:
                pass
        case ["hang-in-c", *marks]:
            mark(marks)
            return float(9**9**9)
        case ["exit"]:
            sys.exit(3)
        case ["die", code]:
            os._exit(int(code))
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["give", value]:
            found = {"nan": float("nan"), "none": None, "text": "1", "two": 2.0, "int": 1, "bool": True}
            arrays = {"np.bool": np.True_, "np.float32": np.float32(1), "np.array": np.array(1), "list": np.ones(1)}
            return (found | arrays)[value]
        case ["pid"]:
            raise RuntimeError(os.getpid())
    return 1.0 if response == problem.answer else 0.0


def no_jax(problem: Problem, response: str) -> float:
    return 0.0 if "jax" in sys.modules else 1.0


def was_imported(problem: Problem, response: str) -> float:
    return 1.0 if response in sys.modules else 0.0


class OnlyInTheParent:
    """Its pickle loads only in the process `parent_pid`."""

    def __init__(self, parent_pid: int) -> None:
        self.parent_pid = parent_pid

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["parent_pid"] != os.getpid():
            raise ModuleNotFoundError("No module named 'experiment'")
        self.__dict__.update(state)

    def __call__(self, problem: Problem, response: str) -> float:
        return 1.0


def problems(count: int) -> list[Problem]:
    return [Problem(id=index, prompt=f"prompt {index}", answer=f"answer {index}") for index in range(count)]


def environment(*extra_path: Path) -> dict[str, str]:
    """Environment of this process, with this repository, this folder and `extra_path` on PYTHONPATH."""
    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here.parents[1], here, *extra_path)))}


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture(scope="module")
def grader():
    with Grader(behave, Reward(), workers=2, time_limit=TIME_LIMIT, chunk_size=4) as grader:
        yield grader


def test_grades_keep_the_order_over_many_chunks(grader):
    asked = problems(50)
    responses = [problem.answer if problem.id % 3 == 0 else "wrong" for problem in asked]
    expected = [1.0 if problem.id % 3 == 0 else 0.0 for problem in asked]
    grades = grader.grade(asked, responses)
    assert [grade.accuracy for grade in grades] == expected
    assert grades[0] == Grade(status="ok", reward=1.0, accuracy=1.0, components={"accuracy": 1.0})


def test_hostile_responses_do_not_shift_other_grades(grader):
    hostile = {2: ("hang", "timeout"), 5: ("die 0", "crashed"), 6: ("raise", "error"), 9: ("kill", "crashed")}
    asked = problems(12)
    responses = [hostile[problem.id][0] if problem.id in hostile else problem.answer for problem in asked]
    grades = grader.grade(asked, responses)
    assert [grade.status for grade in grades] == [hostile.get(problem.id, ("", "ok"))[1] for problem in asked]
    assert [grade.reward for grade in grades] == [0.0 if problem.id in hostile else 1.0 for problem in asked]
    assert count_statuses(grades) == {"ok": 8, "error": 1, "timeout": 1, "crashed": 2}


@pytest.mark.parametrize(
    ("response", "status", "message"),
    [
        ("raise", "error", "KeyError: 'prompt 0'"),
        ("raise-unprintable", "error", "Unprintable"),
        ("exit", "error", "SystemExit: 3"),
        ("give nan", "error", "nan, of class float; expected a number (float, int or bool) from 0 to 1"),
        ("give none", "error", "None, of class NoneType; expected a number"),
        ("give text", "error", "'1', of class str; expected a number"),
        ("give list", "error", "array([1.]), of class ndarray; expected a number"),
        ("give two", "error", "2.0, of class float; expected a number (float, int or bool) from 0 to 1"),
        ("hang", "timeout", "no score within 0.5 s"),
        ("hang-in-c", "timeout", "no score within 0.5 s"),
        ("die 0", "crashed", "exit code 0"),
        ("die 7", "crashed", "exit code 7"),
        ("kill", "crashed", "exit code -9"),
    ],
)
def test_a_failure_has_its_status_and_reason(grader, response, status, message):
    (grade,) = grader.grade(problems(1), [response])
    assert (grade.status, grade.reward) == (status, 0.0)
    assert message in grade.message


@pytest.mark.parametrize("given", ["int", "bool", "np.bool", "np.float32", "np.array"])
def test_a_verifier_may_give_any_number_of_python_or_numpy(grader, given):
    (grade,) = grader.grade(problems(1), [f"give {given}"])
    assert grade == Grade(status="ok", reward=1.0, accuracy=1.0, components={"accuracy": 1.0})


def test_submit_returns_before_the_work_is_done(grader):
    pending = grader.submit(problems(2), ["hang", "answer 1"])
    assert [grade.status for grade in pending.result()] == ["timeout", "ok"]
    assert [grade.status for grade in grader.grade(problems(1), ["answer 0"])] == ["ok"]


def test_nothing_to_grade(grader):
    assert grader.grade([], []) == []


def test_lengths_that_differ_are_refused(grader):
    with pytest.raises(ValueError, match="2 problems but 1 responses"):
        grader.grade(problems(2), ["answer 0"])


def test_workers_that_die_while_idle_are_replaced():
    with Grader(behave, Reward(), workers=1, time_limit=TIME_LIMIT) as grader:
        (grade,) = grader.grade(problems(1), ["pid"])
        os.kill(int(grade.message.removeprefix("RuntimeError: ")), signal.SIGKILL)
        assert [grade.reward for grade in grader.grade(problems(3), ["answer 0", "x", "answer 2"])] == [
            1.0,
            0.0,
            1.0,
        ]


def test_workers_do_not_import_jax():
    import jax  # noqa: F401 (the parent has it)

    with Grader(no_jax, Reward(), workers=1) as grader:
        assert grader.grade(problems(1), [""])[0].accuracy == 1.0


def test_workers_do_not_import_the_program_that_started_them(tmp_path):
    package = tmp_path / "program"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import wave\n"
        "from rl_llm.rewards.components import Reward\n"
        "from rl_llm.rewards.grader import Grader\n"
        "from test_grader import problems, was_imported\n"
        "with Grader(was_imported, Reward(), workers=1) as grader:\n"
        "    print([grade.accuracy for grade in grader.grade(problems(2), ['wave', 'rl_llm.problem'])])\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "program"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[0.0, 1.0]"


@pytest.mark.slow
def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    program = f"""
import multiprocessing, os, pathlib, time
from rl_llm.rewards.components import Reward
from rl_llm.rewards.grader import Grader
from test_grader import behave, problems
marks = [pathlib.Path({str(tmp_path)!r}, name) for name in ("python", "c")]
for mark in marks:
    os.mkfifo(mark)
with Grader(behave, Reward(), workers=3, time_limit=2, chunk_size=1) as grader:
    grader.submit(problems(2), [f"hang {{marks[0]}}", f"hang-in-c {{marks[1]}}"])
    for mark in marks:
        mark.open("w").close()  # waits until the verifier opens its end
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()
    ) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(workers) == 3
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in workers if is_running(pid)] == []


def test_a_verifier_that_cannot_be_pickled_is_refused():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="cannot be sent to a grading process"):
        Grader(lambda problem, response: 1.0 if lock else 0.0, Reward())


def test_a_verifier_that_a_worker_cannot_load_is_refused_at_the_start():
    grader = Grader(OnlyInTheParent(os.getpid()), Reward(), workers=1)
    with pytest.raises(RuntimeError, match="No module named 'experiment'"):
        grader.__enter__()


def test_a_grader_that_is_not_running_is_refused():
    with pytest.raises(RuntimeError, match="use it inside `with Grader"):
        Grader(behave, Reward()).grade(problems(1), [""])


def test_a_pending_result_after_the_end_is_refused():
    with Grader(behave, Reward(), workers=1, time_limit=30) as grader:
        pending = grader.submit(problems(1), ["hang"])
    with pytest.raises(RuntimeError, match="left before its grades were read"):
        pending.result()


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"time_limit": 0.0}, {"chunk_size": -1}])
def test_a_value_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*is out of range; expected > 0"):
        Grader(behave, Reward(), **wrong)


def test_a_reward_is_the_weighted_sum_of_its_components():
    total, scores = Reward((Accuracy(weight=2.0), Length(weight=-0.5)))(problems(1)[0], "four", 0.75)
    assert (total, scores) == (2.0 * 0.75 - 0.5 * 4.0, {"accuracy": 0.75, "length": 4.0})


@dataclass(frozen=True)
class Given:
    """A component with a score of some class."""

    score: object
    weight: float = 1.0

    def __call__(self, problem: Problem, response: str, accuracy: float) -> float:
        return self.score  # type: ignore[return-value]


@pytest.mark.parametrize("score", [True, 1, 1.0, Fraction(1), np.float32(1.0), np.int64(1), np.True_, np.array(1.0)])
def test_a_component_may_give_any_number_of_python_or_numpy(score):
    assert Reward((Given(score),))(problems(1)[0], "", 0.0) == (1.0, {"given": 1.0})


NO_NUMBERS = ("1", None, [1.0], 1j, float("nan"), np.str_("1"), np.array("1"), np.ones(1), np.float32("nan"))


@pytest.mark.parametrize("score", NO_NUMBERS)
def test_a_component_that_gives_anything_else_is_refused_with_its_class(score):
    with pytest.raises(
        ValueError, match=f"component given gave .*, of class {type(score).__name__}; expected a finite"
    ):
        Reward((Given(score),))(problems(1)[0], "", 0.0)


def test_a_component_that_gives_no_number_is_an_error():
    with Grader(behave, Reward((Length(offset=float("inf")),)), workers=1) as grader:
        (grade,) = grader.grade(problems(1), [""])
    assert grade.status == "error"
    assert "the component length gave inf" in grade.message


def test_a_reward_whose_square_overflows_is_an_error():
    """The spread of the batch would be infinite in float32, and every advantage 0."""
    with Grader(behave, Reward((Length(offset=1e300),)), workers=1) as grader:
        (grade,) = grader.grade(problems(1), [""])
    assert (grade.status, grade.reward) == ("error", 0.0)
    assert "not a number that float32 can hold" in grade.message


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ((), "components is empty"),
        ((Accuracy(), Accuracy(2.0)), "accuracy more than once"),
        ((Accuracy(0.0),), "expected a finite number except 0"),
        ((partial(len, "x"),), r"functools.partial.* is no component; expected a dataclass with `weight` and `__call"),
        ((Length,), r"Length.* is no component"),
    ],
)
def test_a_wrong_composition_is_refused(components, message):
    with pytest.raises(ValueError, match=message):
        Reward(components)
