"""The study folder: the registration, the run folders of the members, and the results.

study.json      title, hypotheses, arms and their fingerprints, sha256          ledger.jsonl    hash-chained events
code/           the source files of the study
ARM-seedN/      run folder of a member                                          logs/           output of the members
starts/         run folders of the policies that arms start from                compiled/       compiled programs
results.json    every number and verdict                                        report.html, report.md
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_llm import config
from rl_llm.config import Code, code_of
from rl_llm.config.terminal import show
from rl_llm.config.trust import UntrustedCodeError, check_trusted, untrusted_files
from rl_llm.runs.code import code_changes, recorded_code, refusal, saved_copy, take_code
from rl_llm.runs.files import json_line, temporary_path, write_atomically
from rl_llm.runs.folder import EXPERIMENT, FORMAT, LEDGER, SUMMARY, RunFolderError, check_format, read_metrics
from rl_llm.runs.ledger import GENESIS, Ledger
from rl_llm.runs.load import spec_of
from rl_llm.runs.lock import HOLDER, LOCK
from rl_llm.studies.study import Study, load_study

REGISTERED, RESULTS = "study.json", "results.json"
LOGS, COMPILED, STARTS = "logs", "compiled", "starts"
OTHER_CODE = "other_code"  # event: members whose code differs, accepted
START_DIGITS = 8  # of the fingerprint, in the name of a start's folder


class StudyFolderError(Exception):
    """The folder cannot be used for this study. The message says why and what to do."""


@dataclass(frozen=True)
class Member:
    """One run of a study: an arm or a start, with a seed. `start` is the run folder that an arm starts from."""

    name: str
    seed: int
    folder: Path
    start: Path | None = None
    is_arm: bool = True

    @property
    def done(self) -> bool:
        return (self.folder / SUMMARY).exists()

    @property
    def ready(self) -> bool:
        """Whether its start has finished."""
        return self.start is None or (self.start / SUMMARY).exists()

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json. Raises StudyFolderError if it is damaged."""
        return dict(self._readable(lambda: json.loads((self.folder / SUMMARY).read_text())))

    def read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """summary.json and the lines of metrics.jsonl. Raises StudyFolderError if one is damaged or missing."""
        return self.summary, self._readable(lambda: read_metrics(self.folder))

    def _readable(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (OSError, ValueError) as error:
            raise StudyFolderError(
                f"{self} cannot be read ({error}); delete {self.folder} and run the study again with --resume"
            ) from error

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"


def members(study: Study, out: Path, seeds: int, shared: Path | None = None) -> list[Member]:
    """All runs of a study, seed by seed, so that an interrupted study has complete pairs.

    The starts are in the study's folder, or in a folder `shared` with other studies.
    """
    names = {name: f"{name}-{config.fingerprint(study.experiments[name])[:START_DIGITS]}" for name in study.starts}
    found: list[Member] = []
    for seed in range(seeds):
        starts = {name: (shared or out) / STARTS / f"{folder}-seed{seed}" for name, folder in names.items()}
        found += [Member(name, seed, folder, is_arm=False) for name, folder in starts.items()]
        found += [
            Member(name, seed, out / f"{name}-seed{seed}", starts.get(arm.start or ""))
            for name, arm in study.arms.items()
        ]
    return found


def open_study(
    out: Path,
    study: Study,
    spec: str,
    scale: str,
    seeds: int,
    resume: bool,
    budget_tokens: int | None = None,
    shared: Path | None = None,
    accept: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Ledger:
    """Open a new study folder, or with `resume` an existing one; returns its ledger, which calls `check` to write.

    With `budget_tokens`, `study` is `Study.with_budget` of the study that `spec` names. With `accept`, code that has
    changed since the registration, or since a member ran, goes into the ledger. Raises StudyFolderError if it is not
    accepted, if the folder holds a study and `resume` is not given, or if it holds another study according to
    study.json or the ledger.
    """
    path, registered, code = out / REGISTERED, study.registered(), code_of(spec, study)
    if path.exists():
        if not resume:
            raise StudyFolderError(f"{out} already holds a study; continue it with --resume, or choose another --out")
        if changed := _changed(_stored(out), study):
            raise StudyFolderError(
                f"{out} holds another study: its registered {changed} differs. A study cannot change after its first "
                "run; choose another --out"
            )
    else:
        check_holds_no_other(out)
        out.mkdir(parents=True, exist_ok=True)
        origin = {"format": FORMAT, "spec": spec, "scale": scale, "budget_tokens": budget_tokens}
        origin |= {"folder": str(Path.cwd()), "code": code.digests, "code_commit": code.commit}
        write_atomically(path, json_line({**origin, **registered}))
    ledger = Ledger(out / LEDGER, check=check)
    _openings(out, registered["sha256"])
    first = {"code": code.digests, "commit": code.commit} if ledger.head == GENESIS else {}
    recorded = code.digests if first else recorded_code({}, out / LEDGER)
    changes = code_changes(out, recorded, code)
    if changes and not accept:
        raise StudyFolderError(refusal(out, changes))
    others = _members_of_other_code(out, members(study, out, seeds, shared), code, accept)
    event = "registered" if not (out / RESULTS).exists() else "resumed"
    where = None if shared is None else str(shared.absolute())
    ledger.append(event, sha256=registered["sha256"], seeds=seeds, shared=where, **first)
    for note in take_code(out, ledger, recorded, code):
        show(note, file=sys.stderr)
    if others:
        ledger.append(OTHER_CODE, members=others)
    return ledger


def check_holds_no_other(out: Path) -> None:
    """Raise StudyFolderError if a folder holds something, but no study."""
    empty = {LOCK, HOLDER, *(temporary_path(out / name).name for name in (HOLDER, REGISTERED))}  # left by a kill
    if out.is_file():
        raise StudyFolderError(f"{out} is a file; choose another --out")
    if out.exists() and not (out / REGISTERED).exists() and {entry.name for entry in out.iterdir()} - empty:
        raise StudyFolderError(f"{out} is not empty and holds no study; choose another --out")


def changed_code(member: Member, code: Code) -> dict[str, str]:
    """How `code` differs from the code that a member ran. Raises ValueError if its records are damaged."""
    record = json.loads((member.folder / EXPERIMENT).read_text())
    return code_changes(member.folder, recorded_code(record, member.folder / LEDGER), code)


def registered_code(out: Path) -> Code:
    """The code that the study was registered with and that was accepted since, from its copies; empty if unrecorded."""
    recorded = recorded_code({}, out / LEDGER) or {}
    saved = {name: saved_copy(out, name, digest) for name, digest in recorded.items()}
    found = {name: copy for name, copy in saved.items() if copy or recorded[name] is None}
    return Code({name: copy.read_bytes() if copy else None for name, copy in found.items()})


def _members_of_other_code(out: Path, runs: Sequence[Member], code: Code, accept: bool) -> dict[str, list[str]]:
    """Members that have run other code and were not accepted before: the files that differ.

    Raises StudyFolderError naming the first one, unless they are accepted.
    """
    accepted = {name: files for data in events(out, OTHER_CODE) for name, files in data["members"].items()}
    found = {}
    for member in runs:
        changes = changed_code(member, code) if (member.folder / EXPERIMENT).exists() else {}
        if changes and accepted.get(str(member)) != list(changes):
            if not accept:
                hint = "" if member.is_arm else "\nIt is a start: another --shared makes it again with this code"
                raise StudyFolderError(f"{member}: {refusal(member.folder, changes)}{hint}")
            found[str(member)] = list(changes)
    return found


def events(out: Path, *names: str) -> list[dict[str, Any]]:
    """The data of all events of these names in the study's ledger, oldest first. Raises LedgerError."""
    entries = Ledger.verify(out / LEDGER) if (out / LEDGER).exists() else []
    return [entry["data"] for entry in entries if entry["event"] in names]


def reopen_study(out: Path) -> tuple[Study, list[Member]]:
    """Load the study of a folder from its module, with the members of the latest `rl-llm ablate`.

    Raises ExperimentError if it cannot be loaded, LedgerError if the ledger is broken, StudyFolderError if study.json,
    the ledger and the module do not all describe the same study.
    """
    stored = _stored(out)
    try:
        check_trusted(out, spec := spec_of(stored))
    except UntrustedCodeError:
        _openings(out, stored["sha256"])  # names a forged registration, whatever its code
        raise
    study, _ = load_study(spec, stored["scale"])
    study = study.with_budget(stored["budget_tokens"]) if stored["budget_tokens"] else study
    if changed := _changed(stored, study):
        raise StudyFolderError(
            f"{out}: {spec} has changed since the study was registered ({changed}); restore the registered version to "
            "judge its hypotheses"
        )
    if not (openings := _openings(out, stored["sha256"])):
        raise StudyFolderError(f"{out / LEDGER} has no registration; run the study with `rl-llm ablate --resume`")
    latest = openings[-1]
    return study, members(study, out, latest["seeds"], None if latest["shared"] is None else Path(latest["shared"]))


def changes_since(out: Path, study: Study) -> dict[str, str]:
    """How the code of a reopened study differs from what was registered and accepted; it judges the hypotheses."""
    return code_changes(out, recorded_code({}, out / LEDGER), code_of(spec_of(_stored(out)), study))


def untrusted_code(out: Path) -> dict[Path, bytes]:
    """Files of a study that would run when it is reopened, and that were not trusted yet."""
    return untrusted_files(spec_of(_stored(out)))


def _stored(out: Path) -> dict[str, Any]:
    """The content of study.json. Raises StudyFolderError if it is damaged or in another format."""
    try:
        stored: dict[str, Any] = json.loads((out / REGISTERED).read_text())
    except ValueError as error:
        raise StudyFolderError(f"{out / REGISTERED} is not JSON ({error}): it was edited or damaged") from error
    try:
        check_format(stored, out)
    except RunFolderError as error:
        raise StudyFolderError(str(error)) from error
    return stored


def _openings(out: Path, sha256: str) -> list[dict[str, Any]]:
    """The ledger's data of each time the study was opened.

    Raises StudyFolderError if the ledger has another `sha256`: study.json alone could have been rewritten after the
    runs, with other hypotheses.
    """
    openings = events(out, "registered", "resumed")
    if other := next((data["sha256"] for data in openings if data["sha256"] != sha256), None):
        raise StudyFolderError(
            f"{out}: {LEDGER} registered another study (sha256 {other[:12]}…) than {REGISTERED} ({sha256[:12]}…); "
            f"restore {REGISTERED} and the module, or choose another --out"
        )
    return openings


def _changed(stored: dict[str, Any], study: Study) -> str:
    """The parts of a study that differ from its registration, in words; empty if there are none."""
    changed = [name for name, value in study.registered().items() if stored.get(name) != value]
    return ", ".join([name for name in changed if name != "sha256"] or changed)
