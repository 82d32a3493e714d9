"""Low-rank adapters beside a model's weights: which parameters are trained, and the model with them merged in.

`ModelConfig.lora` says what there is; `weight_table` declares them as it does all weights, and a layer's projections
add what they make of their input (`block.projected`).
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
    """What belongs to the weights that are trained, and to those that are not: the adapters are where the model has
    some, else all are.
    """

    def trained(path: str) -> bool:
        return config.lora is None or path.endswith((LORA_A, LORA_B))

    ours = {path: value for path, value in by_path.items() if trained(path)}
    return ours, {path: value for path, value in by_path.items() if not trained(path)}


def split_params(config: ModelConfig, params: dict) -> tuple[dict, dict | None]:
    """The parameters that are trained, and those that stay as they are (None where all are trained)."""
    trained, frozen = split_flat(config, traverse_util.flatten_dict(params, sep="/"))
    return traverse_util.unflatten_dict(trained, sep="/"), traverse_util.unflatten_dict(frozen, sep="/") or None


def join_params(trained: dict, frozen: dict | None) -> dict:
    """All parameters of a model again."""
    if frozen is None:
        return trained
    return {**frozen, "layers": {**frozen["layers"], **trained["layers"]}}


def add_adapters(config: ModelConfig, params: dict, key: jax.Array) -> dict:
    """The parameters of a model without adapters, beside the first ones of its adapters: those that `init` draws."""
    table, _ = split_flat(config, weight_table(config))
    return join_params(draw(table, key), params) if config.lora else params


def merge_adapters(config: ModelConfig, params: dict) -> tuple[ModelConfig, dict]:
    """The model of the same shape without adapters that computes the same, up to rounding: W + alpha / rank * A B."""
    if config.lora is None:
        return config, params
    layers = dict(params["layers"])
    for target in config.lora.targets:
        low = layers.pop(target + LORA_A), layers.pop(target + LORA_B)
        layers[target] = _merge(config.lora.scale, layers[target], *low)
    return config.base, {**params, "layers": layers}


@partial(jax.jit, static_argnums=0)
def _merge(scale: float, weight: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """[L, ...in, ...out] + scale * [L, ...in, r] [L, r, ...out]"""
    L, rank = second.shape[:2]
    product = jnp.einsum(
        "lir,lro->lio",
        first.reshape(L, -1, rank),
        second.reshape(L, rank, -1),
        precision=jax.lax.Precision.HIGHEST,
    )
    return weight + scale * product.reshape(weight.shape)
