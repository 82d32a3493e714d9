"""Read a model from a Hugging Face folder, on a disk or in a bucket.

Each tensor is read, placed on its devices and dropped, so the host holds one tensor at a time and never the model.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_llm.model.config import ModelConfig
from rl_llm.model.huggingface.config_fields import ConfigError
from rl_llm.model.huggingface.config_json import config_from_json
from rl_llm.model.huggingface.tensor_files import NAMES, StoredTensor, WeightsError, first_few, read_headers
from rl_llm.model.weights import Weight, weight_table
from rl_llm.parallel import mesh as meshes

CONFIG = "config.json"

# Tensors of vision-language models outside the text model.
VISION_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


@dataclass(frozen=True)
class LoadedModel:
    """A model read from a folder. `digest` is SHA-256 over all bytes read, in hexadecimal digits."""

    config: ModelConfig
    params: dict
    digest: str


def is_huggingface(folder: epath.PathLike) -> bool:
    """Whether a folder has a config.json."""
    return (epath.Path(folder) / CONFIG).exists()


def load(folder: epath.PathLike, mesh: Mesh | None = None) -> tuple[ModelConfig, dict]:
    """Read a Hugging Face folder: its config, and float32 parameters on the mesh (default: the first device).

    Raises FileNotFoundError, ConfigError or WeightsError, naming the file, the field or tensor, and the remedy.
    """
    loaded = read_model(folder, mesh or meshes.make_mesh(devices=jax.devices()[:1]))
    return loaded.config, loaded.params


def read_config(folder: epath.PathLike) -> ModelConfig:
    """The config of the model in a folder. Raises FileNotFoundError or ConfigError."""
    path = epath.Path(folder) / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a Hugging Face folder: it has no {CONFIG}")
    return config_from_json(_config_values(epath.Path(folder)), str(path))


def _config_values(folder: epath.Path) -> Any:
    try:
        return json.loads((folder / CONFIG).read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / CONFIG} is not JSON: {error}") from error


def is_multimodal(folder: epath.PathLike) -> bool:
    """Whether a folder holds a vision-language model, from which only the text model is read."""
    return bool(_config_values(epath.Path(folder)).get("model_type") == "gemma3")


def max_positions(folder: epath.PathLike) -> int | None:
    """Maximum text length in tokens from config.json; None if absent."""
    values = _config_values(epath.Path(folder))
    return (values["text_config"] if is_multimodal(folder) else values).get("max_position_embeddings")


def read_model(folder: epath.PathLike, mesh: Mesh) -> LoadedModel:
    """Read a folder onto a mesh. Every host reads all of it and keeps its shards."""
    folder, config = epath.Path(folder), read_config(folder)
    table = weight_table(config)
    stored = match_tensors(folder, config, read_headers(folder))
    shardings = traverse_util.flatten_dict(meshes.weight_shardings(mesh, table), sep="/")
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    params = {}
    for path, weight in table.items():
        if weight.stacked:
            params[path] = jnp.zeros(weight.shape, jnp.float32, device=shardings[path])
        for name, index in slices(weight):
            value = _from_stored(stored[name], weight)
            digest.update(value.tobytes())
            piece = _shard_slice(value, shardings[path], weight.stacked)
            params[path] = _inserter(shardings[path])(params[path], piece, index) if index else piece
    return LoadedModel(config, traverse_util.unflatten_dict(params, sep="/"), digest.hexdigest())


def slices(weight: Weight) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names of a weight's tensors, and the index of each along the stacked axes."""
    for index in np.ndindex(*weight.shape[: weight.stacked]):
        yield weight.name.format(**dict(zip(("layer", "expert"), index, strict=False))), index


def stored_shape(weight: Weight) -> tuple[int, ...]:
    """Shape of a weight's tensors in a folder."""
    shape = weight.shape[weight.stacked :]
    if weight.inputs:
        return prod(shape[weight.inputs :]), prod(shape[: weight.inputs])
    return (prod(shape),) if weight.stacked else shape


