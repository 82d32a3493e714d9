"""Files that survive a kill: atomic replacement, whole-line appends, strict JSON.

JSON has no NaN and no infinity. They are written as the strings "nan", "inf" and "-inf", unlike missing values.
"""

import json
import math
import os
from pathlib import Path
from typing import Any


def strict(value: Any) -> Any:
    """Replace every non-finite float in `value`, at any depth, by its name as a string."""
    if isinstance(value, dict):
        return {key: strict(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [strict(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def json_line(record: dict[str, Any]) -> bytes:
    """One JSON object on one line, keys in the given order. Raises TypeError for values that are not JSON."""
    return json.dumps(strict(record), allow_nan=False).encode() + b"\n"


def canonical_json(value: Any) -> str:
    """The canonical JSON of `value` for digests: sorted keys, no spaces, strict floats."""
    return json.dumps(strict(value), allow_nan=False, sort_keys=True, separators=(",", ":"))


def append_durably(path: Path, lines: bytes) -> None:
    """Append whole lines and wait until they are on disk; a kill can only tear the last line."""
    is_new = not path.exists()
    with path.open("ab") as stream:
        stream.write(lines)
        stream.flush()
        os.fsync(stream.fileno())
    if is_new:
        synchronize_folder(path.parent)


def truncate(path: Path, length: int) -> None:
    """Drop the bytes of a file after the first `length` ones, and wait until that is on disk."""
    with path.open("rb+") as stream:
        stream.truncate(length)
        os.fsync(stream.fileno())


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object in a text. Raises ValueError for anything else."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, not {value!r:.40}")
    return value


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file without an incomplete last line. Raises ValueError naming a damaged line."""
    content = path.read_bytes()
    records = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            records.append(json_object(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
    return records


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` atomically: a kill leaves the old file or the new one, never a part."""
    temporary = temporary_path(path)
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    synchronize_folder(path.parent)


def temporary_path(path: Path) -> Path:
    """The file in which `write_atomically` prepares `path`. A kill can leave it behind; the next write replaces it."""
    return path.with_name(f".{path.name}.tmp")


def synchronize_folder(folder: Path) -> None:
    """Wait until creations, renames and removals inside `folder` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
