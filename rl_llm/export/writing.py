"""Write a model as a Hugging Face folder, on a disk or in a bucket: each tensor is gathered, written and dropped."""

import functools
import json
import operator
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from rl_llm.export.config_json import config_to_json
from rl_llm.model.config import ModelConfig
from rl_llm.model.huggingface import reading, tensor_files
from rl_llm.model.huggingface.config_json import config_from_json
from rl_llm.model.huggingface.reading import CONFIG, is_huggingface
from rl_llm.model.huggingface.tensor_files import DTYPES, INDEX, NAMES, SINGLE, WeightsError
from rl_llm.model.lora import merge_adapters
from rl_llm.model.weights import Weight, weight_table

ALIGNMENT = 8  # of the first tensor in a file, in bytes
LARGEST_FILE = 5_000_000_000  # bytes; larger models are written in several files
GENERATION = "generation_config.json"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json"),
)
TERMS = re.compile(r"(licen|notice|use_policy|copying)([^.]*|.*\.(txt|md|rst|html|pdf|\d+))", re.IGNORECASE)
Dtype = Literal["float32", "bfloat16", "float16"]
Slice = tuple[str, Weight, tuple[int, ...]]  # a weight by its path, and an index along its stacked axes


def files_beside_weights(folder: epath.PathLike) -> dict[str, bytes]:
    """The files that describe a model to its users, by name: tokenizer, chat template, generation config, licence.

    Anything else in a folder may hold or point to other weights: optimizer states, other formats, adapters, an index.
    """
    files = sorted(file for file in epath.Path(folder).iterdir() if file.is_file())
    wanted = [file for file in files if file.name in (GENERATION, *TOKENIZER) or TERMS.fullmatch(file.name)]
    return {file.name: file.read_bytes() for file in wanted}


