"""The ledger: appended entries read back, and any other content is detected."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl_llm.runs.ledger import GENESIS, Ledger, LedgerError


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger with three entries that have all kinds of values."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("started", seed=3, experiment={"b": [1, 2.5, None], "a": "ä\n"})
    ledger.append("checkpoint", step=10, loss=float("nan"))
    ledger.append("finished", wall_seconds=1.0, event="data may hold a field of any name")
    return ledger


def test_entries_read_back_in_order_and_chained(ledger: Ledger) -> None:
    entries = Ledger.verify(ledger.path)
    assert [entry["event"] for entry in entries] == ["started", "checkpoint", "finished"]
    assert entries[0]["data"] == {"seed": 3, "experiment": {"b": [1, 2.5, None], "a": "ä\n"}}
    assert [entry["previous"] for entry in entries] == [GENESIS, *(entry["sha256"] for entry in entries[:2])]
    assert entries[2]["sha256"] == ledger.head


def test_a_reopened_ledger_continues_the_chain(ledger: Ledger) -> None:
    reopened = Ledger(ledger.path)
    assert reopened.head == ledger.head
    reopened.append("resumed", step=10)
    assert [entry["index"] for entry in Ledger.verify(ledger.path)] == [0, 1, 2, 3]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_detected(ledger: Ledger, data: st.DataObject) -> None:
    content = bytearray(ledger.path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    changed = ledger.path.with_name("changed.jsonl")
    changed.write_bytes(content)
    with pytest.raises(LedgerError, match="line"):
        Ledger.verify(changed)


@pytest.mark.parametrize("kept", [(1, 2), (0, 2), (0, 2, 1), (0, 0, 1, 2), (1, 0, 2)])
def test_removed_moved_and_repeated_lines_are_detected(ledger: Ledger, kept: tuple[int, ...]) -> None:
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[number] for number in kept))
    with pytest.raises(LedgerError, match="does not follow"):
        Ledger.verify(ledger.path)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b'"index":0', b'"index": 0'), (b",2.5", b",2.50"), (b"\\u00e4", "ä".encode()), (b'"nan"', b"NaN")],
)
def test_another_spelling_of_the_same_values_is_detected(ledger: Ledger, before: bytes, after: bytes) -> None:
    content = ledger.path.read_bytes()
    ledger.path.write_bytes(content.replace(before, after))
    assert content.count(before) == 1
    with pytest.raises(LedgerError, match="spelled"):
        Ledger.verify(ledger.path)


def test_a_forged_entry_with_a_valid_digest_breaks_the_chain(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "other.jsonl")
    for event in ("started", "another checkpoint"):
        other.append(event)
    lines, forged = (path.read_bytes().splitlines(keepends=True) for path in (ledger.path, other.path))
    ledger.path.write_bytes(lines[0] + forged[1] + lines[2])
    with pytest.raises(LedgerError, match="line 2: the entry does not follow"):
        Ledger.verify(ledger.path)


@pytest.mark.parametrize("torn_bytes", [1, 40, -1])
def test_a_torn_last_line_is_cut_off_and_the_repair_recorded(ledger: Ledger, torn_bytes: int) -> None:
    content = ledger.path.read_bytes()
    first_lines = content[: content.rfind(b"\n", 0, -1) + 1]
    torn = content[len(first_lines) :][:torn_bytes]
    ledger.path.write_bytes(first_lines + torn)
    with pytest.raises(LedgerError, match="line 3: the line is incomplete"):
        Ledger.verify(ledger.path)
    Ledger(ledger.path)
    entries = Ledger.verify(ledger.path)
    assert [entry["event"] for entry in entries] == ["started", "checkpoint", "repaired"]
    assert entries[2]["data"]["torn_bytes"] == len(torn)


def test_a_broken_ledger_does_not_open_and_is_not_changed(ledger: Ledger) -> None:
    broken = ledger.path.read_bytes().replace(b'"seed":3', b'"seed":4')
    ledger.path.write_bytes(broken)
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 1: the entry does not match"):
        Ledger(ledger.path)
    assert ledger.path.read_bytes() == broken


def test_lines_are_strict_json(ledger: Ledger) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    lines = ledger.path.read_text().splitlines()
    assert json.loads(lines[1], parse_constant=refuse)["data"]["loss"] == "nan"
