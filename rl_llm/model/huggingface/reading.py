"""Read a model from a Hugging Face folder, on a disk or in a bucket.

Each tensor is read, placed on its devices and dropped, so the host holds one tensor at a time and never the model.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_llm.config.hub import download_command, folder_path
from rl_llm.model.config import ModelConfig, YarnScaling
from rl_llm.model.huggingface.config_fields import ConfigError, ConfigFields, read_object
from rl_llm.model.huggingface.config_json import FULL, ORIGINAL, config_from_json
from rl_llm.model.huggingface.tensor_files import DTYPES, NAMES, StoredTensor, WeightsError, first_few, read_headers
from rl_llm.model.weights import Weight, weight_table
from rl_llm.parallel import mesh as meshes

Watch = Callable[[int], object]  # called with the megabytes read so far, as float32
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_BUFFERS = tuple(f"rotary_emb.{name}" for name in ("inv_freq", "cos_cached", "sin_cached"))  # computed from the config

# Prefixes of names in models that were saved within another module, and how to save the model itself.
WRAPPERS = {
    "_orig_mod.": "torch.compile adds; save model._orig_mod",
    "module.": "DataParallel adds; save model.module",
    "base_model.model.": "PEFT adds; save model.merge_and_unload(), or the adapter alone",
}

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
    return (folder_path(folder) / CONFIG).exists()


def load(folder: epath.PathLike, mesh: Mesh | None = None) -> tuple[ModelConfig, dict]:
    """Read a Hugging Face folder: its config, and float32 parameters on the mesh (default: the first device).

    Raises FileNotFoundError, ConfigError or WeightsError, naming the file, the field or tensor, and the remedy.
    """
    loaded = read_model(folder, mesh or meshes.make_mesh(devices=jax.devices()[:1]))
    return loaded.config, loaded.params


def read_config(folder: epath.PathLike) -> ModelConfig:
    """The config of the model in a folder. Raises FileNotFoundError or ConfigError."""
    path = folder_path(folder)
    return config_from_json(_config_values(path), str(path / CONFIG))


def _config_values(folder: epath.Path) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        hub = download_command(folder)
        reason = f"it has no {CONFIG}" if hub is None else f"{hub.command}, then use the folder {hub.folder}"
        reason += ", only the adapters of a model: use the folder of that" * (folder / ADAPTER_CONFIG).exists()
        raise FileNotFoundError(f"{folder} is not a Hugging Face folder: {reason}")
    return read_object(folder / CONFIG)


def from_folder(folder: epath.PathLike, **changes: Any) -> ModelConfig:
    """The model of a Hugging Face folder, for an experiment: its sizes are those of config.json.

    `compute_dtype` is bfloat16 if config.json declares it, as in `families`; `changes` are fields to replace, such as
    remat="layers". Raises FileNotFoundError with the command that downloads a model, or ConfigError.
    """
    dtype = {"compute_dtype": "bfloat16"} if declared_dtype(folder) == "bfloat16" else {}
    return replace(read_config(folder), **dtype | changes)


def is_multimodal(folder: epath.PathLike) -> bool:
    """Whether a folder holds a vision-language model, from which only the text model is read."""
    return bool(_config_values(folder_path(folder)).get("model_type") == "gemma3")


def max_positions(folder: epath.PathLike) -> int | None:
    """Maximum text length in tokens from config.json; None if absent. Raises ConfigError unless a number."""
    fields = ConfigFields(_text_values(folder), {}, str(epath.Path(folder) / CONFIG))
    return fields.optional_count("max_position_embeddings")


def _text_values(folder: epath.PathLike) -> dict[str, Any]:
    values = _config_values(folder_path(folder))
    return dict(values["text_config"] if is_multimodal(folder) else values)


def yarn_fields(folder: epath.PathLike, factor: float, positions: int) -> str:
    """The field of config.json that stretches `positions` by YaRN, in the spelling of the file."""
    yarn = {"rope_type": "yarn", "factor": factor, ORIGINAL: positions}
    given = _text_values(folder).get("rope_parameters") or {}
    changed = given | ({FULL: given[FULL] | yarn} if FULL in given else yarn)
    return f'"{"rope_parameters" if given else "rope_scaling"}": {json.dumps(changed)}'


def readable_positions(folder: epath.PathLike) -> int | None:
    """Longest text in tokens that a model can read: `max_positions`, times the factor of linear scaling or YaRN.

    As servers take it: in Gemma 3, max_position_embeddings is the length after scaling. None if config.json has none.
    """
    config, positions = read_config(folder), max_positions(folder)
    scaling = config.rope_scaling
    if isinstance(scaling, YarnScaling):
        return max(positions or 0, int(scaling.factor * scaling.original_positions))
    if positions and scaling and scaling.kind == "linear" and config.family != "gemma3":
        return int(scaling.factor * positions)
    return positions


def read_model(folder: epath.PathLike, mesh: Mesh, watch: Watch = lambda megabytes: None) -> LoadedModel:
    """Read a folder onto a mesh. Every host reads all of it and keeps its shards. `watch` is told how far it is."""
    folder, config = epath.Path(folder), read_config(folder)
    stored = match_tensors(folder, config, read_headers(folder))
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    params = read_weights(weight_table(config), stored, mesh, digest, watch)
    return LoadedModel(config, params, digest.hexdigest())


def read_weights(
    table: dict[str, Weight],
    stored: dict[str, StoredTensor],
    mesh: Mesh,
    digest: Any,
    watch: Watch = lambda megabytes: None,
) -> dict:
    """Read the weights of a table onto a mesh, tensor by tensor, and update `digest` with their bytes."""
    shardings = traverse_util.flatten_dict(meshes.weight_shardings(mesh, table), sep="/")
    params, size = {}, 0
    for path, weight in table.items():
        if weight.stacked:
            params[path] = jnp.zeros(weight.shape, jnp.float32, device=shardings[path])
        piece_sharding = NamedSharding(mesh, PartitionSpec(*shardings[path].spec[weight.stacked :]))
        for name, index in slices(weight):
            value = stored[name].read().astype(np.float32)
            value = np.ascontiguousarray(value.T if weight.inputs else value)
            value = value.reshape(weight.shape[weight.stacked :])
            digest.update(value.tobytes())
            size += value.nbytes
            watch(size // 10**6)
            piece = jax.make_array_from_callback(value.shape, piece_sharding, value.__getitem__)
            params[path] = _inserter(shardings[path])(params[path], piece, index) if index else piece
    return traverse_util.unflatten_dict(params, sep="/")


def slices(weight: Weight) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names of a weight's tensors, and the index of each along the stacked axes."""
    for index in np.ndindex(*weight.shape[: weight.stacked]):
        yield weight.name.format(**dict(zip(("layer", "expert"), index, strict=False))), index