def _from_stored(tensor: StoredTensor, weight: Weight) -> np.ndarray:
    """Read a tensor as a float32 slice of its weight."""
    values = tensor.read().astype(np.float32)
    values = values.T if weight.inputs else values
    return np.ascontiguousarray(values).reshape(weight.shape[weight.stacked :])


def _shard_slice(value: np.ndarray, sharding: NamedSharding, stacked: int) -> jax.Array:
    """Place a slice on the devices like the weight it belongs to."""
    spec = PartitionSpec(*sharding.spec[stacked:])
    return jax.make_array_from_callback(value.shape, NamedSharding(sharding.mesh, spec), lambda index: value[index])


@functools.cache
def _inserter(sharding: NamedSharding) -> Any:
    """Compile the insertion of a slice into a donated weight, at an index along its leading axes."""

    def insert(whole: jax.Array, piece: jax.Array, index: tuple[int, ...]) -> jax.Array:
        start = (*index, *(0,) * piece.ndim)
        return jax.lax.dynamic_update_slice(whole, piece.reshape((1,) * len(index) + piece.shape), start)

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)


def match_tensors(folder: epath.Path, config: ModelConfig, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The model's tensors by their names in the weight table.

    Raises WeightsError for a missing, extra, misshapen or wrong-dtype tensor, ConfigError for an unknown dtype.
    """
    stored = _text_model(folder, found) if is_multimodal(folder) else dict(found)
    if config.family == "llama":  # the first ones were published with this buffer
        stored = {name: tensor for name, tensor in stored.items() if not name.endswith("rotary_emb.inv_freq")}
    wanted = {name: stored_shape(weight) for weight in weight_table(config).values() for name, _ in slices(weight)}
    if config.tied_embeddings and "lm_head.weight" in stored:
        head, embedding = stored.pop("lm_head.weight"), stored.get("model.embed_tokens.weight")
        if embedding is None or not np.array_equal(head.read(), embedding.read()):
            raise WeightsError(f"{folder}: tie_word_embeddings is true, but lm_head.weight is not the embedding")
    allowed = _allowed_dtypes(folder, stored)
    problems = [f"{name} {wanted[name]} is missing" for name in wanted if name not in stored]
    problems += [f"{name} {stored[name].shape} is not part of the model" for name in stored if name not in wanted]
    for name, tensor in stored.items():
        if tensor.shape != wanted.get(name, tensor.shape):
            problems.append(f"{name} has the shape {tensor.shape}; {CONFIG} asks for {wanted[name]}")
    for name, tensor in stored.items():
        if tensor.dtype not in allowed:
            problems.append(f"{name} has the dtype {tensor.dtype}; expected {' or '.join(sorted(allowed))}")
    if problems:
        shown = first_few(problems, 8, "\n  ")
        raise WeightsError(f"{folder} does not hold the model that its {CONFIG} describes:\n  {shown}")
    return stored


def _allowed_dtypes(folder: epath.Path, stored: dict[str, StoredTensor]) -> set[str]:
    """The dtype that config.json declares, or else the one that tensors have."""
    values = _config_values(folder)
    declared = values.get("dtype") or values.get("torch_dtype")
    if declared is not None and declared not in tuple(NAMES):
        raise ConfigError(f"{folder / CONFIG}: dtype={declared!r} is not implemented; expected {', '.join(NAMES)}")
    present = sorted({tensor.dtype for tensor in stored.values()} & set(NAMES.values()))
    return {NAMES[declared]} if declared else set(present[:1])


def _text_model(folder: epath.Path, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The text model's tensors of a vision-language model, without their prefix."""
    own = {name: tensor for name, tensor in found.items() if not name.startswith(VISION_PARTS)}
    stored = {re.sub(r"^(model\.)?language_model\.", r"\1", name): tensor for name, tensor in own.items()}
    if len(stored) < len(own):
        raise WeightsError(f"{folder} holds two language models: the names of their tensors differ in a prefix only")
    return stored
