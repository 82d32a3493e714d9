"""The pieces of a transformer layer but for attention: products in the compute type, normalisation, rotary positions.

Letters are those of `rl_llm.types`.
"""

import math
from math import prod
from typing import Literal

import jax
import jax.numpy as jnp

from rl_llm.model.config import RopeScaling


def project(
    x: jax.Array, weight: jax.Array, dtype: jnp.dtype, contract: int = 1, bias: jax.Array | None = None
) -> jax.Array:
    """x [B, T, ...in] times weight [...in, ...out] (+ bias [...out]) -> float32 [B, T, ...out], the first `contract`
    axes of weight being the input.

    One plain matrix product over all tokens: XLA's CPU backend makes transposed copies for products of higher rank,
    most of all in the gradients.
    """
    B, T = x.shape[:2]
    fan_in = prod(weight.shape[:contract])
    product = jnp.dot(
        x.reshape(B * T, fan_in).astype(dtype),
        weight.reshape(fan_in, -1).astype(dtype),
        precision=precision(dtype),
        preferred_element_type=jnp.float32,
    ).reshape(B, T, *weight.shape[contract:])
    return product if bias is None else product + jnp.broadcast_to(bias, product.shape)


def precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """float32 means float32: accelerators would round the inputs of its products to fewer bits by default."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float, unit_offset: bool = False) -> jax.Array:
    """x / rms(x) * scale over the last axis (arXiv 1910.07467, eq. 4), in float32; * (1 + scale) with `unit_offset`."""
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    scale = 1.0 + scale if unit_offset else scale
    return x * jax.lax.rsqrt(mean_square + epsilon) * jax.lax.broadcast_in_dim(scale, x.shape, (x.ndim - 1,))


def activate(x: jax.Array, kind: Literal["silu", "gelu_tanh"]) -> jax.Array:
    """The nonlinearity of a gate: x sigmoid(x), or GELU in its tanh form (arXiv 1606.08415)."""
    return jax.nn.silu(x) if kind == "silu" else jax.nn.gelu(x, approximate=True)


def rotary_tables(
    positions: jax.Array, head_width: int, base: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin [..., 1, h/2] for positions [...]; the singleton is the head axis (arXiv 2104.09864, eq. 34)."""
    frequencies = scaled(base ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width), scaling)
    angles = positions.astype(jnp.float32)[..., None, None] * jax.lax.expand_dims(
        frequencies, tuple(range(positions.ndim + 1))
    )
    return jnp.cos(angles), jnp.sin(angles)


def scaled(frequencies: jax.Array, scaling: RopeScaling | None) -> jax.Array:
    """Rotary frequencies in radians per position, stretched as `RopeScaling` says."""
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_positions * frequencies / (2 * math.pi)  # in the positions first trained on
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding of x [..., heads, h]; the two halves of h are the pairs, as in Llama and Qwen weights."""
    cos, sin = tables
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
