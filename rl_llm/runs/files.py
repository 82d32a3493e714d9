"""Files that survive a kill: atomic replacement, whole-line appends, strict JSON.

JSON has no NaN and no infinity, and many readers refuse Python's spelling of them, so such floats are written
as the strings "nan", "inf" and "-inf": visible, valid everywhere, and never mistaken for a missing value.
"""

import json
import math
import os
from pathlib import Path
from typing import Any


def strict(value: Any) -> Any:
    """`value` with every non-finite float, at any depth, as the string that names it."""
    if isinstance(value, dict):
        return {key: strict(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [strict(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def json_line(record: dict[str, Any]) -> bytes:
    """One JSON object on one line, keys in the order given. Raises TypeError for what JSON does not know."""
    return json.dumps(strict(record), allow_nan=False).encode() + b"\n"


def canonical_json(value: Any) -> str:
    """The one spelling of `value` that digests are taken over: sorted keys, no spaces, strict floats."""
    return json.dumps(strict(value), allow_nan=False, sort_keys=True, separators=(",", ":"))


def append_durably(path: Path, lines: bytes) -> None:
    """Appends whole lines and waits until they are on the disk: a kill can only tear the last line."""
    is_new = not path.exists()
    with path.open("ab") as stream:
        stream.write(lines)
        stream.flush()
        os.fsync(stream.fileno())
    if is_new:
        synchronize_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` in one step: a kill at any moment leaves the old file or the new one, never a part."""
    temporary = temporary_of(path)
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    synchronize_folder(path.parent)


def temporary_of(path: Path) -> Path:
    """Where `write_atomically` prepares `path`. A kill can leave it behind; the next write replaces it."""
    return path.with_name(f".{path.name}.tmp")


def synchronize_folder(folder: Path) -> None:
    """Waits until creations, renames and removals inside `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
