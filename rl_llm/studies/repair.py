"""Joins the two ends of a study's ledger that two commands wrote at the same time, before studies had a lock.

Each command appended to the newest entry that it knew. So every line is intact and follows an earlier one, which is not
always the one just before: the ledger is a tree. The repair writes it as one chain, one command's entries after
another's, and keeps the file as it was. Anything else that breaks a chain is an edit, and is refused.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from rl_llm.runs.files import write_atomically
from rl_llm.runs.folder import LEDGER
from rl_llm.runs.ledger import GENESIS, LedgerError, intact_entries, new_chain
from rl_llm.studies.folder import StudyFolderError

REPAIRED = "repaired"  # event, as after a torn line
OPENINGS = "registered", "resumed", REPAIRED  # first events of a command
Entry = dict[str, Any]


@dataclass(frozen=True)
class Repair:
    """A repair: entries of each branch in the order of the new chain, and the copy of the ledger as it was."""

    branches: list[list[Entry]]
    copy: Path


def repair_ledger(out: Path) -> Repair | None:
    """Join the branches of a study's ledger; None if it is a chain already. The caller holds the lock.

    Raises LedgerError naming the first line that was edited, or whose predecessor is missing, and StudyFolderError if
    the branches are of different studies.
    """
    path = out / LEDGER
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    branches = _branches(path, whole)
    if len(branches) <= 1:
        return None
    entries = [entry for branch in branches for entry in branch]
    openings = [entry["data"] for entry in entries if entry["event"] in ("registered", "resumed")]
    studies = {opening["sha256"] for opening in openings}
    if len(studies) > 1:
        listed = ", ".join(f"{sha256[:12]}…" for sha256 in sorted(studies))
        raise StudyFolderError(
            f"{path} has entries of {len(studies)} different studies (registered as {listed}), which cannot be joined. "
            f"The run folders in {out} are whole: `rl-llm report` reads each. Run each study with its own --out"
        )
    copies = (path.with_name(f"{LEDGER}.before_repair{f'.{number}' if number else ''}") for number in count())
    copy = next(copy for copy in copies if not copy.exists() or copy.read_bytes() == content)
    write_atomically(copy, content)
    data = {
        "branches": list(map(len, branches)),
        "copy": copy.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "torn_bytes": len(content) - len(whole),
    }
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    more = [{"time": now, "event": REPAIRED, "data": data}]
    most = max(openings, key=lambda opening: opening["seeds"], default=None)
    if most and most["seeds"] > openings[-1]["seeds"]:  # or reports would leave out finished runs
        opening = {name: most[name] for name in ("sha256", "seeds", "shared")}
        more.append({"time": now, "event": "resumed", "data": opening})
    write_atomically(path, new_chain([*entries, *more]))
    return Repair(branches, copy)


def _branches(path: Path, content: bytes) -> list[list[Entry]]:
    """The tree of entries as branches, depth first.

    Where an entry has several followers, the command that wrote the entry comes first, then those that opened the
    ledger there: the events of a command count for the number of seeds that it opened the study with.
    """
    followers: dict[str, list[Entry]] = {GENESIS: []}
    index = {GENESIS: -1}
    for place, entry in intact_entries(path, content):
        if entry["sha256"] in index or index.get(entry["previous"], -2) + 1 != entry["index"]:
            raise LedgerError(
                f"{place}: the entry does not follow any earlier one: lines were removed, moved or repeated, which two "
                "commands at the same time do not do. Put the ledger back from a copy"
            )
        index[entry["sha256"]] = entry["index"]
        followers[entry["previous"]].append(entry)
        followers[entry["sha256"]] = []
    branches: list[list[Entry]] = []
    ahead = followers[GENESIS][::-1]
    while ahead:
        entry = ahead.pop()
        goes_on = bool(branches) and branches[-1][-1]["sha256"] == entry["previous"]
        if goes_on:
            branches[-1].append(entry)
        else:
            branches.append([entry])
        ahead += sorted(followers[entry["sha256"]], key=lambda one: one["event"] in OPENINGS)[::-1]
    return branches
