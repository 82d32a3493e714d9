"""The code of a run: what was changed is named and refused, or accepted and entered in the ledger."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import Finished, finish, start
from test_run_folder import EXPERIMENT, snapshot
from test_source import clean_package  # noqa: F401 (a fixture)

from rl_llm.config import Code, code_of
from rl_llm.config.source import PACKAGE, sha256
from rl_llm.reports.run_report import write_report
from rl_llm.runs import code as runs_code
from rl_llm.runs.code import code_changes
from rl_llm.runs.folder import RunFolder, RunFolderError
from rl_llm.runs.ledger import Ledger

SCORE = '''"""Scores of responses."""


def score(response):
    """Short is good."""
    return -len(response)
'''
STORY = """
from dataclasses import dataclass, replace

from rl_llm.rewards.components import Reward
from tests.data import tiny
import score

@dataclass(frozen=True)
class Length:
    weight: float = 1.0

    def __call__(self, problem, response, accuracy):
        return score.score(response)

evaluation, checkpointing = replace(tiny.cold.evaluation, every=0), replace(tiny.cold.checkpointing, keep_best=False)
cold = replace(tiny.cold, steps=2, evaluation=evaluation, checkpointing=checkpointing)
base = replace(cold, reward=Reward((Length(),)))
"""
CHANGES = {
    "helper": ("score.py", "return -len", "return 5 * len", "score.py: score"),
    "reward": ("story.py", "return score", "return 5 * score", "story.py: Length, __call__"),
    "constant": ("story.py", "steps=2", "steps=1 + 1", "story.py\n"),
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with an experiment and a helper that its reward needs. This process does not import them."""
    (tmp_path / "story.py").write_text(STORY)
    (tmp_path / "score.py").write_text(SCORE)
    return tmp_path


def code_in(files: Path, monkeypatch: pytest.MonkeyPatch) -> Code:
    monkeypatch.syspath_prepend(str(files))
    return code_of(str(files / "story.py"), ())


def record(code: Code) -> dict[str, Any]:
    command = {"spec": "story.py", "folder": "here", "overrides": [], "commit": "c0ffee"}
    return {**EXPERIMENT, **command, "code": code.digests, "code_commit": code.commit}


