"""The lock of a study's folder: one command at a time writes into it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rl_llm.runs.lock import LOCK, FolderInUseError, FolderLock
from rl_llm.studies.folder import REGISTERED, StudyFolderError, check_holds_no_other


@contextmanager
def lock_study(out: Path) -> Iterator[FolderLock]:
    """Hold the lock of a study's folder, which is made if there is none. If nothing is registered, it goes again.

    The operating system frees the lock of a killed process. Raises StudyFolderError naming the process that holds it,
    or if the folder holds something else, which is left as it is.
    """
    check_holds_no_other(out)
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(out)
    except FolderInUseError as error:
        raise StudyFolderError(f"{out} is in use by {error}; wait for it to end, or choose another --out") from error
    try:
        lock.sign()
        yield lock
    finally:
        lock.release()
        if not (out / REGISTERED).exists():  # refused
            (out / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                if new:
                    out.rmdir()
