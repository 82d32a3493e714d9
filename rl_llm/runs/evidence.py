"""Evidence that the files of a run are as they were written.

A record {"bytes": n, "sha256": ...} covers the first n bytes of a file. The ledger's entries `resumed`, `steps_raised`,
`preempted` and `finished` have records of metrics.jsonl and samples.jsonl. The progress in a checkpoint has them, too,
with the ledger's head at that time. `finished` also has the digest of summary.json, which names that entry, and
`started` that of experiment.json. So an edit of one file contradicts another one. An edit of all contradicts only a
head that was kept elsewhere.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from rl_llm.runs.files import append_durably, canonical_json, json_object, truncate
from rl_llm.runs.seal import SEAL, intact_seal

EXPERIMENT, METRICS, SAMPLES, SUMMARY = "experiment.json", "metrics.jsonl", "samples.jsonl", "summary.json"
LEDGER, CHECKPOINTS = "ledger.jsonl", "checkpoints"
RECORDED = METRICS, SAMPLES  # grow line by line
RECORDS = "records"  # in the progress of a checkpoint
REWINDS = "resumed", "steps_raised"  # events that may shorten the recorded files, to what their records say
ENDS = "preempted", "finished"  # events after which nothing is written
CHANGED = "it was changed after it was written"
Entries = Sequence[Mapping[str, Any]]


class RunningDigest:
    """SHA-256 of a file that grows. Costs the bytes that are added, not those of the file."""

    def __init__(self, content: bytes = b"") -> None:
        self._digest, self._bytes = hashlib.sha256(content), len(content)

    def add(self, content: bytes) -> None:
        """Take in what was appended to the file."""
        self._digest.update(content)
        self._bytes += len(content)

    def record(self) -> dict[str, Any]:
        """The record of the whole file so far."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


