"""Models from Hugging Face folders, on a disk or in a bucket (`saving` writes them).

Weight by weight: a tensor is read, placed on the devices where its part of the model lies, and forgotten, so the host
holds one tensor at a time and never the model.
"""

import functools
import hashlib
import json
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
from rl_llm.model.huggingface.config import config_from_json
from rl_llm.model.huggingface.config_fields import ConfigError
from rl_llm.model.huggingface.tensor_files import (
    NAMES,
    StoredTensor,
    WeightsError,
    read_headers,
)
from rl_llm.model.weights import Weight, weight_table
from rl_llm.parallel import mesh as meshes

CONFIG = "config.json"

# What folders of models that see hold beside the language model's own weights.
OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
PREFIXES = {"language_model.": "", "model.language_model.": "model."}  # of the text part, and what they are without it


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
    return config_from_json(_config_values(epath.Path(folder)), str(path))


def _config_values(folder: epath.Path) -> Any:
    try:
        return json.loads((folder / CONFIG).read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / CONFIG} is not JSON: {error}") from error


def is_part(folder: epath.PathLike) -> bool:
    """Whether the model that is read from a folder is only a part of the one in it: the text part of one that sees."""
    return bool(_config_values(epath.Path(folder)).get("model_type") == "gemma3")


def positions(folder: epath.PathLike) -> int | None:
    """The longest text in tokens that the model in a folder says it is meant for; None where it does not say."""
    values = _config_values(epath.Path(folder))
    return (values["text_config"] if is_part(folder) else values).get("max_position_embeddings")


def read_model(folder: epath.PathLike, mesh: Mesh) -> Loaded:
    """Read a folder onto a mesh; every host reads all of it, and keeps its part."""
    folder, config = epath.Path(folder), read_config(folder)
    table = weight_table(config)
    stored = checked(folder, config, read_headers(folder))
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


def checked(folder: epath.Path, config: ModelConfig, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a model by the names that its table has. Raises WeightsError for a missing, extra, misshapen or
    wrong-dtype one.
    """
    part = is_part(folder)
    own = {name: tensor for name, tensor in found.items() if not (part and name.startswith(OTHER_PARTS))}
    if config.family == "llama":  # as the first ones were published
        own = {name: tensor for name, tensor in own.items() if not name.endswith("rotary_emb.inv_freq")}
    stored = {own_name(name) if part else name: tensor for name, tensor in own.items()}
    if len(stored) < len(own):
        raise WeightsError(f"{folder} holds two language models: the names of their tensors differ by a prefix only")
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
    values = _config_values(folder)
    said = values.get("dtype") or values.get("torch_dtype")
    if said is not None and said not in tuple(NAMES):
        raise ConfigError(f"{folder / CONFIG}: dtype={said!r} is not implemented: only {', '.join(NAMES)}")
    dtypes = sorted({tensor.dtype for tensor in stored.values()} & set(NAMES.values()))
    allowed = {NAMES[said]} if said else set(dtypes[:1])
    problems += [
        f"{name} has the dtype {tensor.dtype}, not {' or '.join(sorted(allowed))}"
        for name, tensor in stored.items()
        if tensor.dtype not in allowed
    ]
    if problems:
        shown = "\n  ".join(problems[:8]) + (f"\n  and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise WeightsError(f"{folder} does not hold the model that its {CONFIG} describes:\n  {shown}")
    return stored


def own_name(name: str) -> str:
    """The name of a tensor in a language model by itself."""
    for prefix, own in PREFIXES.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name
