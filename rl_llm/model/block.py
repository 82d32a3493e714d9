"""One layer around its attention, and what stands before the first: for prompts, responses and single tokens alike."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rl_llm.model.attention import KeyValues, Source, attention
from rl_llm.model.config import ModelConfig
from rl_llm.model.experts import mixture
from rl_llm.model.layers import activate, project, rms_norm, rotate
from rl_llm.model.weights import LORA_A, LORA_B


def embed(config: ModelConfig, params: dict, tokens: jax.Array) -> jax.Array:
    """Tokens i32[...] -> f32[..., D]."""
    embedded = jnp.take(params["embedding"], tokens, axis=0)
    if not config.embedding_scale:
        return embedded
    scale = jnp.asarray(config.width**0.5, config.compute_dtype)  # rounded, as these models were trained
    return embedded * scale.astype(jnp.float32)


def normalized(config: ModelConfig, x: jax.Array, scale: jax.Array) -> jax.Array:
    """`rms_norm` as the family has it."""
    return rms_norm(x, scale, config.norm_epsilon, config.unit_offset_norms)


def projected(config: ModelConfig, weights: dict, name: str, x: jax.Array, contract: int = 1) -> jax.Array:
    """A projection of a layer by its name, with its bias and its adapter where it has them; as `project`."""
    dtype = jnp.dtype(config.compute_dtype)
    output = project(x, weights[name], dtype, contract, weights.get(f"{name}_bias"))
    if config.lora is None or name not in config.lora.targets:
        return output
    inner = project(x, weights[name + LORA_A], dtype, contract)
    return output + config.lora.scale * project(inner, weights[name + LORA_B], dtype)


def queries_keys_values(
    config: ModelConfig, weights: dict, x: jax.Array, tables: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, KeyValues]:
    """Rotated queries [B, T, H, h], and rotated keys and values [B, J, T, h]."""
    normed = normalized(config, x, weights["attention_norm"])
    queries, keys, values = (projected(config, weights, name, normed) for name in ("query", "key", "value"))
    if config.qk_norm:
        queries = normalized(config, queries, weights["query_norm"])
        keys = normalized(config, keys, weights["key_norm"])
    return rotate(queries, tables), KeyValues(jnp.moveaxis(rotate(keys, tables), 1, 2), jnp.moveaxis(values, 1, 2))


def after_attention(
    config: ModelConfig, weights: dict, x: jax.Array, context: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """What a layer gives from its input x and what attention found: the new x, and the experts that read each token."""
    output = projected(config, weights, "output", context, contract=2)
    if config.sandwich_norms:
        output = normalized(config, output, weights["attention_post_norm"])
    x = x + output
    normed = normalized(config, x, weights["mlp_norm"])
    chosen = None
    if config.experts:
        output, chosen = mixture(config, weights, normed)
    else:
        output = _feed_forward(config, weights, normed)
    if config.sandwich_norms:
        output = normalized(config, output, weights["mlp_post_norm"])
    return x + output, chosen


def _feed_forward(config: ModelConfig, weights: dict, x: jax.Array) -> jax.Array:
    """down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202, eq. 6), or with GELU in the place of silu."""
    gate, up = (projected(config, weights, name, x) for name in ("gate", "up"))
    return projected(config, weights, "down", activate(gate, config.activation) * up)


def attend(
    config: ModelConfig, queries: jax.Array, sources: Sequence[KeyValues], masks: Sequence[jax.Array]
) -> jax.Array:
    """Plain attention of queries [B, T, H, h] over sources, of which the masks say what is seen -> [B, T, H, h]."""
    seen = tuple(Source(kv.keys, kv.values, mask) for kv, mask in zip(sources, masks, strict=True))
    return attention(queries, seen, jnp.dtype(config.compute_dtype), config.query_scalar)