@pytest.fixture
def run(files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an interrupted run of the experiment."""
    code = code_in(files, monkeypatch)
    with RunFolder.create(files / "run", record(code), code=code) as folder:
        folder.ledger.append("started")
    return files / "run"


def change(files: Path, file: str, old: str, new: str) -> None:
    text = (files / file).read_text()
    assert old in text
    (files / file).write_text(text.replace(old, new))


def resume(run: Path, code: Code, accept: bool = False) -> list[str]:
    with RunFolder.resume(run, record(code), code=code, accept=accept) as folder:
        return folder.notes


def test_a_run_folder_has_copies_of_the_code_that_ran(run: Path):
    recorded = json.loads((run / "experiment.json").read_text())["code"]
    assert set(recorded) == {"story.py", "score.py", "tests/data/tiny.py"}
    for name, digest in recorded.items():
        assert sha256((run / "code" / name).read_bytes()) == digest


@pytest.mark.parametrize("name", CHANGES)
def test_changed_code_is_named_and_refused(run: Path, files: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    file, old, new, shown = CHANGES[name]
    before = snapshot(run)
    change(files, file, old, new)
    with pytest.raises(RunFolderError) as caught:
        resume(run, code_in(files, monkeypatch))
    message = str(caught.value)
    assert f"  {shown}" in message
    assert any(line.strip().startswith("-") and old in line for line in message.splitlines())
    assert any(line.strip().startswith("+") and new in line for line in message.splitlines())
    assert "--accept-code-changes" in message
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Short is good", "Short is better"),
        ("    return -len", "    # shorter\n    return -len"),
        ("-len(response)", "-len(\n        response)"),
    ],
    ids=["docstring", "comment", "layout"],
)
def test_comments_docstrings_and_layout_may_change(
    run: Path, files: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
):
    change(files, "score.py", old, new)
    assert resume(run, code_in(files, monkeypatch)) == []
    assert [entry["event"] for entry in Ledger.verify(run / "ledger.jsonl")] == ["started"]
    assert not (run / "code.1").exists()


def to_package(files: Path) -> None:
    (files / "score.py").unlink()
    (files / "score").mkdir()
    (files / "score" / "__init__.py").write_text(SCORE.replace("-len", "5 * len"))


def test_a_module_that_becomes_a_package_is_refused_or_accepted(
    run: Path, files: Path, monkeypatch: pytest.MonkeyPatch
):
    """The file that imports it is the same, and no recorded file has another content."""
    first = code_in(files, monkeypatch)
    to_package(files)
    second = code_in(files, monkeypatch)
    with pytest.raises(RunFolderError, match=r"(?s)score.py is gone: the import of score .*__init__\.py is new"):
        resume(run, second)
    resume(run, second, accept=True)
    data = Ledger.verify(run / "ledger.jsonl")[-1]["data"]
    was = first.digests["score.py"]
    now = second.digests["score/__init__.py"]
    assert data["code"] == {"score.py": None, "score/__init__.py": now}
    assert data["was"] == {"score.py": was, "score/__init__.py": None}
    assert resume(run, second) == []
    with pytest.raises(RunFolderError, match=r"score/__init__\.py is gone"):
        resume(run, first)


def test_a_module_that_an_unchanged_import_now_finds_is_refused(
    run: Path, files: Path, monkeypatch: pytest.MonkeyPatch
):
    """As in `try: import fast`. A file that nothing unchanged imports is no change."""
    (files / "story.py").write_text(f"try:\n    import fast\nexcept ImportError:\n    pass\n{STORY}")
    resume(run, code_in(files, monkeypatch), accept=True)
    assert resume(run, Code({**code_in(files, monkeypatch).files, "unused.py": b""})) == []
    (files / "fast.py").write_text("")
    with pytest.raises(RunFolderError, match=r"fast\.py is new: the import of fast has another result"):
        resume(run, code_in(files, monkeypatch))
    resume(run, code_in(files, monkeypatch), accept=True)
    (files / "fast.py").unlink()
    with pytest.raises(RunFolderError, match=r"fast\.py is gone"):
        resume(run, code_in(files, monkeypatch))


def test_files_of_one_name_in_two_folders_are_told_apart(run: Path, files: Path, monkeypatch: pytest.MonkeyPatch):
    """Each recorded file is compared with one file, also where all lie deeper than recorded."""
    own = code_in(files, monkeypatch).files
    two = Code({**own, "lib/score.py": b"x = 1"})
    resume(run, two, accept=True)
    for beside in ("deep/score.py", "lib/deep/score.py", "score/score.py"):
        with pytest.raises(RunFolderError, match=r"score\.py: score"):
            resume(run, Code({beside: b"x = 1", **two.files, "score.py": CHANGED}))
    assert resume(run, Code({f"a/{name}": content for name, content in two.files.items()})) == []


CHANGED = b"def score(response): return 5"


def test_an_accepted_change_is_in_the_ledger_and_beside_the_old_file(
    run: Path, files: Path, monkeypatch: pytest.MonkeyPatch
):
    first = code_in(files, monkeypatch)
    change(files, "score.py", "-len", "5 * len")
    second = code_in(files, monkeypatch)
    (note,) = resume(run, second, accept=True)
    assert "score.py: score" in note
    was, now = first.digests["score.py"], second.digests["score.py"]
    data = Ledger.verify(run / "ledger.jsonl")[-1]["data"]
    assert data == {"code": {"score.py": now}, "was": {"score.py": was}, "commit": None}
    assert (run / "code" / "score.py").read_text() == SCORE
    assert sha256((run / "code.1" / "score.py").read_bytes()) == now
    assert resume(run, second) == []
    with pytest.raises(RunFolderError, match=rf"(?s)score\.py: score.*--- {run / 'code.1' / 'score.py'}\n"):
        resume(run, first)
    assert "The code was changed during the run" in write_report(run).read_text()


def test_a_run_recorded_without_code_goes_on_with_a_note(files: Path, monkeypatch: pytest.MonkeyPatch):
    """As earlier versions recorded runs. From then on, changes are refused."""
    with RunFolder.create(files / "run", EXPERIMENT) as folder:
        folder.ledger.append("started")
    (note,) = resume(files / "run", code_in(files, monkeypatch))
    assert "recorded no code before this resume" in note
    assert resume(files / "run", code_in(files, monkeypatch)) == []
    change(files, "score.py", "-len", "5 * len")
    with pytest.raises(RunFolderError, match=r"score\.py: score"):
        resume(files / "run", code_in(files, monkeypatch))


def test_a_command_in_another_folder_finds_the_same_code(run: Path, files: Path, monkeypatch: pytest.MonkeyPatch):
    """Names depend on the folder of the command: `studies/score.py` may be `score.py`."""
    code = code_in(files, monkeypatch)
    moved = Code({f"studies/{name}": content for name, content in code.files.items()})
    assert resume(run, moved) == []
    changed = Code({**moved.files, "studies/score.py": CHANGED})
    with pytest.raises(RunFolderError, match=r"score\.py: score"):
        resume(run, changed)
    resume(run, changed, accept=True)
    assert resume(run, changed) == []


def test_a_lost_copy_is_said_and_a_lost_one_of_the_same_code_is_replaced(
    run: Path, files: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.rmtree(run / "code")
    assert resume(run, code_in(files, monkeypatch)) == []
    assert (run / "code" / "score.py").read_text() == SCORE
    (run / "code" / "score.py").unlink()
    change(files, "score.py", "-len", "5 * len")
    with pytest.raises(RunFolderError, match=r"score\.py \(there is no copy to compare with\)"):
        resume(run, code_in(files, monkeypatch))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of this package, with an experiment of two files: one beside the package and an untracked one inside."""
    folder = tmp_path / "clone"
    shutil.copytree(PACKAGE, folder / "rl_llm", ignore=shutil.ignore_patterns("__pycache__"))
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "First"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    (folder / "story.py").write_text("from rl_llm.rewards import components, mine")
    (folder / "rl_llm" / "rewards" / "mine.py").write_text(SCORE)
    return folder


def code_in_clone(clone: Path) -> Code:
    print_files = "print({name: text.decode() for name, text in code_of('story.py', ()).files.items()})"
    command = [sys.executable, "-Bc", f"from rl_llm.config import code_of; {print_files}"]
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    shown = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=True).stdout
    return Code({name: text.encode() for name, text in ast.literal_eval(shown).items()})


