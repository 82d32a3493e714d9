"""Evidence: kills and resumes leave a run whole, whatever they interrupt; an edit of any file is found and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_llm.cli import main
from rl_llm.reports.run_report import contradictions, write_report
from rl_llm.runs.evidence import RECORDS, examine, summary_sha256
from rl_llm.runs.folder import RunFolder, RunFolderError
from rl_llm.runs.ledger import Ledger, LedgerError, new_chain
from rl_llm.runs.seal import read_seal, seal_folder

RECORD: dict[str, Any] = {"seed": 0, "fingerprint": "f00d", "problems": "cafe", "tokenizer": "abba"}
Edit = Callable[[Path], object]


def save(folder: RunFolder, step: int) -> None:
    """A checkpoint without arrays."""
    path = folder.path / "checkpoints" / str(step)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    records = {"ledger": folder.ledger.head, **folder.recorded.records()}
    seal_folder(path, {"step": step, "progress": {RECORDS: records}, "leaves": {}})


def wrong(path: Path, **how: Any) -> list[str]:
    return examine(path, Ledger.verify(path / "ledger.jsonl"), **how).wrong


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_a_run_that_is_killed_and_resumed_at_any_point_stays_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    """It goes back to any good checkpoint, perhaps not to the newest one, and may be killed at once again."""
    path, seconds = tmp_path_factory.mktemp("run") / "run", iter(range(1000))
    with RunFolder.create(path, RECORD) as folder:
        folder.ledger.append("started")
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()) and (path / "metrics.jsonl").exists():
            with (path / "metrics.jsonl").open("a") as stream:
                stream.write('{"step": 7, "tor')
        with RunFolder.resume(path, RECORD) as folder:
            seals = {int(one.name): read_seal(one)["progress"][RECORDS] for one in path.glob("checkpoints/*")}
            step = data.draw(st.sampled_from([-1, *sorted(seals)]), "the checkpoint that is restored")
            if data.draw(st.booleans(), "killed while going back"):
                folder.recorded.cut = lambda: None  # type: ignore[method-assign]
            folder.go_back(step, seals.get(step, {}), step=step)
            if folder.recorded.__dict__.pop("cut", None):
                continue
            for later in [one for one in seals if one > step]:  # moved aside, or still there
                if data.draw(st.booleans()):
                    shutil.rmtree(path / "checkpoints" / str(later))
            for now in range(max(step, 0) + 1, max(step, 0) + 1 + data.draw(st.integers(0, 4))):
                folder.samples([{"step": now, "when": "ungraded"}] * data.draw(st.integers(0, 2)))
                folder.log({"step": now, "time/step": next(seconds)})
                folder.samples([{"step": now, "when": "ungraded"}] * data.draw(st.integers(0, 2)))
                if data.draw(st.booleans()):
                    save(folder, now)
        assert wrong(path) == []
    with RunFolder.resume(path, RECORD):
        pass


def test_lines_written_for_the_next_step_before_a_save_are_written_again(tmp_path: Path):
    """As after a step that too many verifiers failed in: its ungraded responses come before the state is saved."""
    with RunFolder.create(tmp_path / "run", RECORD) as folder:
        folder.ledger.append("started")
        folder.log({"step": 1})
        folder.samples([{"step": 2, "when": "ungraded"}])
        save(folder, 1)
        folder.samples([{"step": 1, "when": "ungraded"}])
    for _ in range(2):
        with RunFolder.resume(tmp_path / "run", RECORD) as folder:
            folder.go_back(1, read_seal(tmp_path / "run" / "checkpoints" / "1")["progress"][RECORDS], step=1)
            assert (tmp_path / "run" / "samples.jsonl").read_text() == ""
            folder.samples([{"step": 2, "when": "ungraded"}])


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_an_unfinished_run_is_covered_up_to_its_newest_checkpoint(tmp_path: Path, name: str):
    path = tmp_path / "run"
    with RunFolder.create(path, RECORD) as folder:
        folder.ledger.append("started")
        for step in (1, 2):
            folder.log({"step": step, "reward": 0.5})
            folder.samples([{"step": step, "reward": 0.5}])
            if step == 1:
                save(folder, step)
    lines = (path / name).read_bytes().splitlines(keepends=True)
    (path / name).write_bytes(lines[0] + lines[1].replace(b"0.5", b"0.9"))
    assert wrong(path) == []  # and the page says so
    assert f"{name}: {len(lines[0])} bytes held against checkpoints/1; {len(lines[1])} bytes came later" in " ".join(
        examine(path, Ledger.verify(path / "ledger.jsonl")).checked
    )
    (path / name).write_bytes(lines[0].replace(b"0.5", b"0.9") + lines[1])
    (fault,) = wrong(path)
    assert fault.startswith(f"{name}: its lines 1 to 1 contradict")
    with pytest.raises(RunFolderError, match="lines 1 to 1 contradict"):
        RunFolder.resume(path, RECORD)


def test_a_folder_without_digests_is_read_and_the_page_says_so(tmp_path: Path):
    """As earlier versions wrote it: only the chain, and its head in the summary."""
    path = tmp_path / "run"
    with RunFolder.create(path, RECORD) as folder:
        folder.ledger.append("started", seed=0)
        folder.log({"step": 1})
        head = folder.ledger.append("finished", accuracy_after=1.0)["sha256"]
        folder.write_summary({"accuracy_after": 1.0, "ledger_head": head})
    assert contradictions(path) == []
    page = write_report(path).read_text()
    for name in ("metrics.jsonl", "summary.json", "experiment.json"):
        assert f"{name}: no digest of it is recorded, so an edit cannot be seen" in page
    with RunFolder.resume(path, RECORD) as folder:
        folder.go_back(1, {}, step=1)
    assert wrong(path) == []


def lines_of(name: str, change: Callable[[list[bytes]], list[bytes]]) -> Edit:
    return lambda run: (run / name).write_bytes(b"".join(change((run / name).read_bytes().splitlines(keepends=True))))


def values_of(name: str, **values: Any) -> Edit:
    return lambda run: (run / name).write_text(json.dumps({**json.loads((run / name).read_text()), **values}))


def rewrite_ledger(run: Path) -> str:
    """Give the run a perfect accuracy, and every entry a new digest; returns the new head."""
    entries = Ledger.verify(run / "ledger.jsonl")
    for entry in entries:
        entry["data"] |= {"accuracy": 1.0} if entry["event"] == "evaluated" else {}
    (run / "ledger.jsonl").write_bytes(new_chain(entries))
    return Ledger(run / "ledger.jsonl").head


EDITS: dict[str, tuple[Edit, str]] = {
    "last entry dropped": (
        lines_of("ledger.jsonl", lambda lines: lines[:-1]),
        "lacks the entry that summary.json names",
    ),
    "all but one dropped": (
        lines_of("ledger.jsonl", lambda lines: lines[:1]),
        "lacks the entry that summary.json names",
    ),
    "all entries dropped": (lines_of("ledger.jsonl", lambda _: []), "ledger.jsonl has no entries"),
    "last entry torn": (lines_of("ledger.jsonl", lambda lines: [*lines[:-1], lines[-1][:-9]]), "ledger.jsonl"),
    "an entry edited": (lines_of("ledger.jsonl", lambda lines: [lines[0].replace(b"0", b"1"), *lines[1:]]), "line 1"),
    "chain rewritten": (rewrite_ledger, "lacks the entry that summary.json names"),
    "chain of nested lists": (
        lines_of("ledger.jsonl", lambda _: [b"[" * 100_000 + b"\n"]),
        "line 1: not a JSON object",
    ),
    "accuracy_after edited": (values_of("summary.json", accuracy_after=0.999), "accuracy_after in summary.json differ"),
    "a cost edited": (values_of("summary.json", wall_seconds=0.1), "summary.json contradicts ledger entry"),
    "head removed": (values_of("summary.json", ledger_head="0" * 64), "lacks the entry that summary.json names"),
    "a metric edited": (
        lines_of("metrics.jsonl", lambda lines: [*lines[:-1], lines[-1].replace(b": 0.", b": 1.", 1)]),
        "metrics.jsonl: its lines 21 to 22 contradict",
    ),
    "metrics cut": (lines_of("metrics.jsonl", lambda lines: lines[:-1]), "metrics.jsonl: its lines"),
    "metrics doubled": (
        lines_of("metrics.jsonl", lambda lines: [*lines, lines[-1]]),
        "bytes after those of ledger entry",
    ),
    "a response edited": (
        lines_of("samples.jsonl", lambda lines: [lines[0].replace(b'"response": "', b'"response": "9'), *lines[1:]]),
        "samples.jsonl: its lines 1 to",
    ),
    "samples removed": (lambda run: (run / "samples.jsonl").unlink(), "samples.jsonl: its 0 bytes contradict"),
}
ONLY_REPORTED: dict[str, tuple[Edit, str]] = {
    "summary removed": (lambda run: (run / "summary.json").unlink(), "summary.json is missing, but ledger entry"),
    "experiment edited": (values_of("experiment.json", python="9"), "experiment.json contradicts the ledger"),
}


def test_a_finished_run_is_whole_and_its_page_says_what_was_checked(copy: Path):
    assert contradictions(copy) == []
    page = " ".join(write_report(copy).read_text().split())
    for statement in (
        "entries is intact, and no file contradicts it",
        "summary.json, checkpoints/",
        "metrics.jsonl: ",
        "samples.jsonl: ",
        "summary.json: held against ledger entry",
        "experiment.json: held against ledger entry 1 (started)",
        "only a copy of the newest digest that was kept elsewhere",
    ):
        assert statement in page, statement


@pytest.mark.parametrize("name", [*EDITS, *ONLY_REPORTED])
def test_an_edit_is_found_by_the_report_and_on_resume(copy: Path, name: str):
    edit, message = (EDITS | ONLY_REPORTED)[name]
    edit(copy)
    assert any(message in fault for fault in contradictions(copy)), contradictions(copy)
    assert message in write_report(copy).read_text()
    if name in EDITS:
        before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        with pytest.raises((RunFolderError, LedgerError)) as refused:
            RunFolder.resume(copy, json.loads((copy / "experiment.json").read_text()))
        assert name == "last entry torn" or message in str(refused.value)
        assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "summary.json", "experiment.json"])
@pytest.mark.parametrize("content", ["5\n", "[]\n", "[" * 100_000 + "\n"])
def test_a_file_of_other_values_is_named_in_one_line(
    copy: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
):
    (copy / name).write_text(content)
    assert main(["report", str(copy)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{copy / name}" in line
    assert "is damaged" in line


def test_a_rewrite_of_everything_contradicts_only_a_head_that_was_kept_elsewhere(copy: Path):
    kept = {"my notebook": json.loads((copy / "summary.json").read_text())["ledger_head"]}
    assert wrong(copy, heads=kept) == []
    shutil.rmtree(copy / "checkpoints")
    summary = json.loads((copy / "summary.json").read_text()) | {"accuracy_after": 1.0}
    entries = Ledger.verify(copy / "ledger.jsonl")
    entries[-1]["data"] |= {"accuracy_after": 1.0, "summary_sha256": summary_sha256(summary)}
    (copy / "ledger.jsonl").write_bytes(new_chain(entries))
    summary["ledger_head"] = Ledger(copy / "ledger.jsonl").head
    (copy / "summary.json").write_text(json.dumps(summary))
    assert wrong(copy) == []
    assert wrong(copy, heads=kept) == [
        "ledger.jsonl lacks the entry that my notebook names: it was changed after it was written"
    ]
