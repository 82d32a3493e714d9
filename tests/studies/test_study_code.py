"""The code of a study: no seed is added with other code under the same registration."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from program import finish, shared_folder, start
from test_source import clean_package  # noqa: F401 (a fixture)
from test_study_report import MODULE, STUDY, make_run, text_of

from rl_llm.commands.common import DONE
from rl_llm.config import Code
from rl_llm.runs.folder import RunFolder
from rl_llm.runs.ledger import Ledger
from rl_llm.studies.folder import Member, StudyFolderError, changes_since, members, open_study, registered_code
from rl_llm.studies.report import write_results
from rl_llm.studies.runner import StudySchedule, run_study

SCORE = "def score(response):\n    return -len(response)\n"
CHANGED = SCORE.replace("-len", "5 * len")
MODULE_WITH_REWARD = """
from dataclasses import dataclass, replace
from rl_llm.rewards.components import Reward
from tests.data import tiny
import score

@dataclass(frozen=True)
class Length:
    weight: float = 1.0

    def __call__(self, problem, response, accuracy):
        return score.score(response)

ABLATION = {"short": replace(tiny.cold, reward=Reward((Length(),)))}
"""
Opener = Callable[..., Ledger]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "score.py").write_text(SCORE)
    (tmp_path / "module.py").write_text("import score\n" + Path(MODULE).read_text())
    return tmp_path


@pytest.fixture
def opened(folder: Path) -> Opener:
    """Opens the study of a module that this process does not import, so that it may change."""

    def open_it(resume: bool = True, accept: bool = False, shared: Path | None = None, out: str = "study") -> Ledger:
        return open_study(folder / out, STUDY, str(folder / "module.py"), "smoke", 2, resume, None, shared, accept)

    return open_it


def begin(member: Member, code: Code) -> None:
    """The folder of a run of a member with some code."""
    make_run(member, STUDY)
    path = member.folder / "experiment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": code.digests}))
    for name, content in code.files.items():
        (member.folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (member.folder / "code" / name).write_bytes(content or b"")


def test_a_study_is_not_resumed_with_changed_code(folder: Path, opened: Opener):
    opened(resume=False)
    assert (folder / "study" / "code" / "score.py").read_text() == SCORE
    (folder / "score.py").write_text(CHANGED)
    with pytest.raises(StudyFolderError, match=r"(?s)score\.py: score.*--accept-code-changes"):
        opened()
    assert list(changes_since(folder / "study", STUDY)) == ["score.py"]
    opened(accept=True)
    events = [entry["event"] for entry in Ledger.verify(folder / "study" / "ledger.jsonl")]
    assert events == ["registered", "registered", "code_recorded"]
    opened()
    assert changes_since(folder / "study", STUDY) == {}


def test_a_documented_module_is_still_the_same_study(folder: Path, opened: Opener):
    """Measured results are written into the docstrings of studies."""
    opened(resume=False)
    module = folder / "module.py"
    module.write_text('"""Measured: much."""\n' + module.read_text())
    opened()
    assert [entry["event"] for entry in Ledger.verify(folder / "study" / "ledger.jsonl")] == ["registered"] * 2


def test_a_study_recorded_without_code_goes_on_with_a_note(
    folder: Path, opened: Opener, capsys: pytest.CaptureFixture[str]
):
    """As earlier versions recorded studies. From then on, changes are refused."""
    path = opened(resume=False).path
    path.unlink()
    Ledger(path).append("registered", sha256=STUDY.registered()["sha256"], seeds=2, shared=None)
    opened()
    assert "recorded no code before this resume" in capsys.readouterr().err
    (folder / "score.py").write_text(CHANGED)
    with pytest.raises(StudyFolderError, match=r"score\.py: score"):
        opened()


def test_members_of_other_code_are_refused_or_accepted_once_and_reported(folder: Path, opened: Opener):
    """Every arm and seed is compared, for example a start that another study made."""
    out, shared = folder / "study", folder / "shared"
    opened(resume=False, shared=shared)
    everyone = members(STUDY, out, 2, shared)
    own = registered_code(out)
    for member in everyone:
        other = Code({**own.files, "score.py": CHANGED.encode()})
        begin(member, own if member.is_arm else other)
    name = str(next(member for member in everyone if not member.is_arm))
    with pytest.raises(StudyFolderError, match=rf"(?s){name}: .*score\.py: score.*another --shared"):
        opened(shared=shared)
    opened(shared=shared, accept=True)
    opened(shared=shared)
    assert f"Made by other code than the study's, so they may differ in more than their arms: {name} (score.py)" in (
        write_results(out, STUDY, everyone)
    )
    assert "Made by other code" in text_of(out)


def train_with_changed_code(commands: Sequence[list[str]], logs: Sequence[Path]) -> list[int]:
    """A job: runs as they are after an edit of score.py during the study."""
    for command in commands:
        code = Code({"score.py": CHANGED.encode()})
        identity = dict.fromkeys(("fingerprint", "seed", "problems", "tokenizer"), 0)
        out = Path(command[command.index("--out") + 1])
        with RunFolder.create(out, {**identity, "code": code.digests}, code=code) as folder:
            folder.write_summary({})
    return [DONE] * len(commands)


def test_a_member_that_ran_code_edited_during_the_study_fails(folder: Path, opened: Opener):
    ledger = opened(resume=False)
    runs = [member for member in members(STUDY, folder / "study", 1) if not member.is_arm]
    code = registered_code(folder / "study")
    schedule = StudySchedule(
        folder / "study", "", runs, train_with_changed_code, [None], folder / "compiled", code=code
    )
    failed = run_study(schedule, ledger).failed
    assert [why.split(";")[0] for why in failed.values()] == ["score.py changed during the study"]
    assert ledger.verify(ledger.path)[-2]["event"] == "member_failed"


def test_accepting_is_passed_on_to_the_members(folder: Path):
    (member, *_) = members(STUDY, folder, 1)
    for accept in (True, False):
        schedule = StudySchedule(folder, "", [member], train_with_changed_code, [None], folder, accept=accept)
        assert ("--accept-code-changes" in schedule.command(member)) is accept


@pytest.mark.nightly("the tests above refuse and accept the same changes; test_code.py tells the story of one run")
def test_a_third_seed_gets_no_other_reward(folder: Path):
    """The story of a study whose arm got a seed with another reward under the same registered hash."""
    (folder / "module.py").write_text(MODULE_WITH_REWARD)
    command = ("ablate", folder / "module.py", "--out", folder / "study", "--shared", shared_folder(folder))
    code, _, stderr = finish(start(*command, "--seeds", "2"))
    assert code == 0, stderr
    (folder / "score.py").write_text(CHANGED)
    code, _, stderr = finish(start(*command, "--seeds", "3", "--resume"))
    assert (code, "score.py: score" in stderr, "5 * len" in stderr) == (2, True, True), stderr
    assert not (folder / "study" / "short-seed2").exists()
    code, _, stderr = finish(start("report", folder / "study"))
    assert (code, "the code has changed since the study" in stderr) == (0, True), stderr
    code, stdout, stderr = finish(start(*command, "--seeds", "3", "--resume", "--accept-code-changes"))
    assert code == 0, stderr
    assert "short seed 0 (score.py), short seed 1 (score.py)" in stdout
    code, _, stderr = finish(start(*command, "--seeds", "3", "--resume"))
    assert code == 0, stderr
