"""Provenance of a study's numbers: its registration, the environments of its runs, and unfinished members."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_llm import config
from rl_llm.reports.run_report import REPORT
from rl_llm.runs.evidence import examine
from rl_llm.runs.folder import EXPERIMENT, LEDGER
from rl_llm.runs.ledger import Ledger, LedgerError
from rl_llm.studies.folder import LOGS, REGISTERED, Member, changed_code, registered_code
from rl_llm.studies.study import Study

ENVIRONMENT = ("commit", "code_commit", "versions", "python", "devices")  # fields of experiment.json


@dataclass(frozen=True)
class MemberState:
    """State of a member: `done`, `failed`, `begun` or `not begun`.

    `link` leads to its report, or to its log if it failed, relative to the study's folder.
    """

    member: Member
    state: str
    link: str | None
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Provenance:
    """Where a study's numbers come from.

    registered, first: times (ISO 8601) of the registration and of the first start of an arm's run, from the ledgers.
    looks: judgements at different numbers of seeds. environment: all values that the members recorded; more than one
    means that they differ. changes: differences of each arm from the first. other_code: runs that were made by other
    code than the study has, with the files that differ. error: a broken ledger, or files of a run that contradict each
    other or the study's ledger. repaired: when `rl-llm repair` joined entries of commands that ran at the same time.
    """

    command: str
    sha256: str
    looks: int
    registered: str | None
    first: str | None
    error: str | None
    repaired: str | None
    environment: dict[str, list[str]]
    changes: dict[str, list[str]]
    members: list[MemberState]
    other_code: list[str]

    @property
    def registered_first(self) -> bool | None:
        """Whether the hypotheses were registered before the first run; None if a time is unknown."""
        if self.registered is None or self.first is None:
            return None
        return self.registered <= self.first

    def count(self, state: str) -> int:
        """The number of arms' runs in that state."""
        return sum(item.state == state for item in self.members if item.member.is_arm)


def read_provenance(out: Path, study: Study, members: Sequence[Member]) -> Provenance:
    """Read the provenance from study.json, the ledger and the members' folders."""
    stored = json.loads((out / REGISTERED).read_text())
    entries, error = _entries(out / LEDGER)
    ended = [entry["data"] for entry in entries if entry["event"] == "member"]
    anchors = {(data["name"], data["seed"]): data.get("ledger_head") for data in ended}
    starts = []
    for member in members:
        if member.done or (member.folder / LEDGER).exists():
            own, broken = _entries(member.folder / LEDGER)
            error = error or broken or _contradiction(member, own, anchors.get((member.name, member.seed)))
            starts += [entry["time"] for entry in own if entry["event"] == "started" and member.is_arm]
    registered = [entry["time"] for entry in entries if entry["event"] == "registered"]
    failed = {
        (entry["data"]["name"], entry["data"]["seed"]): entry["event"] == "member_failed"
        for entry in entries
        if entry["event"] in ("member", "member_failed")
    }
    arms = {name: config.to_json(arm) for name, arm in study.arms.items()}
    first_arm = next(iter(arms.values()))
    seeds = str(len({member.seed for member in members}))
    budget = ["--budget-tokens", str(stored["budget_tokens"])] if stored["budget_tokens"] else []
    return Provenance(
        command=shlex.join(["rl-llm", "ablate", stored["spec"], "--scale", stored["scale"], "--seeds", seeds, *budget]),
        sha256=stored["sha256"],
        looks=_looks(entries),
        registered=min(registered, default=None),
        first=min(starts, default=None),
        error=error,
        repaired=next((entry["time"] for entry in entries[::-1] if "branches" in entry["data"]), None),
        environment=_environment(members),
        changes={name: config.differences(first_arm, arm) for name, arm in arms.items()},
        members=[_state(out, member, failed.get((member.name, member.seed), False)) for member in members],
        other_code=_other_code(out, members),
    )


def _entries(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    try:
        return Ledger.verify(path), None
    except (LedgerError, FileNotFoundError) as error:
        return [], str(error)


def _contradiction(member: Member, entries: Sequence[Mapping[str, Any]], head: str | None) -> str | None:
    """How the files of a run contradict each other, or the head of its ledger that the study's ledger has."""
    heads = {} if head is None else {"the study's ledger": head}
    wrong = examine(member.folder, entries, heads).wrong
    return f"{member}: {wrong[0]}" if wrong else None


def _looks(entries: Sequence[Mapping[str, Any]]) -> int:
    """The number of judgements: one per completed run of the study with other seeds, or with others left out."""
    judged, seeds, left_out = set(), None, 0
    for entry in entries:
        if "seeds" in entry["data"]:
            seeds, left_out = entry["data"]["seeds"], 0
        if entry["event"] == "carried_out":
            left_out = entry["data"].get("left_out", 0)
            judged.add((seeds, left_out))
    return len(judged | {(seeds, left_out)})


def _environment(members: Sequence[Member]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for member in members:
        path = member.folder / EXPERIMENT
        record = json.loads(path.read_text()) if path.exists() else {}
        for name in ENVIRONMENT:
            if name in record:
                found.setdefault(name, {})[_text(record[name])] = None
    return {name: list(values) for name, values in found.items()}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "unknown")


def _other_code(out: Path, members: Sequence[Member]) -> list[str]:
    """Runs that were made by other code than the study's, with the files that differ."""
    begun = [member for member in members if (member.folder / EXPERIMENT).exists()]
    try:
        code = registered_code(out)
        changed = [(member, changed_code(member, code)) for member in begun]
    except ValueError:  # a broken ledger, which is reported
        return []
    return [f"{member} ({', '.join(changes)})" for member, changes in changed if changes]


def _state(out: Path, member: Member, failed: bool) -> MemberState:
    begun = (member.folder / EXPERIMENT).exists()
    state = "done" if member.done else "failed" if failed else "begun" if begun else "not begun"
    path = out / LOGS / f"{member.folder.name}.log" if state == "failed" else member.folder / REPORT
    link = Path(os.path.relpath(path, out)).as_posix() if path.exists() else None
    return MemberState(member, state, link, member.summary if member.done else {})
