"""Trackers: each shows every step once, whatever was killed, and none can stop or slow a run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rl_llm.cli import main
from rl_llm.runs.folder import RunFolder, read_metrics
from rl_llm.watching.mirror import Mirror, Tracker
from rl_llm.watching.trackers import TRACKERS, MLflow, run_id

ROOT = Path(__file__).parent.parent.parent
EXPERIMENT: dict[str, Any] = {"seed": 0, "fingerprint": "f00d", "problems": "cafe", "tokenizer": "abba"}
Line = dict[str, Any]
LONG_NAME = "component/" + "a" * 200  # makes W&B's files longer than one of its blocks

# A session of a run: FOLDER RESTORED LAST TRACKERS END. It goes on after RESTORED and writes steps up to LAST.
SESSION = """
import os, signal, sys
from pathlib import Path
from rl_llm.runs.folder import RunFolder
from rl_llm.watching.mirror import Mirror, TensorBoard
from rl_llm.watching.trackers import TRACKERS
folder, restored, last, names, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
EXPERIMENT = {"seed": 0, "fingerprint": "f00d", "problems": "cafe", "tokenizer": "abba"}
opened = RunFolder.resume(folder, EXPERIMENT) if Path(folder).exists() else RunFolder.create(folder, EXPERIMENT)
with opened as run:
    run.ledger.append("session")
    run.go_back(restored, {}, step=restored)
    mirrors = [Mirror(tracker) for tracker in (TensorBoard(), *(TRACKERS[name]() for name in names.split(",") if name))]
    for mirror in mirrors:
        mirror.open(run, restored, 0, lambda text: print(text, file=sys.stderr))
    for step in range(restored + 1, last + 1):
        run.log({"step": step, "phase": "rl", "reward/mean": step / 4, "tokens/total": 10 * step, LONG: 0.0})
        for mirror in mirrors:
            mirror.wrote()
    if end == "late":
        mirrors[-1].close()
    if end != "whole":
        os.kill(os.getpid(), signal.SIGKILL)
    run.write_summary({})
    for mirror in mirrors:
        mirror.close()
""".replace("LONG", repr(LONG_NAME))


def session(folder: Path, restored: int, last: int, names: str, end: str) -> None:
    """Run a session in a process of its own; it is killed at once (`early`), or when its trackers are done (`late`)."""
    store = f"sqlite:///{folder.parent / 'mlflow.db'}"
    quiet = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**os.environ, **quiet, "MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", SESSION, str(folder), str(restored), str(last), names, end]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == (0 if end == "whole" else -signal.SIGKILL), ended.stderr
    assert "no longer written" not in ended.stderr


def in_tensorboard(run: Path) -> list[tuple[int, float]]:
    """Steps and rewards as TensorBoard shows them: a START event purges the steps from its own on."""
    shown: list[tuple[int, float]] = []
    for file in sorted(run.glob("tensorboard/events*")):
        content = file.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            if event.session_log.status == SessionLog.START:
                shown = [(step, value) for step, value in shown if step < event.step]
            shown += [(event.step, v.simple_value) for v in event.summary.value if v.tag == "reward/mean"]
    return shown


def in_wandb(run: Path) -> list[tuple[int, float]]:
    """Steps and rewards of all offline files of a run, in W&B's own records."""
    from wandb.proto.wandb_internal_pb2 import Record

    from rl_llm.watching.trackers import _records

    shown = []
    for file in sorted(run.glob(f"wandb/offline-run-*/run-{run_id(run)}.wandb")):
        for record in map(Record.FromString, _records(file)):
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            shown += [(values["_step"], values["reward/mean"])] if values else []
    return shown


def in_mlflow(run: Path) -> list[tuple[int, float]]:
    """Steps and rewards by MLflow's client."""
    from mlflow import MlflowClient

    with warnings.catch_warnings(action="ignore"):  # MLflow's own
        client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
        [found] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        history = client.get_metric_history(found.info.run_id, "reward/mean")
    assert found.info.status == "FINISHED"
    return sorted((metric.step, metric.value) for metric in history)


SHOWN = {"tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow}


@pytest.mark.parametrize(
    "name",
    ["tensorboard", pytest.param("wandb", marks=pytest.mark.slow), pytest.param("mlflow", marks=pytest.mark.slow)],
)
def test_a_run_killed_twice_shows_every_step_once(tmp_path: Path, name: str):
    """Killed before the tracker had its steps, and after it had more than the checkpoint."""
    if name in TRACKERS:
        for package in TRACKERS[name].packages:
            pytest.importorskip(package)
    run, names = tmp_path / "run", name if name in TRACKERS else ""
    session(run, 0, 200, names, "early")
    session(run, 150, 300, names, "late")
    session(run, 250, 400, names, "whole")
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 401))
    assert SHOWN[name](run) == [(step, step / 4) for step in range(1, 401)]