def save(
    config: ModelConfig,
    params: dict,
    folder: epath.PathLike,
    dtype: Dtype = "bfloat16",
    like: epath.PathLike | None = None,
    max_positions: int | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model as a folder that Hugging Face transformers loads, one tensor in memory at a time.

    Adapters are merged into the weights first. `max_positions`, the longest text in tokens that the model is meant
    for, becomes max_position_embeddings. With `like`, the folder that the model came from, the weights are in the same
    files, tensors, dtypes and order, and config.json is copied. `beside` has the other files (default: the
    `files_beside_weights` of `like`), so an unchanged model is written back byte for byte. config.json is written last:
    a folder without it was cut off.

    Raises ValueError if the folder has files already, or the model does not fit its family or `like`.
    """
    config, params = merge_adapters(config, params)
    writer = make_writer(config, params, folder, dtype)
    if like is not None and max_positions is not None:
        raise ValueError(f"max_positions={max_positions} cannot act: config.json is that of {like}")
    settings = config_to_json(config, dtype, max_positions)
    if (found := config_from_json(settings, "the model's config.json")) != config.stored:
        raise ValueError(f"{config} is not a model of the family {config.family!r}: its files would be read as {found}")
    if like is None:
        writer.write()
        written = json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n"
    else:
        check_same_model(config, like, "write it without `like`")
        writer.write_like(epath.Path(like))
        beside = files_beside_weights(like) if beside is None else beside
        written = (epath.Path(like) / CONFIG).read_bytes()
    for name, content in {**(beside or {}), CONFIG: written}.items():
        (writer.folder / name).write_bytes(content)


def check_same_model(config: ModelConfig, folder: epath.PathLike, remedy: str) -> None:
    """Raise ValueError unless a folder has a model of this shape and nothing else."""
    if reading.is_multimodal(folder):
        raise ValueError(f"{folder} is a vision-language model, and this is its text model only: {remedy}")
    if (other := reading.read_config(folder)) != config.stored:
        raise ValueError(f"the model {config.stored} is not that of {folder}, which is {other}")


def make_writer(config: ModelConfig, params: dict, folder: epath.PathLike, dtype: Dtype) -> "Writer":
    """The writer of a model and its adapters. Raises ValueError if the folder has files already."""
    folder = epath.Path(folder)
    if folder.exists() and any(folder.iterdir()):
        cut_off = "" if is_huggingface(folder) else f" (without {CONFIG}: if an export was cut off there, remove it)"
        raise ValueError(f"{folder} exists and is not empty{cut_off}: choose another folder")
    if dtype not in NAMES:
        raise ValueError(f"dtype={dtype!r} is not implemented; expected {', '.join(NAMES)}")
    table = weight_table(config)
    tensors = {name: (path, weight, index) for path, weight in table.items() for name, index in reading.slices(weight)}
    return Writer(config, traverse_util.flatten_dict(params, sep="/"), tensors, folder, NAMES[dtype])


@dataclass(frozen=True)
class Writer:
    """Writes the tensors of a model into files of a folder. `tensors` has the slice of a weight in each, by name."""

    config: ModelConfig
    params: dict[str, jax.Array]
    tensors: dict[str, Slice]
    folder: epath.Path
    dtype: str

    def value(self, name: str) -> np.ndarray:
        """A tensor by name, on the host, gathered from all devices."""
        path, weight, index = self.tensors[name]
        whole = self.params[path]
        values = np.asarray(_taker(whole.sharding)(whole, index))
        if weight.inputs:
            values = values.reshape(prod(values.shape[: weight.inputs]), -1).T
        return values.reshape(reading.stored_shape(weight))

    def write(self) -> None:
        """Write all tensors in one file, or in several with an index."""
        sizes = {name: prod(self._shape(name)) * DTYPES[self.dtype].itemsize for name in sorted(self.tensors)}
        files: list[list[str]] = [[]]
        filled = 0
        for name, size in sizes.items():
            if files[-1] and filled + size > LARGEST_FILE:
                files.append([])
                filled = 0
            files[-1].append(name)
            filled += size
        if len(files) == 1:
            self.write_file(SINGLE, files[0])
            return
        listed: dict[str, str] = {}
        for number, names in enumerate(files, 1):
            file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            self.write_file(file, names)
            listed |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": listed}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _shape(self, name: str) -> tuple[int, ...]:
        return reading.stored_shape(self.tensors[name][1])

    def write_file(self, file: str, names: Sequence[str]) -> None:
        """Write one file of the tensors with these sorted names."""
        self.folder.mkdir(parents=True, exist_ok=True)
        header = make_header([(name, self._shape(name)) for name in names], self.dtype)
        write_file(self.folder / file, header, [(name, self.dtype) for name in names], self.value)

    def write_like(self, like: epath.Path) -> None:
        """Write the tensors in the files of another folder of this model, with their index."""
        stored = tensor_files.read_headers(like)
        reading.match_tensors(like, self.config, stored)
        self.folder.mkdir(parents=True, exist_ok=True)
        tied = {"lm_head.weight": self.tensors["model.embed_tokens.weight"]} if self.config.tied_embeddings else {}
        writer = replace(self, tensors=tied | self.tensors)

        def value(name: str) -> np.ndarray:
            return writer.value(name) if name in writer.tensors else stored[name].read()  # a buffer, as it is

        for name, file in tensor_files.weight_files(like).items():
            tensors = [(tensor.name, tensor.dtype) for tensor in tensor_files.tensors_in(file)]
            write_file(self.folder / name, tensor_files.header_bytes(file), tensors, value)
        if (like / INDEX).exists():
            (self.folder / INDEX).write_bytes((like / INDEX).read_bytes())


def make_header(tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: str) -> bytes:
    """The bytes before tensors (name, shape) of one dtype, which follow in the order of their names."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(tensors):
        start, end = end, end + prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def write_file(
    file: epath.Path, header: bytes, tensors: Sequence[tuple[str, str]], value: Callable[[str], np.ndarray]
) -> None:
    """Write a header and tensors (name, dtype) in their order, with one value in memory at a time.

    Raises WeightsError for a value that is not finite in its dtype.
    """
    with file.open("wb") as stream:
        stream.write(header)
        for name, dtype in tensors:
            values = value(name)
            with np.errstate(over="ignore"):  # refused below, by name
                stored = np.ascontiguousarray(values).astype(DTYPES[dtype])
            if not np.isfinite(stored.astype(np.float32)).all():
                reason = f"does not fit into {dtype}" if np.isfinite(values).all() else "is not finite"
                raise WeightsError(f"{name} {reason}: {file} is incomplete and cannot be loaded")
            stream.write(stored.tobytes())


@functools.cache
def _taker(sharding: NamedSharding) -> Any:
    """Compile the extraction of a weight's slice at an index along its leading axes, replicated on every device."""
    replicated = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
    # One axis after the other: with both indices at once, XLA gathers the experts of all layers.
    return jax.jit(lambda whole, index: functools.reduce(operator.getitem, index, whole), out_shardings=replicated)
