"""Models to Hugging Face folders, on a disk or in a bucket: one tensor at a time is gathered, written and forgotten."""

import functools
import json
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from rl_llm.model.config import ModelConfig
from rl_llm.model.huggingface.config import config_from_json
from rl_llm.model.huggingface.config_writing import config_to_json
from rl_llm.model.huggingface.reading import CONFIG, checked, is_huggingface, is_part, read_config, slices, stored_shape
from rl_llm.model.huggingface.tensor_files import (
    INDEX,
    NAMES,
    SINGLE,
    files_of,
    header_of,
    raw_header,
    read_headers,
    stored_tensors,
    write_file,
)
from rl_llm.model.lora import merge_adapters
from rl_llm.model.weights import Weight, weight_table

LARGEST_FILE = 5_000_000_000  # bytes; a model is written in several files beyond that
Dtype = Literal["float32", "bfloat16", "float16"]


class Slice(NamedTuple):
    """Where a stored tensor belongs: a weight of the table, and the index along its stacked axes."""

    path: str
    at: tuple[int, ...]


def _theirs(values: np.ndarray, weight: Weight) -> np.ndarray:
    """A slice of the weight as a folder has it."""
    if not weight.inputs:
        return values.reshape(stored_shape(weight))
    outputs, inputs = stored_shape(weight)
    return values.reshape(inputs, outputs).T


def save(
    config: ModelConfig,
    params: dict,
    folder: epath.PathLike,
    dtype: Dtype = "bfloat16",
    like: epath.PathLike | None = None,
    positions: int | None = None,
) -> None:
    """Write a model as a folder that Hugging Face transformers loads, one tensor in memory at a time. Adapters are
    merged into the weights first. `positions`, the longest text in tokens that it is meant for, is its
    max_position_embeddings.

    With `like`, the folder that it came from, the files are those of that folder: the same names, tensors, dtypes and
    order in each, and all that is not weights (config, tokenizer, licence) copied, so that a model which was not
    changed is written back byte for byte. config.json is written last: what was cut off is no model. Raises
    ValueError where the folder is there already, or where the model is not that of its family or of `like`.
    """
    config, params = merge_adapters(config, params)
    folder = epath.Path(folder)
    if folder.exists() and any(folder.iterdir()):
        cut_off = "" if is_huggingface(folder) else f" (it has no {CONFIG}: if an export was cut off there, remove it)"
        raise ValueError(f"{folder} is there already, and not empty{cut_off}: choose another folder")
    if like is not None and positions is not None:
        raise ValueError(f"positions={positions} cannot act: config.json is that of {like}")
    if dtype not in NAMES:
        raise ValueError(f"dtype={dtype!r}: weights are written as {', '.join(NAMES)}")
    if like is not None and is_part(like):
        raise ValueError(f"{like} holds more than this model, which is its text part: write it as a model of its own")
    settings = config_to_json(config, dtype, positions)
    ours = config.stored
    if (read := config_from_json(settings, "the model's")) != ours:
        raise ValueError(f"{config} is no model of the family {config.family!r}: its files would be read as {read}")
    if like is not None and (other := read_config(like)) != ours:
        raise ValueError(f"the model {ours} is not that of {like}, which is {other}")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: Slice(path, i) for path, w in weight_table(config).items() for name, i in slices(w)}
    writer = _Writer(config, traverse_util.flatten_dict(params, sep="/"), tensors, folder)
    if like is not None:
        writer.write_like(epath.Path(like))
    else:
        writer.write(dtype)
        (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class _Writer:
    config: ModelConfig
    params: dict[str, jax.Array]
    tensors: dict[str, Slice]
    folder: epath.Path

    def value(self, name: str) -> np.ndarray:
        """A tensor by its name, on the host; gathered from all devices."""
        path, index = self.tensors[name]
        weight = weight_table(self.config)[path]
        return _theirs(np.asarray(_taker(self.params[path].sharding)(self.params[path], index)), weight)

    def write(self, dtype: Dtype) -> None:
        table, stored = weight_table(self.config), NAMES[dtype]
        shapes = {name: stored_shape(table[at.path]) for name, at in sorted(self.tensors.items())}
        files: list[dict[str, tuple[int, ...]]] = [{}]
        size = 0
        for name, shape in shapes.items():
            own = prod(shape) * (4 if stored == "F32" else 2)
            if files[-1] and size + own > LARGEST_FILE:
                files.append({})
                size = 0
            files[-1][name], size = shape, size + own
        names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
        names = [SINGLE] if len(files) == 1 else names
        for name, part in zip(names, files, strict=True):
            header = header_of(part.items(), stored)
            write_file(self.folder / name, header, [(tensor, stored) for tensor in part], self.value)
        if len(files) > 1:
            listed = {tensor: name for name, part in zip(names, files, strict=True) for tensor in part}
            total = sum(prod(shape) for shape in shapes.values()) * (4 if stored == "F32" else 2)
            index = {"metadata": {"total_size": total}, "weight_map": listed}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def write_like(self, like: epath.Path) -> None:
        checked(like, self.config, read_headers(like))
        for name, file in files_of(like).items():
            stored = stored_tensors(file)
            tied = {"lm_head.weight": self.tensors["model.embed_tokens.weight"]} if self.config.tied_embeddings else {}
            writer = replace(self, tensors=tied | self.tensors)
            write_file(self.folder / name, raw_header(file), [(t.name, t.dtype) for t in stored], writer.value)
        others = [f for f in like.iterdir() if f.is_file() and f.suffix not in (".safetensors", ".bin", ".pth")]
        for file in sorted(others, key=lambda file: (file.name == CONFIG, file.name)):
            (self.folder / Path(file).name).write_bytes(file.read_bytes())


@functools.cache
def _taker(sharding: NamedSharding) -> Any:
    """A program that takes a slice of a weight at an index along its leading axes, whole on every device."""

    def take(whole: jax.Array, index: tuple[int, ...]) -> jax.Array:
        for i in index:
            whole = jax.lax.dynamic_index_in_dim(whole, i, keepdims=False)
        return whole

    same = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
    return jax.jit(take, out_shardings=same)
