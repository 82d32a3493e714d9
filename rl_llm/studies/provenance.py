"""Where the numbers of a study come from: what was registered and when, what ran on what, and what did not end."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_llm import config
from rl_llm.runs import folder, report
from rl_llm.runs.ledger import Ledger, LedgerError
from rl_llm.studies.folder import LEDGER, LOGS, REGISTERED, Member
from rl_llm.studies.study import Study

SURROUNDINGS = ("commit", "versions", "python", "devices")  # of experiment.json


@dataclass(frozen=True)
class MemberState:
    """How far a member came: `state` is `done`, `failed`, `begun` or `not begun`. `link`, relative to the study's
    folder, is to its report or to the log of a failed one.
    """

    member: Member
    state: str
    link: str | None
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Provenance:
    """`registered` and `first` are the times (ISO 8601) of the registration and of the first start of an arm's run, by
    their ledgers; `surroundings` all values that the members have of a thing, so more than one says that they differ;
    `changes` the differences of each arm from the first; `looks` at how many numbers of seeds it was judged.
    `error` says what is wrong with a ledger, or with what a run says of its end.
    """

    command: str
    sha256: str
    looks: int
    registered: str | None
    first: str | None
    error: str | None
    surroundings: dict[str, list[str]]
    changes: dict[str, list[str]]
    members: list[MemberState]

    @property
    def in_order(self) -> bool | None:
        """Whether the hypotheses were written down before the first run; None where the times are not known."""
        if self.registered is None or self.first is None:
            return None
        return self.registered <= self.first

    def count(self, state: str) -> int:
        """How many runs of arms are in that state."""
        return sum(item.state == state for item in self.members if item.member.of_arm)


def provenance_of(out: Path, study: Study, members: Sequence[Member]) -> Provenance:
    """Read from study.json, the ledger, and the members' folders."""
    stored = json.loads((out / REGISTERED).read_text())
    entries, error = _entries(out / LEDGER)
    starts = []
    for member in members:
        if member.of_arm and (member.folder / folder.LEDGER).exists():
            own, broken = _entries(member.folder / folder.LEDGER)
            error = error or broken or _unlike(member, own)
            starts += [entry["time"] for entry in own if entry["event"] == "started"]
    registered = [entry["time"] for entry in entries if entry["event"] == "registered"]
    failed = {}
    for entry in entries:
        if entry["event"] in ("member", "member_failed"):
            failed[entry["data"]["name"], entry["data"]["seed"]] = entry["event"] == "member_failed"
    return Provenance(
        command=_command(stored, len({member.seed for member in members})),
        sha256=stored["sha256"],
        looks=_looks(entries),
        registered=min(registered, default=None),
        first=min(starts, default=None),
        error=error,
        surroundings=_surroundings(members),
        changes=_changes(study),
        members=[_state(out, member, failed.get((member.name, member.seed), False)) for member in members],
    )


def _entries(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    try:
        return Ledger.verify(path), None
    except (LedgerError, FileNotFoundError) as error:
        return [], str(error)


def _unlike(member: Member, entries: Sequence[Mapping[str, Any]]) -> str | None:
    """Where summary.json of a run is not what its ledger says of its end: one of them was changed since."""
    ends = [entry["data"] for entry in entries if entry["event"] == "finished"]
    if not member.done or not ends:
        return None
    summary = member.summary
    unlike = [name for name, value in ends[-1].items() if summary.get(name) != value]
    return f"{member}: summary.json has another {' and '.join(unlike)} than its ledger" if unlike else None


def _looks(entries: Sequence[Mapping[str, Any]]) -> int:
    """A study that is carried out is judged; it may be opened again for more seeds, or for those that a budget had left
    out.
    """
    judged, seeds, left_out = set(), None, 0
    for entry in entries:
        if "seeds" in entry["data"]:
            seeds, left_out = entry["data"]["seeds"], 0
        if entry["event"] == "carried_out":
            left_out = entry["data"].get("left_out", 0)
            judged.add((seeds, left_out))
    return len(judged | {(seeds, left_out)})


def _command(stored: Mapping[str, Any], seeds: int) -> str:
    budget = ["--budget-tokens", str(stored["budget_tokens"])] if stored["budget_tokens"] else []
    return shlex.join(["rl-llm", "ablate", stored["spec"], "--scale", stored["scale"], "--seeds", str(seeds), *budget])


def _surroundings(members: Sequence[Member]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for member in members:
        path = member.folder / folder.EXPERIMENT
        record = json.loads(path.read_text()) if path.exists() else {}
        for name in SURROUNDINGS:
            if name in record:
                found.setdefault(name, {})[_in_words(record[name])] = None
    return {name: list(values) for name, values in found.items()}


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "unknown")


def _changes(study: Study) -> dict[str, list[str]]:
    arms = {name: config.to_json(arm) for name, arm in study.arms.items()}
    first = next(iter(arms.values()))
    return {name: config.differences(first, arm) for name, arm in arms.items()}


def _state(out: Path, member: Member, failed: bool) -> MemberState:
    log, page = out / LOGS / f"{member.folder.name}.log", member.folder / report.REPORT
    if member.done:
        return MemberState(member, "done", _link(page, out), member.summary)
    if failed:
        return MemberState(member, "failed", _link(log, out), {})
    begun = (member.folder / folder.EXPERIMENT).exists()
    return MemberState(member, "begun" if begun else "not begun", _link(page, out), {})


def _link(path: Path, out: Path) -> str | None:
    return Path(os.path.relpath(path, out)).as_posix() if path.exists() else None
