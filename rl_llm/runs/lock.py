"""The lock of a folder: one process writes it at a time, and makes sure before every write that it is the same folder.

A folder that is moved, deleted or replaced takes its lock file along. Its name then leads to nothing, or to another
lock file, and the process that held the first one writes no more.
"""

import json
import os
import socket
from contextlib import suppress
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
        self._held = (folder / LOCK).stat()  # its device and inode are no other file's as long as it is open
        self._signed = False

    def sign(self) -> None:
        """Write the name of this process, which a refused process shows."""
        self._signed = True
        write_atomically(self.folder / HOLDER, json_line({"process": os.getpid(), "host": socket.gethostname()}))

    def check(self) -> None:
        """Raise FolderLostError unless the folder is the one that was locked. Call it before every write."""
        then = "resume it where the folder is now, if it still exists"
        try:
            if os.path.samestat((self.folder / LOCK).stat(), self._held):
                return
            what = "is another folder now: it was replaced"
        except OSError as error:
            what = "is gone: it was moved or deleted"
            if self.folder.is_dir():
                what, then = f"has lost its {LOCK} ({error.strerror}), so another run could write there", "resume it"
        raise FolderLostError(f"{self.folder} {what}. The run ends here and writes nothing more; {then}")

    def release(self) -> None:
        """Free the folder for the next process."""
        with suppress(FolderLostError, OSError):  # a name in a folder in its place is that of another process
            self.check()
            if self._signed:
                (self.folder / HOLDER).unlink(missing_ok=True)
        self._lock.release()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_bytes())
        return f"process {holder['process']} on host {holder['host']}"
    except (OSError, ValueError, TypeError, KeyError):  # the holder has the lock but has not written its name yet
        return "another process"
