"""Low-rank adapters: separate trained from frozen parameters, and merge adapters into the weights.

`ModelConfig.lora` describes the adapters and `weight_table` declares them like all weights. `block.apply_projection`
adds their output to a projection's.
"""

from collections.abc import Mapping
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import traverse_util

from rl_llm.model.config import ModelConfig
from rl_llm.model.weights import LORA_A, LORA_B, draw, weight_table

Value = TypeVar("Value")


def split_flat(config: ModelConfig, by_path: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Split values by weight path into those of trained weights and those of frozen ones.

    The adapters are trained if the model has some, else every weight is.
    """
    suffixes = (LORA_A, LORA_B) if config.lora else ("",)
    trained = {path: value for path, value in by_path.items() if path.endswith(suffixes)}
    return trained, {path: value for path, value in by_path.items() if path not in trained}


def split_params(config: ModelConfig, params: dict) -> tuple[dict, dict | None]:
    """Split parameters into trained and frozen ones (None if all are trained)."""
    trained, frozen = split_flat(config, traverse_util.flatten_dict(params, sep="/"))
    return traverse_util.unflatten_dict(trained, sep="/"), traverse_util.unflatten_dict(frozen, sep="/") or None


def join_params(trained: dict, frozen: dict | None) -> dict:
    """Undo `split_params`."""
    if frozen is None:
        return trained
    return {**frozen, "layers": {**frozen["layers"], **trained["layers"]}}


def add_adapters(config: ModelConfig, params: dict, key: jax.Array) -> dict:
    """Add initial adapters, as `init` draws them, to the parameters of a model that has none yet."""
    table, _ = split_flat(config, weight_table(config))
    adapted = any(name.endswith(LORA_A) for name in params["layers"])
    return params if config.lora is None or adapted else join_params(draw(table, key), params)


def merge_adapters(config: ModelConfig, params: dict) -> tuple[ModelConfig, dict]:
    """Merge adapters into their targets: W + alpha / rank * A B. The model computes the same, up to rounding."""
    if config.lora is None:
        return config, params
    layers = dict(params["layers"])
    for target in config.lora.targets:
        adapter = layers.pop(target + LORA_A), layers.pop(target + LORA_B)
        layers[target] = _merge(config.lora.scale, layers[target], *adapter)
    return config.base, {**params, "layers": layers}


@partial(jax.jit, static_argnums=0)
def _merge(scale: float, weight: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """[L, ...in, ...out] + scale * [L, ...in, r] [L, r, ...out]"""
    L, rank = second.shape[:2]
    first, second = first.reshape(L, -1, rank), second.reshape(L, rank, -1)
    product = jnp.einsum("lir,lro->lio", first, second, precision=jax.lax.Precision.HIGHEST)
    return weight + scale * product.reshape(weight.shape)
