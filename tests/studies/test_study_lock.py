"""One command at a time writes a study's folder; what two of them wrote without a lock is repaired."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_study_report import MODULE, STUDY, make_run

from rl_llm.cli import main
from rl_llm.runs.ledger import Ledger, LedgerError
from rl_llm.runs.lock import FolderLostError
from rl_llm.studies.folder import StudyFolderError, members, open_study, reopen_study
from rl_llm.studies.lock import lock_study
from rl_llm.studies.provenance import read_provenance
from rl_llm.studies.repair import repair_ledger
from rl_llm.studies.runner import StudySchedule, run_study


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_together(path: Path, before: Sequence[int], turns: Sequence[int]) -> None:
    """A ledger of several processes. The first appends `before[i]` entries before process i + 1 opens it.

    Then they append in turns, each to the newest entry that it knows.
    """
    processes = [Ledger(path)]
    for count in before:
        for _ in range(count):
            processes[0].append("turn", process=0)
        processes.append(Ledger(path))
    for process in turns:
        processes[process % len(processes)].append("turn", process=process % len(processes))


def by_process(path: Path) -> dict[int, list[str]]:
    """The times of each process's entries, in the order of the file."""
    found: dict[int, list[str]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["event"] == "turn":
            found.setdefault(entry["data"]["process"], []).append(entry["time"])
    return found


@pytest.mark.parametrize("arguments", [["ablate", MODULE, "--scale", "smoke", "--resume", "--out"], ["repair"]])
def test_a_second_command_is_refused_at_once_and_names_the_first(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "study"
    open_study(out, STUDY, MODULE, "smoke", 2, resume=False)
    with lock_study(out):
        before = contents(out)
        assert main([*arguments, str(out)]) == 2
        assert contents(out) == before
    assert f"{out} is in use by process {os.getpid()} on host" in capsys.readouterr().err


def test_what_a_killed_process_left_does_not_block(tmp_path: Path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".holder.json").write_text('{"process": 1, "host": "gone"}')
    with lock_study(tmp_path) as lock:
        open_study(tmp_path, STUDY, MODULE, "smoke", 2, resume=False, check=lock.check)
    with lock_study(tmp_path):
        open_study(tmp_path, STUDY, MODULE, "smoke", 2, resume=True)


def test_a_refused_folder_is_left_as_it_is(tmp_path: Path):
    with pytest.raises(ValueError, match="refused later"), lock_study(tmp_path / "new"):
        raise ValueError("refused later")
    assert not (tmp_path / "new").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StudyFolderError, match="is not empty and holds no study"), lock_study(tmp_path):
        pass
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(StudyFolderError, match="is a file"), lock_study(tmp_path / "notes.txt"):
        pass


def test_a_study_whose_folder_was_moved_ends_and_does_not_make_it_again(tmp_path: Path):
    out = tmp_path / "study"
    with lock_study(out) as lock:
        ledger = open_study(out, STUDY, MODULE, "smoke", 1, resume=False, check=lock.check)
        out.rename(tmp_path / "moved")
        with pytest.raises(FolderLostError, match=f"{out} is gone"):
            run_study(StudySchedule(out, "", members(STUDY, out, 1), _train_nothing, [None], tmp_path), ledger)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def _train_nothing(commands: Sequence[list[str]], logs: Sequence[Path]) -> list[int]:
    raise AssertionError("no member is started")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(before=st.lists(st.integers(0, 3), min_size=1, max_size=3), turns=st.lists(st.integers(0, 3), max_size=12))
def test_the_repaired_ledger_has_every_entry_once_and_those_of_a_process_in_order(
    tmp_path_factory: pytest.TempPathFactory, before: list[int], turns: list[int]
):
    path = tmp_path_factory.mktemp("forked") / "ledger.jsonl"
    write_together(path, before, [0, *turns])
    content, written = path.read_bytes(), by_process(path)
    try:
        broken = not Ledger.verify(path)
    except LedgerError:
        broken = True
    repaired = repair_ledger(path.parent)
    assert (repaired is not None) == broken
    assert by_process(path) == written
    entries = Ledger.verify(path)
    if repaired is None:
        assert path.read_bytes() == content
    else:
        assert (repaired.copy.read_bytes(), entries[-1]["event"]) == (content, "repaired")
        assert sum(entries[-1]["data"]["branches"]) == len(entries) - 1 == content.count(b"\n")
    assert Ledger(path).append("resumed")["index"] == len(entries)
    assert repair_ledger(path.parent) is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[:1] + lines[2:], "line 2: the entry does not follow any earlier one"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1: the entry does not follow any earlier one"),
        (lambda lines: [*lines, lines[-1]], "line 6: the entry does not follow any earlier one"),
        (lambda lines: [lines[0].replace(b"turn", b"burn"), *lines[1:]], "line 1: the entry does not match"),
    ],
)
def test_an_edited_ledger_is_not_repaired(tmp_path: Path, edit: Callable[[list[bytes]], list[bytes]], message: str):
    path = tmp_path / "ledger.jsonl"
    write_together(path, [2], [0, 1, 1])
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
    before = contents(tmp_path)
    with pytest.raises(LedgerError, match=message):
        repair_ledger(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("seeds", [(2, 3), (3, 2)])
def test_a_study_that_two_commands_wrote_is_repaired_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: tuple[int, int]
):
    """Both judged it at their own number of seeds: both looks count, and no finished run is left out."""
    out = tmp_path / "study"
    first = open_study(out, STUDY, MODULE, "smoke", seeds[0], resume=False)
    second = open_study(out, STUDY, MODULE, "smoke", seeds[1], resume=True)
    everyone = members(STUDY, out, 3)
    for member in everyone:
        make_run(member, STUDY)
    for ledger in (first, second, first):
        ledger.append("member", name="slow", seed=0, state_sha256="0" * 64)
    first.append("carried_out", done=8, seconds=1.0, left_out=0)
    second.append("carried_out", done=12, seconds=1.0, left_out=0)
    runs = {name: content for name, content in contents(out).items() if "/" in name}
    assert main(["report", str(out)]) == 2
    assert "rl-llm repair" in capsys.readouterr().err
    assert main(["repair", str(out)]) == 0
    assert "joined the 2 parts of its ledger" in (said := capsys.readouterr().out)
    assert "9 finished runs are untouched" in said
    assert {name: content for name, content in contents(out).items() if "/" in name} == runs
    provenance = read_provenance(out, STUDY, everyone)
    assert (provenance.looks, provenance.count("done"), provenance.error) == (2, 9, None)
    assert reopen_study(out)[1] == everyone
    assert main(["report", str(out)]) == 0
    assert "The ledger was repaired at" in capsys.readouterr().out
    open_study(out, STUDY, MODULE, "smoke", 3, resume=True)
    assert main(["repair", str(out)]) == 0
    assert "nothing to repair" in capsys.readouterr().out


def test_two_different_studies_are_not_joined(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    for ledger, digit in [(Ledger(path), "1"), (Ledger(path), "2")]:
        ledger.append("registered", sha256=digit * 64)
    with pytest.raises(StudyFolderError, match="entries of 2 different studies"):
        repair_ledger(tmp_path)


def test_only_a_study_is_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["repair", str(tmp_path)]) == 2
    assert f"{tmp_path} is not the folder of a study" in capsys.readouterr().err