def open_mlflow(_: int) -> int:
    return len(MLflow()._open_store().search_experiments())


@pytest.mark.slow
def test_processes_that_create_one_store_at_once_all_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the members of a study do. Without a lock, MLflow's store was broken for good."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as processes:
        assert list(processes.map(open_mlflow, range(3))) == [1, 1, 1]


class Recorder:
    """A tracker that keeps what it is given; it can fail at a step, wait for a signal, or begin after some steps."""

    name = "recorder"

    def __init__(self, fails: int = 0, has: int = 0, go: threading.Event | None = None) -> None:
        self.fails, self.has, self.go = fails, has, go
        self.steps: list[int] = []
        self.numbers: dict[str, float] = {}
        self.closed = False

    def open(self, run: Path, restored: int) -> int:
        return self.has

    def write(self, step: int, numbers: dict[str, float]) -> None:
        if self.go is not None:
            assert self.go.wait(60)
        if step == self.fails:
            raise ConnectionError("the server\nis away")
        self.steps.append(step)
        self.numbers = numbers

    def close(self) -> None:
        self.closed = True


@contextmanager
def mirrored(folder: RunFolder, tracker: Tracker, say: Callable[[str], None]) -> Iterator[Callable[[Line], None]]:
    """Write lines of metrics that a tracker gets."""
    mirror = Mirror(tracker)
    mirror.open(folder, 0, 0, say)

    def write(line: Line) -> None:
        folder.log(line)
        mirror.wrote()

    yield write
    mirror.close()


def followed(tmp_path: Path, tracker: Tracker, steps: int = 20) -> list[str]:
    """Errors said while a tracker follows a run of some steps."""
    said: list[str] = []
    with RunFolder.create(tmp_path / "run", EXPERIMENT) as folder:
        folder.ledger.append("started")
        with mirrored(folder, tracker, said.append) as write:
            for step in range(1, steps + 1):
                write({"step": step, "phase": "rl", "reward/mean": step / 2, "loss": float("nan")})
            if isinstance(tracker, Recorder) and tracker.go is not None:
                assert tracker.steps == []
                tracker.go.set()
    assert len(read_metrics(tmp_path / "run")) == steps
    return said


def test_a_tracker_gets_the_finite_numbers_of_every_step(tmp_path: Path):
    tracker = Recorder()
    assert followed(tmp_path, tracker) == []
    assert tracker.steps == list(range(1, 21))
    assert tracker.numbers == {"reward/mean": 10.0}
    assert tracker.closed


def test_a_tracker_gets_only_the_steps_it_lacks(tmp_path: Path):
    tracker = Recorder(has=7)
    followed(tmp_path, tracker)
    assert tracker.steps == list(range(8, 21))


def test_a_failing_tracker_is_said_once_and_dropped(tmp_path: Path):
    tracker = Recorder(fails=5)
    [said] = followed(tmp_path, tracker)
    assert said == (
        "recorder is no longer written (ConnectionError: the server is away); a resume fills in the missing steps"
    )
    assert tracker.steps == [1, 2, 3, 4]


def test_a_slow_tracker_does_not_slow_the_run(tmp_path: Path):
    """It stands still until the run has written all its steps, and has them all in the end."""
    tracker = Recorder(go=threading.Event())
    assert followed(tmp_path, tracker) == []
    assert tracker.steps == list(range(1, 21))


def test_the_end_of_a_run_does_not_wait_for_a_tracker_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rl_llm.watching.mirror.PATIENCE", 2.0)
    tracker, said = Recorder(go=threading.Event()), list[str]()
    start = time.monotonic()
    with RunFolder.create(tmp_path / "run", EXPERIMENT) as run, mirrored(run, tracker, said.append) as write:
        write({"step": 1, "reward/mean": 0.0})
    assert time.monotonic() - start < 30
    assert tracker.go is not None
    tracker.go.set()
    assert said == ["recorder lacks the last steps: it was still busy after 2 s"]


def test_events_torn_by_a_kill_are_written_again(tmp_path: Path):
    session(tmp_path / "run", 0, 20, "", "whole")
    [events] = (tmp_path / "run" / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-30])
    session(tmp_path / "run", 20, 25, "", "whole")
    torn, rest = sorted((tmp_path / "run" / "tensorboard").iterdir())
    torn.unlink()
    assert [step for step, _ in in_tensorboard(tmp_path / "run")] == list(range(20, 26))
    assert rest.name.endswith(".after_20")


def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("rl_llm.commands.watching.find_spec", lambda name: None)
    assert main(["train", "tests/data/tiny.py", "--track", "wandb"]) == 2
    assert 'wandb not installed; pip install "rl-llm[wandb]"' in capsys.readouterr().err
