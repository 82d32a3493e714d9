"""Folders in the record format of an earlier version: refused with the way out, unchanged, and still reported."""

import json
from pathlib import Path

import pytest
from program import TINY, rl_llm

from rl_llm.cli import main
from rl_llm.studies.folder import StudyFolderError, open_study, reopen_study
from rl_llm.studies.study import load_study

STUDY = "tests/data/study.py"
COMMIT = "d16dfbd"
REFUSAL = r"in record format 1; this version of rl_llm reads format 2\. .* the version that wrote it"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A run folder as the earlier version wrote it: experiment.json without `format`."""
    folder = tmp_path / "old"
    folder.mkdir()
    record = {"spec": TINY, "overrides": [], "seed": 0, "fingerprint": "f00d", "problems": "cafe", "tokenizer": "abba"}
    (folder / "experiment.json").write_text(json.dumps({**record, "commit": COMMIT}))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["train", TINY, "--out", "OLD", "--resume"],
        ["train", f"{STUDY}:smoke/slow", "--out", "NEW", "--set", "start=OLD"],
        ["evaluate", "OLD"],
        ["export", "OLD", "--out", "NEW"],
    ],
    ids=["resume", "start", "evaluate", "export"],
)
def test_a_command_refuses_an_old_run(old_run: Path, tmp_path: Path, command: list[str]):
    before = (old_run / "experiment.json").read_bytes()
    arguments = [part.replace("OLD", str(old_run)).replace("NEW", str(tmp_path / "new")) for part in command]
    code, _, error = rl_llm(*arguments)
    assert code == 2, error
    assert f"{old_run} is in record format 1; this version of rl_llm reads format 2" in error
    assert f"the version that wrote it (commit {COMMIT}), or run it again in another folder" in error
    assert [path.name for path in old_run.iterdir()] == ["experiment.json"]
    assert (old_run / "experiment.json").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_an_old_run_still_has_a_report(old_run: Path):
    assert main(["report", str(old_run)]) == 0
    assert "f00d" in (old_run / "report.html").read_text()


def test_an_old_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    study, _ = load_study(STUDY, "smoke")
    open_study(tmp_path, study, STUDY, "smoke", 1, resume=False)
    path = tmp_path / "study.json"
    stored = json.loads(path.read_text())
    del stored["format"]
    path.write_text(json.dumps(stored))
    with pytest.raises(StudyFolderError, match=REFUSAL):
        open_study(tmp_path, study, STUDY, "smoke", 1, resume=True)
    with pytest.raises(StudyFolderError, match=REFUSAL):
        reopen_study(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "in record format 1" in capsys.readouterr().err
