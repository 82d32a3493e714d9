"""Tensors in safetensors files: 8 bytes of header length, a JSON header, raw little-endian bytes. No pickle, ever.

The format's own library maps whole files into memory and writes whole models; here one tensor at a time is read and
written, from a disk or a bucket alike. What is written is what that library would write, byte for byte.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
ALIGNMENT = 8
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class WeightsError(ValueError):
    """Files that are no model, or not this one. The message names the file, the tensor, and what is wrong with it."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet: `dtype` is the format's name of it, `start` the byte it begins at."""

    file: epath.Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> np.ndarray:
        """Its values in the type they are stored in. Raises WeightsError where the file ends before they do, and where
        some are not finite.
        """
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            content = stream.read(self.size)
        if len(content) != self.size:
            raise WeightsError(f"{self.file} ends in the middle of {self.name}: copy the file again")
        values = np.frombuffer(content, DTYPES[self.dtype]).reshape(self.shape)
        if count := values.size - np.count_nonzero(np.isfinite(values)):
            raise WeightsError(
                f"{self.name} in {self.file}: {count} of {values.size} values are NaN or infinite, and nothing can be "
                "computed with them: copy the file again, or take weights from before they were spoilt"
            )
        return values


def files_of(folder: epath.Path) -> dict[str, epath.Path]:
    """The safetensors files of a Hugging Face folder by name: those that its index lists, or the only one."""
    if (folder / INDEX).exists():
        names = sorted(set(_weight_map(folder).values()))
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
    """Tensor -> file, as the index of a folder has it. Raises WeightsError for one that is none, or leads elsewhere."""
    try:
        listed = json.loads((folder / INDEX).read_text())["weight_map"]
        good = bool(listed) and all(isinstance(x, str) for pair in listed.items() for x in pair)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{folder / INDEX} is damaged: it has no weight_map ({error})") from error
    if not good:
        raise WeightsError(f"{folder / INDEX} is damaged: its weight_map must name a file for each tensor")
    away = sorted({name for name in listed.values() if not name or name in (".", "..") or set(name) & set("/\\")})
    if away:
        raise WeightsError(f"{folder / INDEX} leads out of the folder: {_few([repr(name) for name in away])}")
    return dict(listed)


def read_headers(folder: epath.Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by name. Raises WeightsError for damaged files, and for an index that is not theirs."""
    tensors: dict[str, StoredTensor] = {}
    for file in files_of(folder).values():
        for tensor in stored_tensors(file):
            if tensor.name in tensors:
                raise WeightsError(f"{tensor.name} is in {tensors[tensor.name].file} and in {file}")
            tensors[tensor.name] = tensor
    if (folder / INDEX).exists():
        listed = _weight_map(folder)
        wrong = sorted(n for n in {*listed, *tensors} if n not in tensors or listed.get(n) != tensors[n].file.name)
        if wrong:
            raise WeightsError(f"{folder / INDEX} and its files do not agree about {_few(wrong)}")
    return tensors


def raw_header(file: epath.Path) -> bytes:
    """The bytes of a file before its tensors."""
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else LONGEST_HEADER + 1
        header = stream.read(length) if length <= LONGEST_HEADER else b""
    if len(header) != length:
        raise WeightsError(f"{file} is no safetensors file, or was cut off: its header is not whole")
    return bytes(first + header)


def stored_tensors(file: epath.Path) -> list[StoredTensor]:
    """The tensors of one file in the order of their bytes."""
    raw = raw_header(file)
    try:
        header = json.loads(raw[8:], object_pairs_hook=_without_repetition)
        tensors = [_stored(file, name, of, len(raw)) for name, of in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{file}: its header is damaged: {error}") from error
    tensors.sort(key=lambda tensor: tensor.start)
    end = len(raw)
    for tensor in tensors:
        if tensor.start != end:
            raise WeightsError(f"{file}: {tensor.name} begins at byte {tensor.start}, where {end} is expected")
        end += tensor.size
    size = file.stat().length
    if size != end:
        raise WeightsError(f"{file} has {size} bytes, but its header says {end}: it was cut off, or changed")
    return tensors


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return dict(pairs)


def _stored(file: epath.Path, name: str, of: Mapping[str, Any], offset: int) -> StoredTensor:
    start, end = of["data_offsets"]
    if not all(isinstance(x, int) and x >= 0 for x in (start, end, *of["shape"])):
        raise ValueError(f"{name} has the shape {of['shape']} at {of['data_offsets']}")
    tensor = StoredTensor(file, name, of["dtype"], tuple(of["shape"]), offset + start, end - start)
    if tensor.size != math.prod(tensor.shape) * WIDTHS.get(tensor.dtype, 1):
        raise ValueError(f"{name} {tensor.shape} of {tensor.dtype} cannot have {tensor.size} bytes")
    return tensor


def header_of(tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: str) -> bytes:
    """The bytes before tensors of one dtype that are written in the order of their names."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(tensors):
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def write_file(
    file: epath.Path, header: bytes, tensors: Sequence[tuple[str, str]], value: Callable[[str], np.ndarray]
) -> None:
    """A file of this header and these (name, dtype) in their order, one value in memory at a time. Raises WeightsError
    for a value that is not finite there.
    """
    with file.open("wb") as stream:
        stream.write(header)
        for name, dtype in tensors:
            values = value(name)
            with np.errstate(over="ignore"):  # said below, by its name
                stored = np.ascontiguousarray(values).astype(DTYPES[dtype])
            if not np.isfinite(stored.astype(np.float32)).all():
                reason = f"does not fit into {dtype}" if np.isfinite(values).all() else "is not finite"
                raise WeightsError(f"{name} {reason}: nothing that could be loaded was written to {file}")
            stream.write(stored.tobytes())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
