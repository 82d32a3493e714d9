"""The run folder: where one run, and only one at a time, leaves all it has to say.

    experiment.json   what is run, fully resolved      metrics.jsonl   one object per step
    checkpoints/      verified states                  samples.jsonl   prompts and responses
    ledger.jsonl      hash-chained events              summary.json    the outcome, once there is one

A folder that is refused is left exactly as it was found.
"""

import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from rl_llm.config import differences
from rl_llm.runs.checkpoint import Checkpoints
from rl_llm.runs.files import append_durably, json_line, strict, temporary_of, write_atomically
from rl_llm.runs.ledger import Ledger

EXPERIMENT, METRICS, SAMPLES, SUMMARY = "experiment.json", "metrics.jsonl", "samples.jsonl", "summary.json"
LEDGER, CHECKPOINTS = "ledger.jsonl", "checkpoints"
LOCK, HOLDER = ".lock", ".holder.json"
IDENTITY = ("fingerprint", "seed", "problems", "tokenizer")
"""Fields of experiment.json that a resumed run must share with the run it continues."""
FORMAT = 2
"""Version of the records. In format 1 (no `format` field) a class was named by its module, so fingerprints differ."""


class RunFolderError(Exception):
    """The folder cannot be used for this run. The message says why, and what to do instead."""


class RunFolder:
    """An open run folder, made by `RunFolder.create`, `resume` or `follow`. Use it in a `with` statement.

    It is locked until it is closed; the operating system frees the lock of a process that is killed. One that follows
    has no lock and `writes` nothing but its part of checkpoints: all else that it is given is dropped.
    """

    def __init__(self, path: Path, lock: Any | None, checkpoints: Checkpoints) -> None:
        self.path = path
        self.writes = lock is not None
        self.ledger = Ledger(path / LEDGER, self.writes)
        self.checkpoints = checkpoints
        self._lock = lock
        if not self.writes:
            return
        write_atomically(path / HOLDER, json_line({"process": os.getpid(), "host": socket.gethostname()}))

    @classmethod
    def create(cls, path: Path | str, experiment: dict[str, Any], keep: int = 3) -> Self:
        """Starts a run in a new or empty folder and writes `experiment` there.

        experiment: JSON values, among them `fingerprint` and `seed`. keep: how many checkpoints are kept.
        Raises RunFolderError where the folder holds a run or anything else.
        """
        path = Path(path).absolute()
        checkpoints = Checkpoints(path / CHECKPOINTS, keep)
        _identity(experiment)
        content = _pretty({"format": FORMAT, **experiment})
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file: choose another --out")
        if (path / EXPERIMENT).exists():
            if (path / LOCK).exists():
                _take_lock(path).release()  # says who uses the folder, if anyone does
            raise RunFolderError(f"{path} holds a run already: continue it with --resume, or choose another --out")
        # A run that was killed before it had begun leaves these; they say nothing, so the folder is empty.
        harmless = {LOCK, HOLDER, temporary_of(path / HOLDER).name, temporary_of(path / EXPERIMENT).name}
        foreign = sorted({entry.name for entry in path.iterdir()} - harmless) if path.exists() else []
        if foreign:
            shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
            raise RunFolderError(f"{path} is not empty and holds no run ({shown}): choose another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be made ({error.strerror}): choose another --out") from error
        lock = _take_lock(path)
        if (path / EXPERIMENT).exists():
            lock.release()
            raise RunFolderError(f"{path} was taken by another run just now: choose another --out")
        write_atomically(path / EXPERIMENT, content)
        return cls(path, lock, checkpoints)

    @classmethod
    def resume(cls, path: Path | str, experiment: dict[str, Any], keep: int = 3) -> Self:
        """Opens the folder of a run to continue it. Its experiment.json stays as it is.

        Raises RunFolderError where there is no run, where another process has it open, and where the stored
        `fingerprint` or `seed` is another one (naming every field that differs); LedgerError where its ledger
        is not whole.
        """
        path = Path(path).absolute()
        checkpoints = Checkpoints(path / CHECKPOINTS, keep)
        identity = _identity(experiment)
        if not (path / EXPERIMENT).is_file():
            raise RunFolderError(f"{path} holds no run: leave out --resume to start one there, or correct --out")
        try:
            stored = json.loads((path / EXPERIMENT).read_bytes())
            stored_identity = _identity(stored)
            check_format(stored, path)
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{path / EXPERIMENT} is damaged, so it cannot be resumed: {error}") from error
        if not (path / LEDGER).exists() and ((path / METRICS).exists() or (path / CHECKPOINTS).exists()):
            raise RunFolderError(f"{path} has lost its {LEDGER}: put it back, or choose another --out")
        if stored_identity != identity:
            given = json.loads(_pretty({"format": FORMAT, **experiment}))
            places = differences({**stored, "fingerprint": ""}, {**given, "fingerprint": ""})
            listed = "\n  ".join(places) or "only the fingerprint"
            raise RunFolderError(
                f"{path} holds a run of another experiment. What differs (stored -> asked for):\n  {listed}\n"
                "Resume with the stored values, or choose another --out."
            )
        was_lockable = (path / LOCK).exists()
        lock = _take_lock(path)
        try:
            return cls(path, lock, checkpoints)
        except BaseException:
            lock.release()
            if not was_lockable:
                (path / LOCK).unlink()
            raise

    @classmethod
    def follow(cls, path: Path | str, keep: int = 3) -> Self:
        """The folder that another process of the same run has opened.

        Raises RunFolderError where it cannot be seen from here.
        """
        path = Path(path).absolute()
        if not (path / EXPERIMENT).is_file():
            raise RunFolderError(f"{path} is not seen by every process of the run: choose an --out that they share")
        return cls(path, None, Checkpoints(path / CHECKPOINTS, keep))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the folder for the next run. Everything written is on the disk already."""
        if self._lock is not None:
            (self.path / HOLDER).unlink(missing_ok=True)
            self._lock.release()

    def log(self, record: dict[str, Any]) -> None:
        """Appends the JSON values of one step, an integer `step` among them, to metrics.jsonl."""
        line = _line_of_step(record)
        if self.writes:
            append_durably(self.path / METRICS, line)

    def samples(self, records: Iterable[dict[str, Any]]) -> None:
        """Appends prompts with their responses to samples.jsonl, each with an integer `step`."""
        lines = b"".join(map(_line_of_step, records))
        if self.writes:
            append_durably(self.path / SAMPLES, lines)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, replacing the one before it."""
        content = _pretty(summary)
        if self.writes:
            write_atomically(self.path / SUMMARY, content)

    def truncate_after(self, step: int) -> int:
        """Drops the lines of metrics.jsonl and samples.jsonl about steps after `step`, and a torn last line.

        Returns how many. To be called once after `resume`: with the step of the restored checkpoint, or -1
        where there is none. Raises RunFolderError for a damaged line.
        """
        dropped = 0
        for path in (self.path / METRICS, self.path / SAMPLES):
            if not self.writes or not path.exists():
                continue
            content = path.read_bytes()
            lines = content.splitlines(keepends=True)
            kept = [line for number, line in _whole_lines(path, lines) if _step_of(path, number, line) <= step]
            if len(kept) < len(lines):
                write_atomically(path, b"".join(kept))
            dropped += len(lines) - len(kept)
        return dropped


