"""Seals: a file in a folder with the SHA-256 of every other file there, and of itself."""

import hashlib
import json
from pathlib import Path
from typing import Any

from rl_llm.runs.files import canonical_json, write_atomically

SEAL = "seal.json"


def seal_folder(folder: Path, content: dict[str, Any]) -> None:
    """Seal the files of a folder as they are. content: JSON values to seal along; `step` is the folder's final name."""
    files = {name: _file_sha256(folder / name) for name in _files(folder)}
    write_atomically(folder / SEAL, _sealed({**content, "files": files}))


def read_seal(folder: Path) -> dict[str, Any]:
    """Content of the seal of a folder without a defect."""
    return dict(json.loads((folder / SEAL).read_bytes()))


def intact_seal(folder: Path) -> dict[str, Any] | None:
    """Content of a seal that matches its own digest, without a look at the sealed files; None if it does not."""
    try:
        seal = read_seal(folder)
        own = {name: value for name, value in seal.items() if name != "sha256"}
        return seal if (folder / SEAL).read_bytes() == _sealed(own) and str(seal["step"]) == folder.name else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def defect(folder: Path) -> str | None:
    """Why a sealed folder is not good; None if its seal matches every byte."""
    try:
        return _mismatch(folder)
    except OSError as error:
        return f"cannot be read: {error}"


def _mismatch(folder: Path) -> str | None:
    if not (folder / SEAL).is_file():
        return f"has no {SEAL}: never finished, or damaged"
    content = (folder / SEAL).read_bytes()
    try:
        seal = json.loads(content)
        seal.pop("sha256")
        step, sealed = str(seal["step"]), set(seal["files"])
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return f"{SEAL} is damaged: not the JSON object that was written"
    if content != _sealed(seal):
        return f"{SEAL} is damaged: it does not match its own digest"
    if step != folder.name:
        return f"is the checkpoint of step {step} under another name"
    found = set(_files(folder)) - {SEAL}
    if found != sealed:
        missing, extra = sorted(sealed - found), sorted(found - sealed)
        return "; ".join([f"{name} is missing" for name in missing] + [f"{name} is unexpected" for name in extra])
    changed = sorted(name for name in sealed if _file_sha256(folder / name) != seal["files"][name])
    return "; ".join(f"{name} was changed after it was saved" for name in changed) or None


def _sealed(seal: dict[str, Any]) -> bytes:
    own_digest = hashlib.sha256(canonical_json(seal).encode()).hexdigest()
    return canonical_json({**seal, "sha256": own_digest}).encode() + b"\n"


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