class RecordedFiles:
    """The files of a run that grow line by line, with their records so far."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._digests = {name: RunningDigest(read_if_any(run / name)) for name in RECORDED}

    def append(self, name: str, lines: bytes) -> None:
        """Append whole lines durably."""
        append_durably(self._run / name, lines)
        self._digests[name].add(lines)

    def records(self) -> dict[str, dict[str, Any]]:
        """The records by the names of the files."""
        return {name: digest.record() for name, digest in self._digests.items()}

    def forget_end(self) -> None:
        """Leave the evaluation after RL, which ends samples.jsonl, out of the records."""
        lines = read_if_any(self._run / SAMPLES).splitlines(keepends=True)
        kept = takewhile(lambda line: json.loads(line).get("when") != "after", lines)
        self._digests[SAMPLES] = RunningDigest(b"".join(kept))

    def go_back(self, step: int, records: Mapping[str, Any]) -> None:
        """Leave the lines after a restored step (-1: all) out of the records.

        records: of its checkpoint, if it has any. Raises ValueError for a damaged line, and unless metrics.jsonl has a
        line for each step.
        """
        kept = {name: part_to_keep(self._run / name, step, records.get(name)) for name in RECORDED}
        if lacks := lacking(kept[METRICS][1], step):
            raise ValueError(f"{self._run / METRICS} {lacks}: {CHANGED}. Put it back, or choose another --out.")
        self._digests = {name: RunningDigest(content) for name, (content, _) in kept.items()}

    def cut(self) -> None:
        """Drop from the files what the records leave out. Call it once the ledger has them: a kill may come between."""
        for name, record in self.records().items():
            if (self._run / name).exists():
                truncate(self._run / name, record["bytes"])


@dataclass(frozen=True)
class Evidence:
    """Contradictions between the files of a run, and a statement per file of what it was checked against."""

    wrong: list[str]
    checked: list[str]


@dataclass(frozen=True)
class _Claim:
    place: str
    bytes: int
    sha256: str


def examine(run: Path, entries: Entries, heads: Mapping[str, str] | None = None, resuming: bool = False) -> Evidence:
    """Hold the files of a run against its verified ledger, and the ledger against the heads that are known of it.

    heads: digests of a newest entry that were kept elsewhere, by their place. resuming: leave out what a resume mends
    after a kill (a missing or older summary.json) or compares by itself (experiment.json).
    """
    summary, seals = _summary(run), _sealed_records(run)
    named = {SUMMARY: summary.get("ledger_head"), **{place: one.get("ledger") for place, one in seals.items()}}
    named = {place: head for place, head in (named | dict(heads or {})).items() if head is not None}
    known = {entry["sha256"] for entry in entries}
    ended = bool(entries) and entries[-1]["event"] in ENDS and "files" in entries[-1]["data"]
    lines = [_compare_lines(run / name, _claims(name, entries, seals), ended) for name in RECORDED]
    faults = [f"{LEDGER} lacks the entry that {place} names: {CHANGED}" for place in named if named[place] not in known]
    if not entries and any((run / name).exists() for name in (*RECORDED, SUMMARY)):
        faults.append(f"{LEDGER} has no entries, but the run has written other files: {CHANGED}")
    faults += [fault for fault, _ in lines]
    faults += [_compare_summary(summary, entries, resuming), "" if resuming else _compare_experiment(run, entries)]
    against = f"and {', '.join(named)} name one of them" if named else "but entries may be missing at its end"
    checked = [f"{LEDGER}: its {len(entries)} entries form a chain, {against}", *(statement for _, statement in lines)]
    for name in (SUMMARY, EXPERIMENT):
        covered = [entry for entry in entries if digest_key(name) in entry["data"]]
        if (run / name).exists():
            checked.append(f"{name}: held against {_place(covered[-1])}" if covered else _uncovered(name))
    return Evidence(list(filter(None, faults)), list(filter(None, checked)))


def part_to_keep(path: Path, step: int, record: Mapping[str, Any] | None) -> tuple[bytes, set[int]]:
    """The lines of a file that belong to a restored step, and their steps. record: of its checkpoint, if it has one.

    They end at the record, at the first line of a later step, and before an incomplete line. Raises ValueError for a
    damaged line.
    """
    content, length, steps = read_if_any(path), 0, set()
    if record and RunningDigest(content[: record["bytes"]]).record() == record:
        content = content[: record["bytes"]]
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        try:
            if not line.endswith(b"\n") or (line_step := json_object(line)["step"]) > step:
                break
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is damaged; the run cannot be resumed: {error}") from error
        steps.add(line_step)
        length += len(line)
    return content[:length], steps


def lacking(steps: set[int], last: int) -> str:
    """How lines lack some of the steps up to `last`, in words; empty if there is one of each."""
    missing = sorted(set(range(1, last + 1)) - steps)
    return f"lacks {len(missing)} of the steps up to {last} (the first is {missing[0]})" if missing else ""


def digest_key(name: str) -> str:
    """Field of a ledger entry with the digest of summary.json or experiment.json."""
    return f"{Path(name).stem}_sha256"


def summary_sha256(summary: Mapping[str, Any]) -> str:
    """Digest of the values in summary.json, but for the name of the entry that has this digest."""
    values = {name: value for name, value in summary.items() if name != "ledger_head"}
    as_read = json.loads(canonical_json(values))
    return hashlib.sha256(canonical_json(as_read).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Digest of a file; of nothing if there is none."""
    return hashlib.sha256(read_if_any(path)).hexdigest()


def _sealed_records(run: Path) -> dict[str, dict[str, Any]]:
    """Records in the intact seals of a run's checkpoints, by the place of the checkpoint."""
    seals = [(path.parent, intact_seal(path.parent)) for path in sorted((run / CHECKPOINTS).glob(f"*/{SEAL}"))]
    return {
        f"{CHECKPOINTS}/{step.name}": seal["progress"][RECORDS]
        for step, seal in seals
        if seal is not None and RECORDS in seal["progress"]
    }


def _claims(name: str, entries: Entries, seals: Mapping[str, Mapping[str, Any]]) -> list[_Claim]:
    """Claims on the first bytes of a file, without those that are void because it was shortened later."""
    claims: list[_Claim] = []
    for entry in entries:
        record = entry["data"].get("files", {}).get(name)
        if entry["event"] in REWINDS:
            claims = [claim for claim in claims if claim.bytes <= (record["bytes"] if record else 0)]
        claims += [_Claim(_place(entry), **record)] if record else []
        claims += [_Claim(place, **one[name]) for place, one in seals.items() if one["ledger"] == entry["sha256"]]
    return sorted(claims, key=lambda claim: claim.bytes)


