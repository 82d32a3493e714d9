"""Models from and to Hugging Face folders, on a disk or in a bucket.

Both ways go weight by weight: a tensor is read, placed on the devices where its part of the model lies, and forgotten,
so the host holds one tensor at a time and never the model.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_llm import mesh as meshes
from rl_llm.model.config import ModelConfig
from rl_llm.model.huggingface_config import ConfigError, config_from_json, config_to_json
from rl_llm.model.lora import merged
from rl_llm.model.tensor_files import (
    INDEX,
    NAMES,
    SINGLE,
    StoredTensor,
    WeightsError,
    files_of,
    header_of,
    raw_header,
    read_headers,
    stored_tensors,
    write_file,
)
from rl_llm.model.weights import Weight, weight_table

CONFIG = "config.json"
LARGEST_FILE = 5_000_000_000  # bytes; a model is written in several files beyond that
Dtype = Literal["float32", "bfloat16", "float16"]

# What folders hold beside a language model's own weights: the parts of others, and what can be computed.
OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
PREFIXES = ("language_model.model.", "model.language_model.")  # of the text part of a model of text and images


class Slice(NamedTuple):
    """Where a stored tensor belongs: a weight of the table, and the index along its stacked axes."""

    path: str
    at: tuple[int, ...]


@dataclass(frozen=True)
class Loaded:
    """A model read from a folder; `digest` is SHA-256 over all that was read, in hexadecimal digits."""

    config: ModelConfig
    params: dict
    digest: str


def is_huggingface(folder: epath.PathLike) -> bool:
    """Whether a folder has a config.json, and so claims to be a model."""
    return (epath.Path(folder) / CONFIG).exists()


def load(folder: epath.PathLike, mesh: Mesh | None = None) -> tuple[ModelConfig, dict]:
    """The model of a Hugging Face folder: its config, and its float32 parameters on the mesh (default: the first
    device). Raises FileNotFoundError, ConfigError or WeightsError saying what is wrong with the folder.
    """
    loaded = read_model(folder, mesh or meshes.make_mesh(devices=jax.devices()[:1]))
    return loaded.config, loaded.params


def read_config(folder: epath.PathLike) -> ModelConfig:
    """The shape of the model in a folder. Raises FileNotFoundError or ConfigError."""
    path = epath.Path(folder) / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{folder} is no Hugging Face folder: it has no {CONFIG}")
    try:
        return config_from_json(json.loads(path.read_text()), str(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def read_model(folder: epath.PathLike, mesh: Mesh) -> Loaded:
    """Read a folder onto a mesh; every host reads all of it, and keeps its part."""
    folder, config = epath.Path(folder), read_config(folder)
    table = weight_table(config)
    stored = _checked(folder, config, read_headers(folder))
    shardings = traverse_util.flatten_dict(meshes.weight_shardings(mesh, table), sep="/")
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    params = {}
    for path, weight in table.items():
        if weight.stacked:
            params[path] = jnp.zeros(weight.shape, jnp.float32, device=shardings[path])
        for name, index in slices(weight):
            value = _ours(stored[name], weight)
            digest.update(value.tobytes())
            piece = _placed(value, shardings[path], weight.stacked)
            params[path] = _inserter(shardings[path])(params[path], piece, index) if index else piece
    return Loaded(config, traverse_util.unflatten_dict(params, sep="/"), digest.hexdigest())


def slices(weight: Weight) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors that a weight consists of: their names, and where each lies along the stacked axes."""
    for index in np.ndindex(*weight.shape[: weight.stacked]):
        yield weight.name.format(**dict(zip(("layer", "expert"), index, strict=False))), index


def stored_shape(weight: Weight) -> tuple[int, ...]:
    """The shape of each tensor of a weight as a folder has it."""
    shape = weight.shape[weight.stacked :]
    if weight.inputs:
        return prod(shape[weight.inputs :]), prod(shape[: weight.inputs])
    return (prod(shape),) if weight.stacked else shape


def _ours(tensor: StoredTensor, weight: Weight) -> np.ndarray:
    """A tensor as a slice of the weight, in float32."""
    values = tensor.read().astype(np.float32)
    values = values.T if weight.inputs else values
    return np.ascontiguousarray(values).reshape(weight.shape[weight.stacked :])


