"""Write a model as a Hugging Face folder, on a disk or in a bucket: each tensor is gathered, written and dropped."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from rl_llm.model.config import ModelConfig
from rl_llm.model.huggingface import tensor_files
from rl_llm.model.huggingface.config_json import config_from_json, config_to_json
from rl_llm.model.huggingface.reading import (
    CONFIG,
    is_huggingface,
    is_multimodal,
    match_tensors,
    read_config,
    slices,
    stored_shape,
)
from rl_llm.model.huggingface.tensor_files import DTYPES, INDEX, NAMES, SINGLE
from rl_llm.model.lora import merge_adapters
from rl_llm.model.weights import Weight, weight_table

LARGEST_FILE = 5_000_000_000  # bytes; larger models are written in several files
GENERATION = "generation_config.json"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json"),
)
TERMS = ("licen", "notice", "use_policy", "copying")  # beginnings of names, in any case
Dtype = Literal["float32", "bfloat16", "float16"]
Slice = tuple[str, tuple[int, ...]]  # a weight's path, and an index along its stacked axes


def _to_stored(values: np.ndarray, weight: Weight) -> np.ndarray:
    """A slice of a weight in its stored shape."""
    if weight.inputs:
        values = values.reshape(prod(values.shape[: weight.inputs]), -1).T
    return values.reshape(stored_shape(weight))


def files_beside_weights(folder: epath.PathLike) -> dict[str, bytes]:
    """The files that describe a model to its users, by name: tokenizer, chat template, generation config, licence.

    Anything else in a folder may hold or point to other weights: optimizer states, other formats, adapters, an index.
    """
    files = sorted(file for file in epath.Path(folder).iterdir() if file.is_file())
    wanted = [file for file in files if file.name in (GENERATION, *TOKENIZER) or file.name.lower().startswith(TERMS)]
    return {file.name: file.read_bytes() for file in wanted}


def check_new(folder: epath.PathLike) -> epath.Path:
    """Raise ValueError if a folder has files already."""
    folder = epath.Path(folder)
    if folder.exists() and any(folder.iterdir()):
        cut_off = "" if is_huggingface(folder) else f" (without {CONFIG}: if an export was cut off there, remove it)"
        raise ValueError(f"{folder} exists and is not empty{cut_off}: choose another folder")
    return folder


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
    folder = check_new(folder)
    if like is not None and max_positions is not None:
        raise ValueError(f"max_positions={max_positions} cannot act: config.json is that of {like}")
    check_dtype(dtype)
    if like is not None and is_multimodal(like):
        raise ValueError(f"{like} is a vision-language model, and this is its text model only: write it without `like`")
    settings = config_to_json(config, dtype, max_positions)
    stored = config.stored
    if (found := config_from_json(settings, "the model's config.json")) != stored:
        raise ValueError(f"{config} is not a model of the family {config.family!r}: its files would be read as {found}")
    if like is not None and (other := read_config(like)) != stored:
        raise ValueError(f"the model {stored} is not that of {like}, which is {other}")
    folder.mkdir(parents=True, exist_ok=True)
    writer = make_writer(config, params, folder)
    if like is not None:
        writer.write_like(epath.Path(like))
        beside = files_beside_weights(like) if beside is None else beside
        written = (epath.Path(like) / CONFIG).read_bytes()
    else:
        writer.write(dtype)
        written = json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n"
    for name, content in {**(beside or {}), CONFIG: written}.items():
        (folder / name).write_bytes(content)


def check_dtype(dtype: str) -> None:
    """Raise ValueError for a dtype that weights are not written in."""
    if dtype not in NAMES:
        raise ValueError(f"dtype={dtype!r} is not implemented; expected {', '.join(NAMES)}")


def make_writer(config: ModelConfig, params: dict, folder: epath.Path) -> "Writer":
    """The writer of a model's tensors; adapters have tensors of their own."""
    tensors = {name: (path, i) for path, w in weight_table(config).items() for name, i in slices(w)}
    return Writer(config, traverse_util.flatten_dict(params, sep="/"), tensors, folder)


@dataclass(frozen=True)
class Writer:
    """Writes the tensors of a model into files of a folder. `tensors` has the slice of a weight in each, by name."""

    config: ModelConfig
    params: dict[str, jax.Array]
    tensors: dict[str, Slice]
    folder: epath.Path

    def value(self, name: str) -> np.ndarray:
        """A tensor by name, on the host, gathered from all devices."""
        path, index = self.tensors[name]
        weight = weight_table(self.config)[path]
        return _to_stored(np.asarray(_taker(self.params[path].sharding)(self.params[path], index)), weight)

    def write(self, dtype: Dtype) -> None:
        """Write all tensors in one file, or in several with an index."""
        files: list[list[str]] = [[]]
        total = filled = 0
        for name in sorted(self.tensors):
            size = prod(self._shape(name)) * DTYPES[NAMES[dtype]].itemsize
            if files[-1] and filled + size > LARGEST_FILE:
                files.append([])
                filled = 0
            files[-1].append(name)
            total, filled = total + size, filled + size
        names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
        names = [SINGLE] if len(files) == 1 else names
        for file, members in zip(names, files, strict=True):
            self.write_file(file, members, dtype)
        if len(files) > 1:
            listed = {name: file for file, members in zip(names, files, strict=True) for name in members}
            index = {"metadata": {"total_size": total}, "weight_map": listed}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _shape(self, name: str) -> tuple[int, ...]:
        return stored_shape(weight_table(self.config)[self.tensors[name][0]])

    def write_file(self, file: str, names: Sequence[str], dtype: Dtype) -> None:
        """Write one file of the tensors with these sorted names."""
        header = tensor_files.make_header([(name, self._shape(name)) for name in names], NAMES[dtype])
        tensor_files.write_file(self.folder / file, header, [(name, NAMES[dtype]) for name in names], self.value)

    def write_like(self, like: epath.Path) -> None:
        """Write the tensors in the files of another folder of this model, with their index."""
        match_tensors(like, self.config, tensor_files.read_headers(like))
        tied = {"lm_head.weight": self.tensors["model.embed_tokens.weight"]} if self.config.tied_embeddings else {}
        writer = replace(self, tensors=tied | self.tensors)
        for name, file in tensor_files.weight_files(like).items():
            tensors = [(tensor.name, tensor.dtype) for tensor in tensor_files.tensors_in(file)]
            tensor_files.write_file(self.folder / name, tensor_files.header_bytes(file), tensors, writer.value)
        if (like / INDEX).exists():
            (self.folder / INDEX).write_bytes((like / INDEX).read_bytes())


@functools.cache
def _taker(sharding: NamedSharding) -> Any:
    """Compile the extraction of a weight's slice at an index along its leading axes, replicated on every device."""

    def take(whole: jax.Array, index: tuple[int, ...]) -> jax.Array:
        for i in index:
            whole = jax.lax.dynamic_index_in_dim(whole, i, keepdims=False)
        return whole

    replicated = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
    return jax.jit(take, out_shardings=replicated)
