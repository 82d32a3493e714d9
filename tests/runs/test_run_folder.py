"""The run folder: one run at a time, refusals change nothing, and only the same run is resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rl_llm.runs.checkpoint import CheckpointError
from rl_llm.runs.folder import RunFolder, RunFolderError
from rl_llm.runs.ledger import LedgerError

EXPERIMENT: dict[str, Any] = {
    "seed": 0,
    "fingerprint": "f00d",
    "problems": "cafe",
    "tokenizer": "abba",
    "algorithm": {"objective": {"low": 0.2, "high": 0.2}, "filters": []},
}

HOLD_UNTIL_KILLED = """
import sys, time
from rl_llm.runs.folder import RunFolder
with RunFolder.create(sys.argv[1], {"seed": 0, "fingerprint": "f00d", "problems": "cafe", "tokenizer": "abba"}):
    print("open", flush=True)
    time.sleep(60)
"""


def snapshot(path: Path) -> dict[str, bytes | None]:
    """The contents of everything under `path`, including hidden files."""
    return {str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None for entry in path.rglob("*")}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


@pytest.fixture
def run(path: Path) -> Path:
    """The folder of a run interrupted after five steps."""
    with RunFolder.create(path, EXPERIMENT) as folder:
        folder.ledger.append("started")
        for step in range(1, 6):
            folder.log({"step": step, "loss": 1.0 / step})
            folder.samples([{"step": step, "response": "a"}, {"step": step, "response": "b"}])
    return path


def test_create_writes_the_experiment_and_its_format(run: Path) -> None:
    stored = json.loads((run / "experiment.json").read_text())
    assert stored == {"format": 2, **EXPERIMENT}
    assert list(stored) == ["format", *EXPERIMENT]


def test_records_are_written_in_order_as_strict_json(path: Path) -> None:
    with RunFolder.create(path, EXPERIMENT) as folder:
        folder.log({"step": 1, "b": float("nan"), "a": [float("inf"), -float("inf"), 0.1]})
        folder.write_summary({"accuracy_after": float("nan")})
    assert (path / "metrics.jsonl").read_text() == '{"step": 1, "b": "nan", "a": ["inf", "-inf", 0.1]}\n'
    assert json.loads((path / "summary.json").read_text()) == {"accuracy_after": "nan"}


@pytest.mark.parametrize("record", [{"loss": 1.0}, {"step": 1.0}, {"step": True}])
def test_a_record_without_an_integer_step_is_refused(path: Path, record: dict[str, Any]) -> None:
    with RunFolder.create(path, EXPERIMENT) as folder:
        with pytest.raises(ValueError, match="integer step"):
            folder.log(record)
        assert not (path / "metrics.jsonl").exists()


def test_a_folder_that_holds_a_run_is_refused(run: Path) -> None:
    before = snapshot(run)
    with pytest.raises(RunFolderError, match="--resume, or choose another --out"):
        RunFolder.create(run, EXPERIMENT)
    assert snapshot(run) == before


def test_a_folder_with_other_files_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"thesis\.tex.*another --out"):
        RunFolder.create(path, EXPERIMENT)
    assert snapshot(path) == {"thesis.tex": b"mine"}


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.create(tmp_path / "file", EXPERIMENT)


@pytest.mark.parametrize("experiment", [{"seed": 0}, {**EXPERIMENT, "versions": {1, 2}}])
def test_an_experiment_that_cannot_be_stored_leaves_no_folder(path: Path, experiment: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"no fingerprint|not JSON serializable"):
        RunFolder.create(path, experiment)
    assert not path.parent.exists()


def test_resuming_without_a_run_is_refused(path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run; leave out --resume"):
        RunFolder.resume(path, EXPERIMENT)
    assert not path.parent.exists()


def test_resume_names_every_field_that_differs(run: Path) -> None:
    before = snapshot(run)
    algorithm = {"objective": {"low": 0.2, "high": 0.28}, "aggregate": "token"}
    with pytest.raises(RunFolderError) as caught:
        RunFolder.resume(run, EXPERIMENT | {"seed": 1, "fingerprint": "beef", "algorithm": algorithm})
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "seed: 0 -> 1",
        "algorithm.objective.high: 0.2 -> 0.28",
        "algorithm.filters: [] -> absent",
        "algorithm.aggregate: absent -> token",
    ]
    assert snapshot(run) == before


def test_resume_refuses_a_run_without_its_ledger(run: Path) -> None:
    """Without a ledger the run would seem new, and its checkpoints would be ignored."""
    with RunFolder.resume(run, EXPERIMENT) as folder:
        folder.log({"step": 1})
    (run / "ledger.jsonl").unlink(missing_ok=True)
    with pytest.raises(RunFolderError, match=r"has lost its ledger.jsonl"):
        RunFolder.resume(run, EXPERIMENT)


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a damaged step"])
def test_a_run_without_a_good_checkpoint_gets_no_more_steps(path: Path, left: str) -> None:
    """Its summary and the samples of its end would be dropped before the checkpoints are read."""
    raised = {**EXPERIMENT, "fingerprint": "more", "experiment": {"steps": 9}}
    with RunFolder.create(path, {**EXPERIMENT, "experiment": {"steps": 5}}) as folder:
        folder.saved(5)
        folder.ledger.append("finished", accuracy_after=1.0)
        folder.write_summary({"accuracy_after": 1.0})
    if left != "nothing":
        (path / "checkpoints" / ("5" if left == "a damaged step" else "")).mkdir(parents=True)
    before = snapshot(path)
    with pytest.raises(CheckpointError, match="start again with another --out; nothing was changed"):
        RunFolder.resume(path, raised, begun=EXPERIMENT["fingerprint"])
    assert snapshot(path) == before


def test_resume_accepts_other_hardware_and_keeps_the_stored_experiment(run: Path) -> None:
    with RunFolder.resume(run, {**EXPERIMENT, "devices": "8 TPUs"}):
        assert json.loads((run / "experiment.json").read_text()) == {"format": 2, **EXPERIMENT}


def test_resume_refuses_a_broken_ledger_and_frees_the_folder(run: Path) -> None:
    ledger = run / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole.replace(b"started", b"startef"))
    with pytest.raises(LedgerError):
        RunFolder.resume(run, EXPERIMENT)
    ledger.write_bytes(whole)
    with RunFolder.resume(run, EXPERIMENT) as folder:
        assert folder.ledger.append("resumed")["index"] == 1


def test_resume_refuses_a_damaged_experiment(run: Path) -> None:
    (run / "experiment.json").write_text('{"seed": 0')
    with pytest.raises(RunFolderError, match=r"experiment\.json is damaged"):
        RunFolder.resume(run, EXPERIMENT)


@pytest.mark.parametrize("reopen", [RunFolder.create, RunFolder.resume])
def test_a_folder_in_use_is_refused_in_the_same_process(path: Path, reopen: Any) -> None:
    with RunFolder.create(path, EXPERIMENT):
        before = snapshot(path)
        with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()} on host"):
            reopen(path, EXPERIMENT)
        assert snapshot(path) == before


def test_another_process_holds_the_folder_until_it_is_killed(path: Path) -> None:
    command = [sys.executable, "-c", HOLD_UNTIL_KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(RunFolderError, match=f"in use by process {holder.pid} on host"):
            RunFolder.resume(path, EXPERIMENT)
        holder.send_signal(signal.SIGKILL)
    before = snapshot(path)
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder.create(path, EXPERIMENT)
    assert snapshot(path) == before
    with RunFolder.resume(path, EXPERIMENT) as folder:
        assert folder.path == path


@pytest.mark.parametrize("last", [-1, 3, 5])
def test_going_back_drops_later_steps_and_a_torn_line(run: Path, last: int) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')
    kept = max(last, 0)
    with RunFolder.resume(run, EXPERIMENT) as folder:
        folder.go_back(last, {}, step=kept)
        folder.log({"step": kept + 1, "loss": 0.5})
    assert [record["step"] for record in lines_of(run / "metrics.jsonl")] == [*range(1, kept + 2)]
    assert [record["step"] for record in lines_of(run / "samples.jsonl")[::2]] == [*range(1, kept + 1)]


def test_going_back_refuses_a_damaged_line_in_the_middle(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'{"step": 2', b'{"stop": 2'))
    with (
        RunFolder.resume(run, EXPERIMENT) as folder,
        pytest.raises(RunFolderError, match=r"metrics\.jsonl, line 2 is damaged"),
    ):
        folder.go_back(3, {}, step=3)


def test_opening_does_not_import_jax() -> None:
    code = "import sys, rl_llm.runs.folder, rl_llm.runs.progress; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