def test_code_within_a_clone_of_rl_llm_that_no_commit_has_belongs_to_a_run(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A reward there would otherwise change between a run and its resume. Later commits do not make it another one."""
    monkeypatch.setattr(runs_code, "PACKAGE", clone / "rl_llm")
    mine, learner = "rl_llm/rewards/mine.py", "rl_llm/learner/state.py"
    first, run = code_in_clone(clone), tmp_path / "run"
    assert set(first.files) == {"story.py", mine}
    with RunFolder.create(run, record(first), code=first):
        assert (run / "code" / mine).read_text() == SCORE
    committed = Code({"story.py": first.files["story.py"]})
    assert code_changes(run, first.digests, committed) == {}
    change(clone, mine, "-len", "5 * len")
    (clone / learner).write_text((clone / learner).read_text() + "LIMIT = 1\n")
    changes = code_changes(run, first.digests, code_in_clone(clone))
    assert set(changes) == {mine, learner}
    assert "+    return 5 * len(response)" in changes[mine]
    assert "has been edited since" in changes[learner]
    assert set(code_changes(run, first.digests, committed)) == {mine}


def test_code_without_a_source_file_is_said(files: Path):
    code = Code({"__main__": None})
    with RunFolder.create(files / "run", record(code), code=code) as folder:
        assert folder.notes == ["__main__ has no source file: changes of its code cannot be seen"]
    assert json.loads((files / "run" / "experiment.json").read_text())["code"] == {"__main__": None}


def rl_llm(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command in a process of its own, which imports the files as they are now."""
    return finish(start(*arguments))


@pytest.mark.slow
def test_the_story_of_a_changed_reward(files: Path):
    """The run is not resumed with another reward; commands that only read say what differs."""
    spec, run = str(files / "story.py"), files / "run"
    code, _, stderr = rl_llm("train", spec, "--out", run)
    assert code == 0, stderr
    page = write_report(run).read_text()
    assert f"rl-llm train {spec} --seed 0" in page
    assert "No commit has all of the experiment" in page
    before = Finished(run, "", "").summary
    change(files, "score.py", "-len", "5 * len")
    code, _, stderr = rl_llm("train", spec, "--out", run, "--resume")
    assert (code, "score.py: score" in stderr) == (2, True), stderr
    code, _, stderr = rl_llm("train", spec, "--out", run, "--accept-code-changes")
    assert (code, "cannot act without --resume" in stderr) == (2, True), stderr
    code, _, stderr = rl_llm("evaluate", run)
    assert (code, "the code has changed since the run" in stderr, "score.py: score" in stderr) == (0, True, True)
    code, _, stderr = rl_llm("train", spec, "--out", run, "--resume", "--accept-code-changes")
    assert (code, "accepted code changes:\n  score.py: score" in stderr) == (0, True), stderr
    assert Finished(run, "", "").summary["state_sha256"] == before["state_sha256"]  # it was finished
    assert "code_recorded" in [entry["event"] for entry in Ledger.verify(run / "ledger.jsonl")]