def _compare_lines(path: Path, claims: Sequence[_Claim], ended: bool) -> tuple[str, str]:
    """A contradiction between a file and the claims on it, and how far they cover it; either is empty."""
    content, at, by, digest = read_if_any(path), 0, "", RunningDigest()
    for claim in claims:
        digest.add(content[at : claim.bytes])
        if digest.record() != {"bytes": claim.bytes, "sha256": claim.sha256}:
            first, last = (content[:end].count(b"\n") for end in (at, claim.bytes))
            what = f"its lines {first + 1} to {last}" if last > first else f"its {len(content):,} bytes"
            found = f"{what} contradict the {claim.bytes:,} bytes of {claim.place}{_lost(path)}"
            return f"{path.name}: {found}: {CHANGED}", ""
        at, by = claim.bytes, claim.place
    if not claims:
        return "", _uncovered(path.name) if content else ""
    if ended and len(content) > at:
        return f"{path.name} has {len(content) - at:,} bytes after those of {by}, where the run ended: {CHANGED}", ""
    rest = f"; {len(content) - at:,} bytes came later and are not covered yet" if len(content) > at else ""
    return "", f"{path.name}: {at:,} bytes held against {by}{rest}"


def _lost(path: Path) -> str:
    """Steps that are missing between the others, in words that end a sentence; empty if there are none."""
    try:
        steps = part_to_keep(path, sys.maxsize, None)[1] if path.name == METRICS else set()
        lost = lacking(steps, max(steps, default=0))
    except ValueError:
        return ""
    return f"; it {lost}" if lost else ""


def _compare_summary(summary: Mapping[str, Any], entries: Entries, resuming: bool) -> str:
    """How summary.json contradicts the end of the run in the ledger; empty if it does not."""
    ends = [entry for entry in entries if entry["event"] == "finished"]
    if not summary:
        gone = ends and "steps_raised" not in [entry["event"] for entry in entries[ends[-1]["index"] :]]
        return f"{SUMMARY} is missing, but {_place(ends[-1])} says that it was written" if gone and not resuming else ""
    if not ends:
        return f"{SUMMARY} exists, but no entry of the ledger says that the run finished: one of them was changed"
    end = next((entry for entry in ends if entry["sha256"] == summary.get("ledger_head")), ends[-1])
    own = {name: value for name, value in end["data"].items() if name not in ("files", digest_key(SUMMARY))}
    if unlike := [name for name, value in own.items() if summary.get(name) != value]:
        return f"{' and '.join(unlike)} in {SUMMARY} differ from its ledger"
    if summary_sha256(summary) != end["data"].get(digest_key(SUMMARY), summary_sha256(summary)):
        return f"{SUMMARY} contradicts {_place(end)}: {CHANGED}"
    older = end is not ends[-1] and not resuming
    return f"{SUMMARY} is that of {_place(end)}, but the run finished again; --resume writes it" if older else ""


def _compare_experiment(run: Path, entries: Entries) -> str:
    """How experiment.json contradicts the ledger; empty if it does not, or is just being given more steps."""
    digests = [entry["data"][key] for entry in entries if (key := digest_key(EXPERIMENT)) in entry["data"]]
    if not digests or entries[-1]["event"] == "steps_raised":
        return ""
    same = file_sha256(run / EXPERIMENT) == digests[-1]
    return "" if same else f"{EXPERIMENT} contradicts the ledger: {CHANGED}"


def _summary(run: Path) -> dict[str, Any]:
    """Values of summary.json; none if there is no such file, or it is damaged."""
    try:
        return json_object(read_if_any(run / SUMMARY))
    except ValueError:
        return {}


def read_if_any(path: Path) -> bytes:
    """Content of a file; nothing if there is none."""
    return path.read_bytes() if path.exists() else b""


def _place(entry: Mapping[str, Any]) -> str:
    return f"ledger entry {entry['index'] + 1} ({entry['event']})"


def _uncovered(name: str) -> str:
    return f"{name}: no digest of it is recorded, so an edit cannot be seen"
