"""Code that may run because a folder names it: what this user has run before.

A record can be written by anyone, so neither its paths nor its digests make code safe. `rl-llm train` and `ablate`
remember the place of the file that they were given, which stays the user's own when it is edited, and the digests of
all files that it ran. `--trust` remembers the digests of a received folder's files. Both are kept in the user's state,
in the folder `rl_llm/trusted` of XDG_STATE_HOME (by default ~/.local/state).
"""

import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rl_llm.config.loading import ExperimentError, file_of, find_file
from rl_llm.config.source import PACKAGE, files_of, sha256

_EXPERIMENTS = PACKAGE.parent / "experiments"  # of this repository, as much ours as the package
_OURS = (_EXPERIMENTS, _EXPERIMENTS / "paper")


class UntrustedCodeError(ExperimentError):
    """A folder needs code that this user has not run yet. The message shows each file with its digest."""


def remember(contents: Iterable[bytes | None], path: Path | None = None) -> None:
    """Remember files, and a place, as code that this user runs. Raises OSError if the user's state is not writable."""
    store = _store()
    for content in [*filter(None, contents), *([_place(path)] if path else [])]:
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        (store / sha256(content)).touch()


def untrusted_files(spec: str) -> dict[Path, bytes]:
    """Files that importing the experiment or study of `spec` would run, and that this user has never run."""
    store, path = _store(), find_file(file_of(spec))
    if path.parent in _OURS or (store / sha256(_place(path))).exists():
        return {}
    return {path: content for path, content in files_of(spec).items() if not (store / sha256(content)).exists()}


def check_trusted(folder: Path | str, spec: str) -> None:
    """Raise UntrustedCodeError unless this user has run all code of the experiment or study in a folder.

    Compiled copies beside the files are removed: they would run instead of the text that was compared.
    """
    if not Path(file_of(spec)).is_file():
        raise UntrustedCodeError(
            f"{folder} needs the file {spec}, which is not here; {folder}/code has a copy: read it, and put it there"
        )
    if unknown := untrusted_files(spec):
        raise UntrustedCodeError(
            f"{folder} needs code that was never run here:\n{listed(unknown)}\nIt would run with all your rights. Read "
            "it; then repeat the command with --trust, which remembers these digests (for a start of a study: "
            "rl-llm evaluate FOLDER --trust)"
        )
    for path in files_of(spec):
        if path.suffix == ".py":
            Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def listed(files: Mapping[Path, bytes]) -> str:
    """A line for each file with its SHA-256."""
    return "\n".join(f"  sha256 {sha256(content)}  {path}" for path, content in files.items())


def _place(path: Path) -> bytes:
    return b"path\0" + os.fsencode(path)


def _store() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "rl_llm" / "trusted"