def stored_shape(weight: Weight) -> tuple[int, ...]:
    """Shape of each of a weight's tensors in a folder."""
    shape = weight.shape[weight.stacked :]
    if weight.inputs:
        return prod(shape[weight.inputs :]), prod(shape[: weight.inputs])
    return (prod(shape),) if weight.stacked else shape


def stored_shapes(table: Mapping[str, Weight]) -> dict[str, tuple[int, ...]]:
    """Shapes of a table's tensors in a folder, by their names."""
    return {name: stored_shape(weight) for weight in table.values() for name, _ in slices(weight)}


@functools.cache
def _inserter(sharding: NamedSharding) -> Any:
    """Compile the insertion of a slice into a donated weight, at an index along its leading axes."""

    def insert(whole: jax.Array, piece: jax.Array, index: tuple[int, ...]) -> jax.Array:
        start = (*index, *(0,) * piece.ndim)
        return jax.lax.dynamic_update_slice(whole, piece.reshape((1,) * len(index) + piece.shape), start)

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)


def match_tensors(folder: epath.Path, config: ModelConfig, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The model's tensors by their names in the weight table.

    Their dtypes may differ from each other and from config.json's, because all are read as float32. Raises WeightsError
    for a tensor that is missing, extra, misshapen or quantized, ConfigError if config.json names another dtype.
    """
    declared_dtype(folder)
    for prefix, origin in WRAPPERS.items():
        if any(name.startswith(prefix) for name in found):
            raise WeightsError(f"{folder}: names of its tensors begin with {prefix!r}, which {origin}")
    stored = _text_model(folder, found) if is_multimodal(folder) else found
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith(_BUFFERS)}
    quantized = any(tensor.dtype not in DTYPES for tensor in stored.values())
    if not quantized and config.tied_embeddings and "lm_head.weight" in stored:
        head, embedding = stored.pop("lm_head.weight"), stored.get("model.embed_tokens.weight")
        if embedding is None or not np.array_equal(head.read(), embedding.read()):
            raise WeightsError(f"{folder}: tie_word_embeddings is true, but lm_head.weight is not the embedding")
    if problems := misfits(stored, stored_shapes(weight_table(config))):
        shown = first_few(problems, 8, "\n  ")
        raise WeightsError(f"{folder} does not hold the model that its {CONFIG} describes:\n  {shown}")
    return stored


def misfits(stored: dict[str, StoredTensor], wanted: dict[str, tuple[int, ...]]) -> list[str]:
    """The wrong tensors among those stored: quantized, missing, extra or misshapen ones."""
    problems = [
        f"{name} has the dtype {tensor.dtype}; expected {', '.join(DTYPES)}: save the model in one of these"
        for name, tensor in stored.items()
        if tensor.dtype not in DTYPES
    ]
    problems += [f"{name} {shape} is missing" for name, shape in wanted.items() if name not in stored]
    problems += [f"{name} {stored[name].shape} is not part of the model" for name in stored if name not in wanted]
    for name, tensor in stored.items():
        if tensor.shape != wanted.get(name, tensor.shape):
            problems.append(f"{name} has the shape {tensor.shape}; {CONFIG} asks for {wanted[name]}")
    return problems


def declared_dtype(folder: epath.PathLike) -> str | None:
    """The dtype that config.json declares, if any. Raises ConfigError for one that is not implemented."""
    path = folder_path(folder)
    values = _config_values(path)
    declared = values.get("dtype") or values.get("torch_dtype")
    name = declared.removeprefix("torch.") if isinstance(declared, str) else declared
    if name is not None and name not in tuple(NAMES):
        raise ConfigError(f"{path / CONFIG}: dtype={declared!r} is not implemented; expected {', '.join(NAMES)}")
    return name


def _text_model(folder: epath.Path, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The text model's tensors of a vision-language model, without their prefix."""
    own = {name: tensor for name, tensor in found.items() if not name.startswith(VISION_PARTS)}
    stored = {re.sub(r"^(model\.)?language_model\.", r"\1", name): tensor for name, tensor in own.items()}
    if len(stored) < len(own):
        raise WeightsError(f"{folder} holds two language models: the names of their tensors differ in a prefix only")
    return stored
