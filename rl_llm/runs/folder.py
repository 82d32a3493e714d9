"""The run folder: everything that one run writes, one process at a time.

    experiment.json   the resolved experiment          metrics.jsonl   one object per step
    checkpoints/      verified states                  samples.jsonl   prompts and responses
    frozen/           untrained parameters, if any
    ledger.jsonl      hash-chained events              summary.json    the results of a finished run
    code/             the experiment's source files

A refused folder is left unchanged.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from rl_llm.config import differences
from rl_llm.config.source import NO_CODE, Code
from rl_llm.runs.checkpoint import AGAIN, CheckpointError, Checkpoints
from rl_llm.runs.code import code_changes, recorded_code, refusal, take_code
from rl_llm.runs.evidence import (
    CHECKPOINTS,
    EXPERIMENT,
    LEDGER,
    METRICS,
    SAMPLES,
    SUMMARY,
    RecordedFiles,
    digest_key,
    examine,
)
from rl_llm.runs.files import json_line, read_records, strict, temporary_path, write_atomically
from rl_llm.runs.ledger import Ledger
from rl_llm.runs.lock import HOLDER, LOCK, FolderInUseError, FolderLock

FROZEN = "frozen"
FIRST_CHECKPOINT = "first_checkpoint"  # event of the ledger
AFTER_A_SAVE = {FIRST_CHECKPOINT, "preempted", "finished"}  # events that only a run with a checkpoint has
IDENTITY = ("fingerprint", "seed", "problems", "tokenizer")  # of experiment.json, equal for a run and its resumption
RAISED = ("spec", "folder", "overrides", "fingerprint", "experiment")  # change when a run gets more steps
FORMAT = 2
"""Version of the records. Format 1 (no `format` field) named a class by its module, so fingerprints differ."""


class RunFolderError(Exception):
    """The folder cannot be used for this run. The message says why and what to do."""


class RunFolder:
    """An open run folder from `RunFolder.create`, `resume` or `follow`. Use it in a `with` statement.

    The folder is locked until it is closed; the operating system frees the lock of a killed process. Everything that
    writes checks the lock first (FolderLostError). A follower has no lock: it writes only its part of checkpoints and
    drops everything else.
    """

    def __init__(self, path: Path, lock: FolderLock | None, keep: int) -> None:
        self.path = path
        self.writes = lock is not None
        self._lock = lock
        self.ledger = Ledger(path / LEDGER, self.writes, self.check)
        self.checkpoints = Checkpoints(path / CHECKPOINTS, keep, self.check)
        self.frozen = Checkpoints(path / FROZEN, check=self.check)
        self.recorded = RecordedFiles(path)
        self.notes: list[str] = []  # for the user, on the code
        if lock is not None:
            lock.sign()

    @classmethod
    def create(cls, path: Path | str, experiment: dict[str, Any], keep: int = 3, code: Code = NO_CODE) -> Self:
        """Start a run in a new or empty folder and write `experiment` and `code` there.

        experiment: JSON values, with the fields of IDENTITY. keep: number of checkpoints to keep. Raises RunFolderError
        if the folder holds anything.
        """
        path = Path(path).absolute()
        _identity(experiment)
        content = _pretty({"format": FORMAT, **experiment})
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file; choose another --out")
        if (path / EXPERIMENT).exists():
            if (path / LOCK).exists():
                _take_lock(path).release()  # names the process that uses the folder, if any
            raise RunFolderError(f"{path} already holds a run; continue it with --resume, or choose another --out")
        # Left by a run that was killed before it wrote experiment.json; the folder counts as empty.
        harmless = {LOCK, HOLDER, temporary_path(path / HOLDER).name, temporary_path(path / EXPERIMENT).name}
        foreign = sorted({entry.name for entry in path.iterdir()} - harmless) if path.exists() else []
        if foreign:
            shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
            raise RunFolderError(f"{path} is not empty and holds no run ({shown}); choose another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be created ({error.strerror}); choose another --out") from error
        lock = _take_lock(path)
        if (path / EXPERIMENT).exists():
            lock.release()
            raise RunFolderError(f"{path} was just taken by another run; choose another --out")
        write_atomically(path / EXPERIMENT, content)
        folder = cls(path, lock, keep)
        folder.notes = take_code(path, folder.ledger, code.digests, code)
        return folder

    @classmethod
    def resume(
        cls,
        path: Path | str,
        experiment: dict[str, Any],
        keep: int = 3,
        code: Code = NO_CODE,
        accept: bool = False,
        begun: str | None = None,
    ) -> Self:
        """Open the folder of a run to continue it; experiment.json does not change, unless the run gets more steps.

        With `accept`, changed code goes into the ledger. `begun` is the fingerprint of the experiment with fewer steps,
        if the folder may hold that one. Raises RunFolderError if there is no run, if it is open or in another format,
        or naming every difference in a field of IDENTITY or the code; LedgerError for a broken ledger.
        """
        path = Path(path).absolute()
        identity = _identity(experiment)
        if not (path / EXPERIMENT).is_file():
            raise RunFolderError(f"{path} holds no run; leave out --resume to start one there, or correct --out")
        try:
            stored = json.loads((path / EXPERIMENT).read_bytes())
            stored_identity = _identity(stored)
            check_format(stored, path)
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{path / EXPERIMENT} is damaged; the run cannot be resumed: {error}") from error
        if not (path / LEDGER).exists() and ((path / METRICS).exists() or (path / CHECKPOINTS).exists()):
            raise RunFolderError(f"{path} has lost its {LEDGER}; restore it, or choose another --out")
        raised = begun is not None and stored_identity == {**identity, "fingerprint": begun}
        if stored_identity != identity and not raised:
            given = json.loads(_pretty({"format": FORMAT, **experiment}))
            places = differences({**stored, "fingerprint": ""}, {**given, "fingerprint": ""})
            listed = "\n  ".join(places) or "only the fingerprint"
            raise RunFolderError(
                f"{path} holds a run of another experiment. Differences (stored -> requested):\n  {listed}\n"
                "Resume with the stored values, or choose another --out."
            )
        was_lockable = (path / LOCK).exists()
        lock = _take_lock(path)
        try:
            entries = Ledger.verify(path / LEDGER, torn=True) if (path / LEDGER).exists() else []
            if wrong := examine(path, entries, resuming=True).wrong:
                listed = "\n  ".join(wrong)
                raise RunFolderError(f"{path} cannot be resumed:\n  {listed}\nPut it back, or choose another --out")
            folder = cls(path, lock, keep)
            recorded = recorded_code(stored, path / LEDGER)
            changes = code_changes(path, recorded, code)
            if changes and not accept:
                raise RunFolderError(refusal(path, changes))
            folder.notes = take_code(path, folder.ledger, recorded, code)
            if raised:
                folder._raise_steps(stored, experiment)
            return folder
        except BaseException:
            lock.release()
            if not was_lockable:
                (path / LOCK).unlink()
            raise

    @classmethod
    def follow(cls, path: Path | str, keep: int = 3) -> Self:
        """Open a folder that another process of the same run has opened. Raises RunFolderError if it is not shared."""
        path = Path(path).absolute()
        if not (path / EXPERIMENT).is_file():
            raise RunFolderError(f"{path} is not visible to every process of the run; choose an --out that they share")
        return cls(path, None, keep)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Free the folder for the next run. Everything written is already on disk."""
        if self._lock is not None:
            self._lock.release()

    def check(self) -> None:
        """Raise FolderLostError if the folder was moved, deleted or replaced. Call it before writing into it."""
        if self._lock is not None:
            self._lock.check()

    def saved(self, step: int) -> None:
        """Enter in the ledger that the run has a checkpoint, once. From then on it is never begun again at 0."""
        if FIRST_CHECKPOINT not in self.ledger.events:
            self.ledger.append(FIRST_CHECKPOINT, step=step)

    def check_never_saved(self) -> None:
        """Raise CheckpointError if the run had a checkpoint, according to its ledger. Call it if none is left."""
        if AFTER_A_SAVE & self.ledger.events:
            raise CheckpointError(
                f"{self.path / CHECKPOINTS} has no checkpoint any more, but {LEDGER} says that the run saved some; "
                f"put one back, or {AGAIN}"
            )

    def _raise_steps(self, stored: dict[str, Any], experiment: dict[str, Any]) -> None:
        """Give the run more steps: its ledger says so, experiment.json changes, and its end is forgotten."""
        if self.checkpoints.newest() is None:
            self.check_never_saved()
        was, now = stored["experiment"]["steps"], experiment["experiment"]["steps"]
        content = _pretty({**stored, **{name: experiment[name] for name in RAISED if name in experiment}})
        self.recorded.forget_end()
        digests = {"files": self.recorded.records(), digest_key(EXPERIMENT): hashlib.sha256(content).hexdigest()}
        self.ledger.append("steps_raised", was=was, steps=now, fingerprint=experiment["fingerprint"], **digests)
        (self.path / SUMMARY).unlink(missing_ok=True)
        self.recorded.cut()
        write_atomically(self.path / EXPERIMENT, content)
        self.notes.append(f"{self.path} had {was} steps and gets {now}; its evaluation after RL is made again")

    def log(self, record: dict[str, Any]) -> None:
        """Append the JSON values of one step, including an integer `step`, to metrics.jsonl."""
        line = _line_of_step(record)
        self._append(METRICS, line)

    def samples(self, records: Iterable[dict[str, Any]]) -> None:
        """Append prompts with responses to samples.jsonl, each with an integer `step`."""
        lines = b"".join(map(_line_of_step, records))
        self._append(SAMPLES, lines)

    def _append(self, name: str, lines: bytes) -> None:
        self.check()
        if self.writes:
            self.recorded.append(name, lines)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write or replace summary.json."""
        content = _pretty(summary)
        self.check()
        if self.writes:
            write_atomically(self.path / SUMMARY, content)

    def summary_of_ended(self) -> dict[str, Any] | None:
        """Read summary.json if the run ended with it: it names the newest entry of the ledger."""
        try:
            summary = json.loads((self.path / SUMMARY).read_bytes())
            return summary if summary["ledger_head"] == self.ledger.head else None
        except (OSError, ValueError, TypeError, KeyError):  # it is written again
            return None

    def go_back(self, step: int, records: Mapping[str, Any], /, **resumed: Any) -> None:
        """Enter `resumed`, then drop the lines of metrics.jsonl and samples.jsonl after the restored `step` (-1: all).

        records: of the checkpoint, if it has any. Without `resumed`, only check. Raises RunFolderError for damaged or
        missing lines.
        """
        try:
            self.recorded.go_back(step, records)
        except ValueError as error:
            raise RunFolderError(str(error)) from error
        if resumed:
            self.ledger.append("resumed", **resumed, files=self.recorded.records())
            self.recorded.cut()


def check_format(record: dict[str, Any], path: Path) -> None:
    """Raise RunFolderError if a folder's experiment.json or study.json was written in another format."""
    written = record.get("format", 1)
    if written != FORMAT:
        commit = f" (commit {record['commit']})" if record.get("commit") else ""
        raise RunFolderError(
            f"{path} is in record format {written}; this version of rl_llm reads format {FORMAT}. Finish or export it "
            f"with the version that wrote it{commit}, or run it again in another folder"
        )


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Read the records of a run folder or a metrics.jsonl, in order; "nan" and "inf" become floats.

    The run may still be writing, so an incomplete last line is skipped. Raises ValueError for another damaged line.
    """
    records = read_records(Path(path) / METRICS if Path(path).is_dir() else Path(path))
    not_finite = ("nan", "inf", "-inf")
    return [{key: float(value) if value in not_finite else value for key, value in one.items()} for one in records]


def _take_lock(path: Path) -> FolderLock:
    try:
        return FolderLock(path)
    except FolderInUseError as error:
        raise RunFolderError(f"{path} is in use by {error}; wait for it to end, or choose another --out") from error


def _identity(experiment: dict[str, Any]) -> dict[str, Any]:
    missing = [field for field in IDENTITY if field not in experiment]
    if missing:
        raise ValueError(f"experiment has no {' and no '.join(missing)}; these fields identify the run")
    return {field: experiment[field] for field in IDENTITY}


def _line_of_step(record: dict[str, Any]) -> bytes:
    if type(record.get("step")) is not int:
        raise ValueError(f"step is {record.get('step')!r}; a record of a run needs an integer step: {record}")
    return json_line(record)


def _pretty(value: dict[str, Any]) -> bytes:
    return json.dumps(strict(value), allow_nan=False, indent=2).encode() + b"\n"
