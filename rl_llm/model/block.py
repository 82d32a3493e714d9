"""One transformer layer around its attention, and the embedding: for prompts, responses and single tokens alike."""

import jax
import jax.numpy as jnp

from rl_llm.model.attention import KeyValues
from rl_llm.model.config import ModelConfig
from rl_llm.model.experts import apply_experts
from rl_llm.model.layers import activate, project, rotate
from rl_llm.model.weights import LORA_A, LORA_B


def embed(config: ModelConfig, params: dict, tokens: jax.Array) -> jax.Array:
    """Tokens i32[...] -> f32[..., D]."""
    embedded = jnp.take(params["embedding"], tokens, axis=0)
    if not config.embedding_scale:
        return embedded
    scale = jnp.asarray(config.width**0.5, config.compute_dtype)  # rounded, as these models were trained
    return embedded * scale.astype(jnp.float32)


def normalize(config: ModelConfig, x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / rms(x) * scale over the last axis (arXiv 1910.07467, eq. 4), in float32; 1 + scale with unit_offset_norms."""
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    scale = 1.0 + scale if config.unit_offset_norms else scale
    normed = x * jax.lax.rsqrt(mean_square + config.norm_epsilon)
    return normed * jax.lax.broadcast_in_dim(scale, x.shape, (x.ndim - 1,))


def apply_projection(config: ModelConfig, weights: dict, name: str, x: jax.Array, contract: int = 1) -> jax.Array:
    """Apply a layer's projection by its name, with its bias and adapter if it has them; shapes as in `project`."""
    dtype = jnp.dtype(config.compute_dtype)
    output = project(x, weights[name], dtype, contract, weights.get(f"{name}_bias"))
    if config.lora is None or name not in config.lora.targets:
        return output
    inner = project(x, weights[name + LORA_A], dtype, contract)
    return output + config.lora.scale * project(inner, weights[name + LORA_B], dtype)


def queries_keys_values(
    config: ModelConfig, weights: dict, x: jax.Array, tables: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, KeyValues]:
    """Rotated queries f32[B, T, H, h], and rotated keys and values f32[B, J, T, h], of a layer's input f32[B, T, D]."""
    normed = normalize(config, x, weights["attention_norm"])
    queries, keys, values = (apply_projection(config, weights, name, normed) for name in ("query", "key", "value"))
    if config.qk_norm:
        queries = normalize(config, queries, weights["query_norm"])
        keys = normalize(config, keys, weights["key_norm"])
    return rotate(queries, tables), KeyValues(jnp.moveaxis(rotate(keys, tables), 1, 2), jnp.moveaxis(values, 1, 2))


def finish_layer(
    config: ModelConfig, weights: dict, x: jax.Array, context: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Complete a layer from its input x f32[B, T, D] and its attention's output f32[B, T, H, h].

    Returns the layer's output f32[B, T, D] and the experts that read each token, i32[B, T, k] (None without experts).
    """
    output = apply_projection(config, weights, "output", context, contract=2)
    if config.sandwich_norms:
        output = normalize(config, output, weights["attention_post_norm"])
    x = x + output
    normed = normalize(config, x, weights["mlp_norm"])
    read = apply_experts if config.experts else _feed_forward
    output, chosen = read(config, weights, normed)
    if config.sandwich_norms:
        output = normalize(config, output, weights["mlp_post_norm"])
    return x + output, chosen


def _feed_forward(config: ModelConfig, weights: dict, x: jax.Array) -> tuple[jax.Array, None]:
    """down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202, eq. 6), or with GELU instead of SiLU."""
    gate, up = (apply_projection(config, weights, name, x) for name in ("gate", "up"))
    return apply_projection(config, weights, "down", activate(gate, config.activation) * up), None
