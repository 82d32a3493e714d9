"""Traces of RL steps."""

import gzip
import json
from pathlib import Path

import pytest

from rl_llm.cli import main
from rl_llm.runs.folder import RunFolder, RunFolderError
from rl_llm.runs.lock import FolderLostError
from rl_llm.watching.profile import Profiler

EXPERIMENT = {"seed": 0, "fingerprint": "f00d", "problems": "cafe", "tokenizer": "abba"}


def traced(run: Path) -> list[int]:
    """Numbers of the RL steps in the only trace of a run."""
    [file] = (run / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return sorted({int(event["args"]["step_num"]) for event in events if event.get("name") == "RL step"})


@pytest.mark.parametrize(("steps", "expected"), [(range(5), [2, 3]), (range(2), [2])])
def test_the_asked_steps_are_traced_though_a_run_may_end_early(
    tmp_path: Path, steps: range, expected: list[int]
) -> None:
    said: list[str] = []
    with RunFolder.create(tmp_path / "run", EXPERIMENT) as folder:
        profiler = Profiler(range(2, 4))
        profiler.open(folder, 0, 0, said.append)
        assert list(profiler.steps(steps)) == list(steps)
        profiler.close()
        assert traced(folder.path) == expected
    assert "https://ui.perfetto.dev" in said[0]


def test_a_trace_is_not_written_into_a_folder_that_was_moved(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", EXPERIMENT) as folder:
        profiler = Profiler(range(1, 4))
        profiler.open(folder, 0, 0, print)
        next(profiler.steps(range(5)))
        folder.path.rename(tmp_path / "moved")
        with pytest.raises(FolderLostError):
            profiler.close()
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_steps_made_before_a_resume_are_refused(tmp_path: Path) -> None:
    with (
        RunFolder.create(tmp_path / "run", EXPERIMENT) as folder,
        pytest.raises(RunFolderError, match=r"--profile 2:3: 2 RL steps of .* are done; choose later steps"),
    ):
        Profiler(range(2, 4)).open(folder, 0, 2, print)


@pytest.mark.parametrize(
    ("steps", "message"),
    [("3:9", "the experiment has RL steps 1 to 6"), ("5:3", "must be FIRST:LAST"), ("0:2", "must be FIRST:LAST")],
)
def test_a_wrong_range_is_refused(steps: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["train", "tests/data/tiny.py", "--profile", steps])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err