def check_format(record: dict[str, Any], path: Path) -> None:
    """Raises RunFolderError for the experiment.json or study.json of a folder that another version has written."""
    written = record.get("format", 1)
    if written != FORMAT:
        raise RunFolderError(
            f"{path} is in record format {written}; this version of rl_llm reads format {FORMAT}. Finish or export it "
            f"with the version that began it (commit {record.get('commit') or 'unknown'}), or start again in another "
            "--out."
        )


def _take_lock(path: Path) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(path / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        try:
            holder = json.loads((path / HOLDER).read_bytes())
            who = f"process {holder['process']} on host {holder['host']}"
        except (OSError, ValueError):  # the holder has taken the lock but not yet said who it is
            who = "another process"
        raise RunFolderError(f"{path} is in use by {who}: let it end, or choose another --out") from error
    return lock


def _identity(experiment: dict[str, Any]) -> dict[str, Any]:
    missing = [field for field in IDENTITY if field not in experiment]
    if missing:
        raise ValueError(f"experiment has no {' and no '.join(missing)}: the run could not be told from others")
    return {field: experiment[field] for field in IDENTITY}


def _line_of_step(record: dict[str, Any]) -> bytes:
    if type(record.get("step")) is not int:
        raise ValueError(f"a record of a run must have an integer step, not {record.get('step')!r}: {record}")
    return json_line(record)


def _whole_lines(path: Path, lines: list[bytes]) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(lines, start=1) if line.endswith(b"\n"))


def _step_of(path: Path, number: int, line: bytes) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path}, line {number} is damaged, so it cannot be resumed: {error}") from error


def _pretty(value: dict[str, Any]) -> bytes:
    return json.dumps(strict(value), allow_nan=False, indent=2).encode() + b"\n"
