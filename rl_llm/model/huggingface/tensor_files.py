"""Safetensors files: 8 bytes of header length, a JSON header, raw little-endian bytes. No pickle, ever.

The format's own library maps whole files into memory and writes whole models. This module reads one tensor at a
time, on a disk or in a bucket; `rl_llm.export.writing` writes the same bytes as the library.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class WeightsError(ValueError):
    """Damaged files, or files of another model. The message names the file, the tensor and the problem."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet. `dtype` is the format's name for it; `start` and `size` are in bytes."""

    file: epath.Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> np.ndarray:
        """Its values, in the stored dtype. Raises WeightsError if the file is cut off or a value is not finite."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            content = stream.read(self.size)
        if len(content) != self.size:
            raise WeightsError(f"{self.file} ends in the middle of {self.name}: copy the file again")
        values = np.frombuffer(content, DTYPES[self.dtype]).reshape(self.shape)
        if count := values.size - np.count_nonzero(np.isfinite(values)):
            raise WeightsError(
                f"{self.name} in {self.file}: {count} of {values.size} values are NaN or infinite: copy the file "
                "again, or use an earlier checkpoint"
            )
        return values


def weight_files(folder: epath.Path) -> dict[str, epath.Path]:
    """Safetensors files of a Hugging Face folder by name: those its index lists, or the only one."""
    if (folder / INDEX).exists():
        names = sorted(set(_weight_map(folder).values()))
        if (folder / SINGLE).exists() and SINGLE not in names:
            two = f"{SINGLE}, and the files in {INDEX}, {first_few(names)}"
            raise WeightsError(f"{folder} has two sets of weights: {two}. Remove the set that is not the model")
    elif (folder / SINGLE).exists():
        names = [SINGLE]
    else:
        raise WeightsError(
            f"{folder} has neither {SINGLE} nor {INDEX}: weights are read from safetensors files only; convert others "
            "with save_pretrained(folder, safe_serialization=True)"
        )
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise WeightsError(f"{folder} lacks {', '.join(missing)}, which {INDEX} lists: download the whole folder")
    return {name: folder / name for name in names}


def _weight_map(folder: epath.Path) -> dict[str, str]:
    """Tensor -> file, from the index of a folder. Raises WeightsError if it is damaged or leads out of the folder."""
    try:
        listed = json.loads((folder / INDEX).read_bytes())["weight_map"]
        good = bool(listed) and all(isinstance(x, str) for pair in listed.items() for x in pair)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{folder / INDEX} is damaged: it has no weight_map ({error})") from error
    if not good:
        raise WeightsError(f"{folder / INDEX} is damaged: its weight_map must name a file for each tensor")
    outside = sorted({name for name in listed.values() if not name or name in (".", "..") or set(name) & set("/\\")})
    if outside:
        raise WeightsError(f"{folder / INDEX} leads out of the folder: {first_few([repr(name) for name in outside])}")
    return dict(listed)


def read_headers(folder: epath.Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by name. Raises WeightsError for damaged files and an index that contradicts them."""
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder).values():
        for tensor in tensors_in(file):
            if tensor.name in tensors:
                raise WeightsError(f"{tensor.name} is in {tensors[tensor.name].file} and in {file}")
            tensors[tensor.name] = tensor
    if (folder / INDEX).exists():
        listed = _weight_map(folder)
        wrong = sorted(n for n in {*listed, *tensors} if n not in tensors or listed.get(n) != tensors[n].file.name)
        if wrong:
            raise WeightsError(f"{folder / INDEX} and its files disagree about {first_few(wrong)}")
    return tensors


def header_bytes(file: epath.Path) -> bytes:
    """The bytes of a file before its tensors."""
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else LONGEST_HEADER + 1
        header = stream.read(length) if length <= LONGEST_HEADER else b""
    if first == b"version ":
        raise WeightsError(f"{file} is a pointer of git-lfs, without the weights: run `git lfs pull` in its folder")
    if len(header) != length:
        raise WeightsError(f"{file} is not a safetensors file, or was cut off: its header is incomplete")
    return bytes(first + header)


def tensors_in(file: epath.Path) -> list[StoredTensor]:
    """The tensors of one file, in the order of their bytes."""
    raw = header_bytes(file)
    try:
        header = json.loads(raw[8:], object_pairs_hook=_unique_names)
        tensors = [
            _parse_entry(file, name, entry, len(raw)) for name, entry in header.items() if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{file}: its header is damaged: {error}") from error
    tensors.sort(key=lambda tensor: tensor.start)
    end = len(raw)
    for tensor in tensors:
        if tensor.start != end:
            raise WeightsError(f"{file}: {tensor.name} begins at byte {tensor.start}; expected {end}")
        end += tensor.size
    size = file.stat().length
    if size != end:
        raise WeightsError(f"{file} has {size} bytes, but its header says {end}: it was cut off or changed")
    return tensors


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} appears twice")
    return dict(pairs)


def _parse_entry(file: epath.Path, name: str, entry: Mapping[str, Any], offset: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    if not all(isinstance(x, int) and x >= 0 for x in (start, end, *entry["shape"])):
        raise ValueError(f"{name} has the shape {entry['shape']} at {entry['data_offsets']}")
    tensor = StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), offset + start, end - start)
    if tensor.size != math.prod(tensor.shape) * WIDTHS.get(tensor.dtype, 1):
        raise ValueError(f"{name} {tensor.shape} of {tensor.dtype} cannot have {tensor.size} bytes")
    return tensor


def first_few(items: Sequence[str], limit: int = 4, separator: str = ", ") -> str:
    """The first items as text, and the number of the others."""
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return separator.join([*items[:limit], *more])
