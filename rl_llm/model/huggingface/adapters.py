"""Adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors, beside no weights.

The tensors hold A transposed, [rank, inputs], and B transposed, [outputs, rank], of each layer's projection.
"""

import hashlib
from dataclasses import replace
from math import sqrt

import jax
from etils import epath
from jax.sharding import Mesh

from rl_llm.config.hub import download_command, folder_path
from rl_llm.model.config import ADAPTABLE, Lora
from rl_llm.model.huggingface import reading, tensor_files
from rl_llm.model.huggingface.config_fields import ConfigError, ConfigFields, read_object
from rl_llm.model.huggingface.reading import ADAPTER_CONFIG, LoadedModel, Watch, is_huggingface
from rl_llm.model.huggingface.tensor_files import INDEX, SINGLE, StoredTensor, WeightsError, first_few
from rl_llm.model.lora import join_params, merge_adapters, split_flat
from rl_llm.model.weights import LORA_B, weight_table
from rl_llm.parallel.mesh import weight_shardings

ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base_model_name_or_path"
MODULES = {target: f"{target[0]}_proj" for target in ("query", "key", "value", "output")}
MODULES |= {target: f"{target}_proj" for target in ("gate", "up", "down")}  # by target, in transformers

# Fields that do not change the function of saved tensors. The tensors themselves say which modules they adapt.
WITHOUT_EFFECT = (
    *("auto_mapping", "inference_mode", "layers_pattern", "megatron_core", "peft_version", "revision", BASE),
    *("target_modules", "exclude_modules", "lora_dropout", "qalora_group_size", "runtime_config"),
    *("eva_config", "loftq_config", "corda_config", "lora_ga_config"),  # settings of init_lora_weights
)
KEEP_THE_BASE = (True, False, "gaussian", "orthogonal", "eva")  # other initial values change the base's weights, too


def is_adapter(folder: epath.PathLike) -> bool:
    """Whether a folder holds PEFT adapters and no model of its own."""
    folder = folder_path(folder)
    return (folder / ADAPTER_CONFIG).exists() and not any((folder / name).exists() for name in (SINGLE, INDEX))


def model_folder(start: str | None) -> str | None:
    """The Hugging Face folder of the weights at `start`: itself, or the base of its adapters; None for a run folder."""
    if not start:
        return None
    try:
        adapters = is_adapter(start)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"start={error}") from error
    return base_folder(start) if adapters else start if is_huggingface(start) else None


def base_folder(folder: epath.PathLike) -> str:
    """The base model's folder: as named here or in the folder of the adapters, or as a download of its hub id."""
    path = epath.Path(folder)
    named = read_object(path / ADAPTER_CONFIG).get(BASE)
    if not isinstance(named, str) or not named:
        raise ConfigError(f"{path / ADAPTER_CONFIG}: {BASE} is {named!r}; expected the folder of the base model")
    hub = download_command(named)
    for candidate in (epath.Path(named), path / named, *([epath.Path(hub.folder)] if hub else [])):
        if is_huggingface(candidate):
            return str(candidate)
    remedy = "name the folder of the base model there" + (f", or get it:\n  {hub.command}" if hub else "")
    raise FileNotFoundError(f"{path / ADAPTER_CONFIG}: {BASE}={named!r} is not a Hugging Face folder: {remedy}")


def read_lora(folder: epath.PathLike) -> Lora:
    """The adapters that a folder has. Raises ConfigError for a field that is not implemented."""
    path = epath.Path(folder)
    place, values = str(path / ADAPTER_CONFIG), read_object(path / ADAPTER_CONFIG)
    acting = {n: value for n, value in values.items() if n not in WITHOUT_EFFECT and value not in ({}, [], "")}
    fields = ConfigFields(acting, {}, place)
    fields.expect("peft_type", "LORA")
    fields.expect("task_type", "CAUSAL_LM")
    fields.expect("bias", "none")
    fields.expect("init_lora_weights", *KEEP_THE_BASE)
    rank, alpha = fields.count("r"), fields.number("lora_alpha")
    alpha *= sqrt(rank) if fields.flag("use_rslora") else 1.0  # rsLoRA scales by alpha / sqrt(rank)
    fields.finish()
    adapted = {part for name in _stored(path) for part in name.split(".")}
    try:
        return Lora(rank, alpha, tuple(target for target in ADAPTABLE if MODULES[target] in adapted))
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from error


def read_adapted(
    folder: epath.PathLike, wanted: Lora | None, mesh: Mesh, watch: Watch = lambda megabytes: None
) -> LoadedModel:
    """Read the base of a folder's adapters with them: kept if `wanted` has their rank and targets, or else merged.

    Kept adapters compute the same with `wanted.alpha`. Raises FileNotFoundError, ConfigError or WeightsError.
    """
    path, lora, base = epath.Path(folder), read_lora(folder), base_folder(folder)
    try:
        config = replace(reading.read_config(base), lora=lora)
    except ValueError as error:
        raise ConfigError(f"{path / ADAPTER_CONFIG}: {error}") from error
    table = split_flat(config, weight_table(config))[0]
    stored = _stored(path)
    if problems := reading.misfits(stored, reading.stored_shapes(table)):
        raise WeightsError(f"{path} does not adapt the model in {base}:\n  " + first_few(problems, 8, "\n  "))
    loaded = reading.read_model(base, mesh, watch)
    digest = hashlib.sha256(f"{loaded.digest} {lora}".encode())
    params = join_params(reading.read_weights(table, stored, mesh, digest), loaded.params)
    if wanted is None or (wanted.rank, set(wanted.targets)) != (lora.rank, set(lora.targets)):
        config, params = merge_adapters(config, params)
        params = jax.device_put(params, weight_shardings(mesh, weight_table(config)))
        return LoadedModel(config, params, digest.hexdigest())
    factor = lora.scale / wanted.scale
    scaled = {name: factor * w if name.endswith(LORA_B) else w for name, w in params["layers"].items()}
    return LoadedModel(replace(config, lora=wanted), {**params, "layers": scaled}, digest.hexdigest())


def _stored(path: epath.Path) -> dict[str, StoredTensor]:
    if not (path / ADAPTER_WEIGHTS).exists():
        raise WeightsError(
            f"{path} lacks {ADAPTER_WEIGHTS}: adapters are read from safetensors only; convert others with PEFT's "
            "save_pretrained(folder, safe_serialization=True)"
        )
    return {tensor.name: tensor for tensor in tensor_files.tensors_in(path / ADAPTER_WEIGHTS)}
