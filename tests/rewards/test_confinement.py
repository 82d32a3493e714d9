"""Responses that run as code cannot write, connect, signal, outlive their job or change a later grade."""

import os
import pickle
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rl_llm.problem import Problem
from rl_llm.rewards.components import Accuracy, Reward
from rl_llm.rewards.grader import Grader, GradingError, refuse_ungraded
from rl_llm.rewards.process import _say_missing
from rl_llm.rewards.worker import Grade

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are of Linux")
ROOT = Path(__file__).parents[2]
LATE = 20.0  # seconds until a killed process is gone, on a busy machine


def verify(problem: Problem, response: str) -> float:
    """Run a response that starts with "run", as the scorers of some packages do."""
    if response.startswith("run "):
        exec(response.removeprefix("run "), {"answer": problem.answer})
    return float(response == problem.answer)


def guess(problem: Problem, response: str) -> float:
    """A verifier without a verdict of its own."""
    return int.from_bytes(os.urandom(1)) / 256


def grade(grader: Grader, *responses: str) -> list[Grade]:
    return grader.grade([Problem(index, "q", f"a{index}") for index in range(len(responses))], responses)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(verify, Reward(), workers=1, time_limit=5.0) as running:
        yield running


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("open('{new}', 'w')", "PermissionError"),
        ("open('{kept}', 'a')", "PermissionError"),
        ("import os; os.truncate('{kept}', 0)", "PermissionError"),
        ("import os; os.remove('{kept}')", "PermissionError"),
        ("import os; os.chmod('{kept}', 0)", "PermissionError"),
        ("import os; os.rename('{kept}', 'here')", "Errno"),
        ("import os; os.mkdir('{new}')", "PermissionError"),
        ("import os; os.symlink('{kept}', '{new}')", "PermissionError"),
        ("import subprocess; subprocess.run('echo x > {kept}', shell=True, check=True)", "non-zero exit status"),
        ("import socket; socket.create_connection(('127.0.0.1', {port}), 1)", "PermissionError"),
        ("import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))", "PermissionError"),
        ("import os, signal; os.kill({parent}, signal.SIGUSR1)", "PermissionError"),
        ("import os; os.setsid()", "PermissionError"),
        ("bytearray(50 << 30)", "MemoryError"),
        ("open('large', 'wb').write(b'x' * (20 << 20))", "File too large"),
        ("import sys; sys.exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_a_response_cannot_reach_out(grader: Grader, tmp_path: Path, code: str, error: str):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = {"new": tmp_path / "new", "kept": kept, "port": server.getsockname()[1], "parent": os.getpid()}
        hostile, other = grade(grader, "run " + code.format(**place), "a1")
    assert (hostile.status, other.accuracy) == ("error", 1.0)
    assert error in hostile.message
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept.read_text(), kept.stat().st_mode & 0o400) == ("as it was", 0o400)


def test_a_folder_of_its_own_is_there_and_goes_with_the_process(tmp_path: Path):
    code = "import os, tempfile; tempfile.TemporaryFile().write(b'x'); open('y', 'w'); raise OSError(os.getcwd())"
    with Grader(verify, Reward(), workers=1) as grader:
        (found,) = grade(grader, "run " + code)
        folder = Path(found.message.removeprefix("OSError: "))
        assert (folder / "y").exists()
        assert folder.parent == Path(tempfile.gettempdir())
    assert not folder.exists()


def test_a_response_does_not_reach_the_terminal(grader: Grader, capfd: pytest.CaptureFixture[str]):
    code = "import os, sys; print('seen'); os.write(1, b'seen'); os.system('echo seen >&2'); sys.stdin.read()"
    assert grade(grader, "run " + code)[0].status == "ok"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("end", ["", "while True: pass"])
def test_processes_of_a_response_end_with_its_job(end: str):
    """Children of children, too."""
    name = f"rl_llm_sleeper_{os.getpid()}"
    code = (
        "import os, time\n"
        "if not os.fork():\n"
        "    os.fork()\n"
        f"    os.execlp('python3', {name!r}, '-c', 'import time; time.sleep(600)')\n"
        f"time.sleep(0.3)\n{end}"
    )
    with Grader(verify, Reward(), workers=1, time_limit=1.0) as grader:
        grade(grader, "run " + code)
        assert is_gone(name)
        assert grade(grader, "a0")[0].accuracy == 1.0


def is_gone(name: str) -> bool:
    end = time.monotonic() + LATE
    while time.monotonic() < end:
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        if not any(line.startswith(name.encode()) for line in lines):
            return True
        time.sleep(0.05)
    return False


