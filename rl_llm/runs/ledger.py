"""The ledger of a run: an append-only chain of events in which every entry holds the digest of the one before.

Editing, removing or moving an entry breaks the chain. Entries missing from its end do not; to detect those, compare
`Ledger.head` with a copy kept elsewhere, such as the one in summary.json.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rl_llm.runs.files import append_durably, canonical_json, strict

GENESIS = "0" * 64  # the `previous` digest of the first entry
ENTRY_FIELDS = ("index", "time", "event", "data", "previous", "sha256")


class LedgerError(Exception):
    """The ledger was changed after it was written. The message names the file, the line and the reason."""


class Ledger:
    """A ledger in one JSON-lines file with a single writer, ensured by the lock of the run folder.

    Opening verifies the whole chain (LedgerError). A last line without a newline is from a write that was killed before
    it was acknowledged: it is cut off, and an event `repaired` is appended. With `write=False` the file never changes.
    `check` raises if the file must not be written any more; `events` are the names of events so far.
    """

    def __init__(self, path: Path | str, write: bool = True, check: Callable[[], None] = lambda: None) -> None:
        self.path = Path(path)
        self._write, self.check = write, check
        content = self.path.read_bytes() if self.path.exists() else b""
        end_of_whole_lines = content.rfind(b"\n") + 1
        entries = _verified(self.path, content[:end_of_whole_lines])
        self._length = len(entries)
        self.events = {entry["event"] for entry in entries}
        self.head: str = entries[-1]["sha256"] if entries else GENESIS  # digest of the newest entry; covers all before
        if write and (torn := content[end_of_whole_lines:]):
            with self.path.open("rb+") as stream:
                stream.truncate(end_of_whole_lines)
            self.append("repaired", torn_bytes=len(torn), reason="killed while writing a line")

    def append(self, event: str, /, **data: Any) -> dict[str, Any]:
        """Append an event durably and return its entry. data: plain JSON values."""
        body = {
            "index": self._length,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "data": strict(data),
            "previous": self.head,
        }
        entry = {**body, "sha256": _digest(body)}
        if self._write:
            self.check()
            append_durably(self.path, _line(entry))
        self._length, self.head = self._length + 1, entry["sha256"]
        self.events.add(event)
        return entry

    @staticmethod
    def verify(path: Path | str, torn: bool = False) -> list[dict[str, Any]]:
        """Entries, oldest first. Raises LedgerError naming the first wrong line, FileNotFoundError without a ledger.

        torn: an incomplete last line is left out.
        """
        content = Path(path).read_bytes()
        return _verified(Path(path), content[: content.rfind(b"\n") + 1] if torn else content)


def intact_entries(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of each line, which is as it was written, whatever it follows. Raises LedgerError."""
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        place = f"{path}, line {number}"
        try:
            entry = json.loads(line)
            strict(entry)  # refuses nesting that no later step could follow
        except (ValueError, RecursionError) as error:
            raise LedgerError(f"{place}: not a JSON object ({error}): it was edited or damaged") from error
        if not isinstance(entry, dict) or tuple(entry) != ENTRY_FIELDS or not isinstance(entry["data"], dict):
            raise LedgerError(f"{place}: not a ledger entry; expected the fields {', '.join(ENTRY_FIELDS)}")
        body = {key: entry[key] for key in ENTRY_FIELDS[:-1]}
        if entry["sha256"] != _digest(body):
            raise LedgerError(f"{place}: the entry does not match its own digest: it was edited or damaged")
        # The digest covers the values; comparing bytes also rejects another spelling of the same values.
        if line + b"\n" != _line(entry):
            raise LedgerError(f"{place}: not spelled as the ledger writes entries: it was edited")
        yield place, entry
    if rest:
        raise LedgerError(f"{path}, line {len(lines) + 1}: the line is incomplete; resuming the run repairs it")


def new_chain(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """The lines of a ledger with the times, events and data of these entries."""
    lines, previous = [], GENESIS
    for index, entry in enumerate(entries):
        body = {**{key: entry[key] for key in ("time", "event", "data")}, "index": index, "previous": previous}
        previous = _digest(body)
        lines.append(_line({**body, "sha256": previous}))
    return b"".join(lines)


def _verified(path: Path, content: bytes) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for place, entry in intact_entries(path, content):
        previous = entries[-1]["sha256"] if entries else GENESIS
        if entry["index"] != len(entries) or entry["previous"] != previous:
            raise LedgerError(
                f"{place}: the entry does not follow the one before: lines were removed or moved, or two processes "
                "wrote them at the same time (those of a study are joined by `rl-llm repair`)"
            )
        entries.append(entry)
    return entries


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def _line(entry: dict[str, Any]) -> bytes:
    fields = (f'"{key}":{canonical_json(entry[key])}' for key in ENTRY_FIELDS)
    return ("{" + ",".join(fields) + "}\n").encode()
