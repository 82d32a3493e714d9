"""The lock of a folder: one process writes it at a time, and makes sure before every write that it is the same folder.

A folder that is moved, deleted or replaced takes its lock file along. Its name then leads to nothing, or to another
lock file, and the process that held the first one writes no more.
"""

import json
import os
import socket
from pathlib import Path

from rl_llm.runs.files import json_line, write_atomically

LOCK, HOLDER = ".lock", ".holder.json"


class FolderInUseError(Exception):
    """Another process holds the lock. The message names that process."""


class FolderLostError(Exception):
    """A folder in use was moved, deleted or replaced. The message names it."""


class FolderLock:
    """The lock of a folder, held until `release`; the operating system frees the lock of a killed process.

    Raises FolderInUseError if another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout

        self.folder = folder
        self._lock = FileLock(folder / LOCK, thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise FolderInUseError(_holder(folder)) from error
        self._held = _file_identity(folder / LOCK)  # no other file can have it as long as this one is open

    def sign(self) -> None:
        """Write the name of this process, which a refused process shows."""
        write_atomically(self.folder / HOLDER, json_line({"process": os.getpid(), "host": socket.gethostname()}))

    def check(self) -> None:
        """Raise FolderLostError unless the folder is the one that was locked. Call it before every write."""
        try:
            if _file_identity(self.folder / LOCK) == self._held:
                return
            what, then = "is another folder now: it was replaced", "resume it where the folder is now, if it still exists"
        except OSError as error:
            what, then = "is gone: it was moved or deleted", "resume it where the folder is now, if it still exists"
            if self.folder.is_dir():
                what, then = f"has lost its {LOCK} ({error.strerror}), so another run could write there", "resume it"
        raise FolderLostError(f"{self.folder} {what}. The run ends here and writes nothing more; {then}")

    def release(self) -> None:
        """Free the folder for the next process."""
        try:
            self.check()
            (self.folder / HOLDER).unlink(missing_ok=True)
        except FolderLostError:  # the holder's name there, if any, is that of another process
            pass
        finally:
            self._lock.release()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_bytes())
        return f"process {holder['process']} on host {holder['host']}"
    except (OSError, ValueError, TypeError, KeyError):  # the holder has the lock but has not written its name yet
        return "another process"


def _file_identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