def _theirs(values: np.ndarray, weight: Weight) -> np.ndarray:
    """A slice of the weight as a folder has it."""
    if not weight.inputs:
        return values.reshape(stored_shape(weight))
    outputs, inputs = stored_shape(weight)
    return values.reshape(inputs, outputs).T


def _placed(value: np.ndarray, sharding: NamedSharding, stacked: int) -> jax.Array:
    spec = PartitionSpec(*sharding.spec[stacked:])
    return jax.make_array_from_callback(value.shape, NamedSharding(sharding.mesh, spec), lambda index: value[index])


@functools.cache
def _inserter(sharding: NamedSharding) -> Any:
    """A program that puts a slice into a weight in place, at an index along its leading axes."""

    def insert(whole: jax.Array, piece: jax.Array, index: tuple[int, ...]) -> jax.Array:
        start = (*index, *(0,) * piece.ndim)
        return jax.lax.dynamic_update_slice(whole, piece.reshape((1,) * len(index) + piece.shape), start)

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)


def _checked(folder: epath.Path, config: ModelConfig, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a model by the names that its table has. Raises WeightsError for a missing, extra, misshapen or
    wrong-dtype one.
    """
    stored = {_own_name(name): tensor for name, tensor in found.items() if _is_own(name)}
    table = weight_table(config)
    wanted = {name: stored_shape(weight) for weight in table.values() for name, _ in slices(weight)}
    if config.tied_embeddings and "lm_head.weight" in stored:
        head, embedding = stored.pop("lm_head.weight"), stored.get("model.embed_tokens.weight")
        if embedding is None or not np.array_equal(head.read(), embedding.read()):
            raise WeightsError(f"{folder}: tie_word_embeddings is true, but lm_head.weight is not the embedding")
    problems = [f"{name} {wanted[name]} is missing" for name in wanted if name not in stored]
    problems += [
        f"{name} {stored[name].shape} belongs to no part of the model" for name in stored if name not in wanted
    ]
    problems += [
        f"{name} has the shape {stored[name].shape}, but {CONFIG} asks for {shape}"
        for name, shape in wanted.items()
        if name in stored and stored[name].shape != shape
    ]
    values = json.loads((folder / CONFIG).read_text())
    said = values.get("dtype") or values.get("torch_dtype")
    allowed = {NAMES[said]} if said in NAMES else set(NAMES.values())
    problems += [
        f"{name} has the dtype {tensor.dtype}, not {' or '.join(sorted(allowed))}"
        for name, tensor in stored.items()
        if tensor.dtype not in allowed
    ]
    if problems:
        shown = "\n  ".join(problems[:8]) + (f"\n  and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise WeightsError(f"{folder} does not hold the model that its {CONFIG} describes:\n  {shown}")
    return stored


def _is_own(name: str) -> bool:
    return not name.startswith(OTHER_PARTS) and not name.endswith("rotary_emb.inv_freq")


def _own_name(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name


def save(
    config: ModelConfig,
    params: dict,
    folder: epath.PathLike,
    dtype: Dtype = "bfloat16",
    like: epath.PathLike | None = None,
) -> None:
    """Write a model as a folder that Hugging Face transformers loads, one tensor in memory at a time. Adapters are
    merged into the weights first.

    With `like`, the folder that it came from, the files are those of that folder: the same names, tensors, dtypes and
    order in each, and all that is not weights (config, tokenizer, licence) copied, so that a model which was not
    changed is written back byte for byte. config.json is written last: what was cut off is no model. Raises
    ValueError where the folder is there already, or where the model is not that of its family or of `like`.
    """
    config, params = merged(config, params)
    folder = epath.Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is there already, and not empty: choose another folder")
    settings = config_to_json(config, dtype)
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
        path, index = self.tensors[_own_name(name)]
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
        _checked(like, self.config, read_headers(like))
        for name, file in files_of(like).items():
            stored = stored_tensors(file)
            foreign = [t.name for t in stored if _own_name(t.name) not in self.tensors and t.name != "lm_head.weight"]
            if foreign:
                raise WeightsError(
                    f"{file} holds more than this model ({foreign[0]}, ...): it cannot be written like it"
                )
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
