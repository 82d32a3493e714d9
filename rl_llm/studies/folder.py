"""The folder of a study: what was registered before the first run, its members' run folders, and what came of it.

study.json      title, hypotheses, arms and their fingerprints, sha256          ledger.jsonl    hash-chained events
ARM-seedN/      a run folder for each member                                    logs/           what they printed
starts/         those of the policies that arms begin with                      compiled/       compiled programs
results.json    every number and verdict                                        report.html, report.md
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_llm import config
from rl_llm.runs.files import json_line, write_atomically
from rl_llm.runs.folder import FORMAT, SUMMARY, RunFolderError, check_format
from rl_llm.runs.ledger import Ledger
from rl_llm.runs.metrics import read_metrics
from rl_llm.studies.study import Study, load_study

REGISTERED, RESULTS, LEDGER = "study.json", "results.json", "ledger.jsonl"
LOGS, COMPILED, STARTS = "logs", "compiled", "starts"
DIGITS_OF_STARTS = 8  # of the fingerprint in the name of a start's folder


class StudyFolderError(Exception):
    """The folder cannot be used for this study. The message says why, and what to do instead."""


@dataclass(frozen=True)
class Member:
    """One run of a study: an arm, or a start (`start` is then None), with a seed. `folder` is its run folder."""

    name: str
    seed: int
    folder: Path
    start: Path | None = None
    of_arm: bool = True

    @property
    def done(self) -> bool:
        return (self.folder / SUMMARY).exists()

    @property
    def ready(self) -> bool:
        """Whether what it begins with is there."""
        return self.start is None or (self.start / SUMMARY).exists()

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json. Raises StudyFolderError where it is damaged."""
        summary: dict[str, Any] = self._readable(lambda: json.loads((self.folder / SUMMARY).read_text()))
        return summary

    def read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """summary.json and the lines of metrics.jsonl. Raises StudyFolderError where one is damaged or gone."""
        return self.summary, self._readable(lambda: read_metrics(self.folder))

    def _readable(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (OSError, ValueError) as error:
            raise StudyFolderError(
                f"{self} cannot be read ({error}): delete {self.folder} and run the study again with --resume"
            ) from error

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"


def members(study: Study, out: Path, seeds: int, shared: Path | None = None) -> list[Member]:
    """All runs of a study, seed by seed, so that what is there of a study that is cut off can be compared. The policies
    that arms begin with are in the study's folder, or in one that it has `shared` with others.
    """
    return list(_members(study, out, seeds, (shared or out) / STARTS))


def _members(study: Study, out: Path, seeds: int, of_starts: Path) -> Iterator[Member]:
    named = {name: f"{name}-{config.fingerprint(study.experiments[name])[:DIGITS_OF_STARTS]}" for name in study.starts}
    for seed in range(seeds):
        starts = {name: of_starts / f"{folder}-seed{seed}" for name, folder in named.items()}
        for name, folder in starts.items():
            yield Member(name, seed, folder, of_arm=False)
        for name, arm in study.arms.items():
            yield Member(name, seed, out / f"{name}-seed{seed}", starts.get(arm.start or ""))


def open_study(
    out: Path,
    study: Study,
    spec: str,
    scale: str,
    seeds: int,
    resume: bool,
    budget_tokens: int | None = None,
    shared: Path | None = None,
) -> Ledger:
    """The ledger of a new study folder, or with `resume` of the one that is there (a new one if there is none). With
    `budget_tokens` the study is `Study.with_budget` of the one that `spec` has.

    Raises StudyFolderError where there is a study and no `resume`, or another study than this, by study.json or by the
    ledger.
    """
    path, registered = out / REGISTERED, study.registered()
    if path.exists():
        if not resume:
            raise StudyFolderError(f"{out} holds a study already: go on with --resume, or choose another --out")
        if changed := _changed(_stored(out), study):
            raise StudyFolderError(
                f"{out} holds another study: {changed} were registered otherwise. A study cannot be changed after its "
                "first run: choose another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise StudyFolderError(f"{out} is not empty and holds no study: choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        asked = {
            "format": FORMAT,
            "spec": spec,
            "scale": scale,
            "budget_tokens": budget_tokens,
            "folder": str(Path.cwd()),
        }
        write_atomically(path, json_line({**asked, **registered}))
    ledger = Ledger(out / LEDGER)
    _openings(out, registered["sha256"])
    event = "registered" if not (out / RESULTS).exists() else "resumed"
    where = None if shared is None else str(shared.absolute())
    ledger.append(event, sha256=registered["sha256"], seeds=seeds, shared=where)
    return ledger


def reopen_study(out: Path) -> tuple[Study, list[Member]]:
    """The study of a folder, loaded again from where it was registered, and its members as last asked for.

    Raises ExperimentError where it cannot be loaded, LedgerError where the ledger is not whole, StudyFolderError where
    study.json or the ledger is not that of this study, or its module now says something else.
    """
    stored = _stored(out)
    spec = stored["spec"] if Path(stored["spec"]).is_file() else str(Path(stored["folder"]) / stored["spec"])
    study, _ = load_study(spec, stored["scale"])
    study = study.with_budget(stored["budget_tokens"]) if stored["budget_tokens"] else study
    if changed := _changed(stored, study):
        raise StudyFolderError(
            f"{out}: {spec} has changed since the study was registered ({changed}), so its hypotheses cannot be judged "
            "by it: put back what was registered"
        )
    if not (openings := _openings(out, stored["sha256"])):
        raise StudyFolderError(f"{out / LEDGER} says of no registration: run the study with `rl-llm ablate --resume`")
    asked = openings[-1]
    return study, members(study, out, asked["seeds"], None if asked["shared"] is None else Path(asked["shared"]))


def _stored(out: Path) -> dict[str, Any]:
    """What study.json holds."""
    try:
        stored: dict[str, Any] = json.loads((out / REGISTERED).read_text())
    except ValueError as error:
        raise StudyFolderError(f"{out / REGISTERED} is no JSON ({error}): it was edited or damaged") from error
    try:
        check_format(stored, out)
    except RunFolderError as error:
        raise StudyFolderError(str(error)) from error
    return stored


def _openings(out: Path, sha256: str) -> list[dict[str, Any]]:
    """What the ledger says of each time that the study was opened. study.json alone could be written anew after the
    runs, with other hypotheses: StudyFolderError where the ledger has another study's `sha256`.
    """
    entries = Ledger.verify(out / LEDGER) if (out / LEDGER).exists() else []
    openings = [entry["data"] for entry in entries if entry["event"] in ("registered", "resumed")]
    if other := next((data["sha256"] for data in openings if data["sha256"] != sha256), None):
        raise StudyFolderError(
            f"{out}: {LEDGER} has registered another study (sha256 {other[:12]}…) than {REGISTERED} ({sha256[:12]}…), "
            f"which was changed since: put back {REGISTERED} and the module, or choose another --out"
        )
    return openings


def _changed(stored: dict[str, Any], study: Study) -> str:
    """The parts of a study that were registered otherwise, in words; empty where none was."""
    changed = [name for name, value in study.registered().items() if stored.get(name) != value]
    return ", ".join([name for name in changed if name != "sha256"] or changed)