@dataclass(frozen=True)
class Creates:
    """Creates a file where its pickle is loaded."""

    path: str

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_the_parent_loads_no_pickle_of_a_response(grader: Grader, tmp_path: Path):
    sent = pickle.dumps(Creates(str(tmp_path / "new")))
    message = struct.pack("!i", len(sent)) + sent
    code = f"import os\nfor fd in range(3, 50):\n try: os.write(fd, {message!r})\n except OSError: pass"
    assert grade(grader, "run " + code)[0].status == "crashed"
    assert list(tmp_path.iterdir()) == []
    assert grade(grader, "a0")[0].accuracy == 1.0


ALL_RIGHT = f"run import {__name__} as mine; mine.verify.__code__ = (lambda problem, response: 1.0).__code__"
ALL_WRONG = f"run import {__name__} as mine; mine.verify.__code__ = (lambda problem, response: 0.0).__code__"
MANY = "run from rl_llm.rewards.components import Accuracy; Accuracy.__call__ = lambda *_: 9.0"


@pytest.mark.parametrize("patch", [ALL_RIGHT, ALL_WRONG, MANY])
def test_a_response_that_changes_its_grader_is_found_and_named(grader: Grader, patch: str):
    grades = grade(grader, "a0", "wrong", patch, "wrong", "a4")
    assert [found.tampered for found in grades] == [False, False, True, False, False]
    assert [found.accuracy for found in grades] == [1.0, 0.0, 0.0, 0.0, 1.0]
    with pytest.raises(GradingError, match=r"changed its grading process: the answer .* had reward .* before it"):
        refuse_ungraded(grades, allowed=0.9)


def test_a_change_that_no_response_makes_alone_is_of_all(grader: Grader):
    code = (
        "import sys\nframe = sys._getframe()\nwhile 'items' not in frame.f_locals: frame = frame.f_back\n"
        f"if len(frame.f_locals['items']) > 1: exec({ALL_RIGHT.removeprefix('run ')!r})"
    )
    assert [found.tampered for found in grade(grader, "run " + code, "a1", "wrong")] == [True] * 3
    assert grade(grader, "wrong")[0].accuracy == 0.0


def test_a_verifier_without_a_verdict_of_its_own_goes_on():
    with Grader(guess, Reward((Accuracy(),)), workers=1, chunk_size=2) as grader:
        assert [found.status for found in grade(grader, *"abcdefgh")] == ["ok"] * 8


def test_canaries_that_change_by_themselves_are_given_up(caplog: pytest.LogCaptureFixture):
    """A fresh process disagrees with the first one, so no response is to blame."""
    day = Path(tempfile.gettempdir(), f"rl_llm_day_{os.getpid()}")
    day.write_text("0")
    try:
        with Grader(by_the_day, Reward(), workers=1) as grader:
            grader.grade([Problem(0, str(day), "a0")], ["x"])
            day.write_text("1")
            assert not grader.grade([Problem(0, str(day), "a0")], ["x"])[0].tampered
    finally:
        day.unlink()
    assert "grades one answer differently at times" in caplog.text


def by_the_day(problem: Problem, response: str) -> float:
    """A verifier that depends on a file."""
    return float(Path(problem.prompt).read_text())


@pytest.mark.parametrize("lacking", ["platform.system = lambda: 'Darwin'", "confinement._CREATE_RULESET = -1"])
def test_a_system_that_lacks_protections_says_so_and_keeps_the_others(tmp_path: Path, lacking: str):
    program = (
        f"import platform; from rl_llm.rewards import confinement; {lacking}; print(confinement.confine('.'))\n"
        f"try: print(open({str(tmp_path / 'new')!r}, 'wb', 0).write(b'x'))\nexcept OSError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    missing, written = run.stdout.splitlines()
    assert missing.startswith("['writes', ")
    assert "signals" in missing
    assert (written, (tmp_path / "new").read_text()) == ("[Errno 27] File too large", "")


def test_a_verifier_that_fails_on_some_problems_has_canaries_of_the_others():
    with Grader(verify_even, Reward(), workers=1) as grader:
        assert [found.tampered for found in grade(grader, "a0", "x")] == [False, False]
        assert [found.tampered for found in grade(grader, "x", ALL_RIGHT.replace("verify.", "verify_even."))][1]


def verify_even(problem: Problem, response: str) -> float:
    """Fails on the first problem."""
    return verify(problem, response) / problem.id


def test_missing_protections_are_named(caplog: pytest.LogCaptureFixture):
    _say_missing.cache_clear()
    _say_missing(("network", "signals"))
    _say_missing(("network", "signals"))
    assert [record.getMessage() for record in caplog.records] == [
        "grading processes run without protection of: network, signals (see SECURITY.md)"
    ]
