"""The pieces of a transformer layer: normalisation, rotary positions, products in the compute type, attention.

Letters are those of `rl_llm.types`; G = H / J is the number of query heads that share one key/value head.
"""

from functools import reduce
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row whose keys are all masked (padding) gives numbers and not NaN


class KeyValues(NamedTuple):
    """Keys and values [M, J, S, h] (with a leading layer axis where a whole model's are meant)."""

    keys: jax.Array
    values: jax.Array


class Source(NamedTuple):
    """Keys and values that queries may look at, `mask` bool[M or B, 1 or T, S] saying which. M rows serve B = M * K
    queries.
    """

    keys: jax.Array
    values: jax.Array
    mask: jax.Array


def project(x: jax.Array, weight: jax.Array, dtype: jnp.dtype, contract: int = 1) -> jax.Array:
    """x [B, T, ...in] times weight [...in, ...out] -> float32 [B, T, ...out], the first `contract` axes of weight
    being the input.

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
    )
    return product.reshape(B, T, *weight.shape[contract:])


def precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """float32 means float32: accelerators would round the inputs of its products to fewer bits by default."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / rms(x) * scale over the last axis (arXiv 1910.07467, eq. 4), in float32."""
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + epsilon) * jax.lax.broadcast_in_dim(scale, x.shape, (x.ndim - 1,))


def rotary_tables(positions: jax.Array, head_width: int, base: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin [..., 1, h/2] for positions [...]; the singleton is the head axis (arXiv 2104.09864, eq. 34)."""
    frequencies = base ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = positions.astype(jnp.float32)[..., None, None] * jax.lax.expand_dims(
        frequencies, tuple(range(positions.ndim + 1))
    )
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding of x [..., heads, h]; the two halves of h are the pairs, as in Llama and Qwen weights."""
    cos, sin = tables
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(queries: jax.Array, sources: tuple[Source, ...], dtype: jnp.dtype) -> jax.Array:
    """Softmax attention of queries [B, T, H, h] over the union of the sources -> [B, T, H, h].

    A source with M < B rows is shared by K = B / M consecutive queries rows: a prompt is read once for all its
    responses, as one matrix product with K * T * G rows instead of K products.
    """
    B, T, H, h = queries.shape
    J = sources[0].keys.shape[1]
    queries = (queries * h**-0.5).reshape(B, T, J, H // J, h)
    logits = [_logits(queries, source, dtype) for source in sources]
    top = jax.lax.stop_gradient(jnp.max(jnp.stack([x.max(-1, keepdims=True) for x in logits]), axis=0))
    weights = [jnp.exp(x - top) for x in logits]
    total = reduce(jnp.add, [x.sum(-1, keepdims=True) for x in weights])
    context = reduce(jnp.add, [_weighted_values(w, source, dtype) for w, source in zip(weights, sources, strict=True)])
    return jnp.moveaxis(context / total, 1, 2).reshape(B, T, H, h)


def _logits(queries: jax.Array, source: Source, dtype: jnp.dtype) -> jax.Array:
    """f32[B, J, T, G, S] from queries [B, T, J, G, h], masked."""
    B, T, J, G, h = queries.shape
    M, _, S, _ = source.keys.shape
    rows = jnp.moveaxis(queries.reshape(M, B // M * T, J, G, h), 2, 1).reshape(M, J, -1, h)
    logits = _product("mjrh,mjsh->mjrs", rows, source.keys, dtype)
    logits = jnp.moveaxis(logits.reshape(M, J, B // M, T, G, S), 2, 1).reshape(B, J, T, G, S)
    mask = jnp.repeat(source.mask, B // source.mask.shape[0], axis=0)
    return jnp.where(mask[:, None, :, None, :], logits, MASKED)


def _weighted_values(weights: jax.Array, source: Source, dtype: jnp.dtype) -> jax.Array:
    """f32[B, J, T, G, h] from weights [B, J, T, G, S]."""
    B, J, T, G, S = weights.shape
    M, _, _, h = source.values.shape
    rows = jnp.moveaxis(weights.reshape(M, B // M, J, T, G, S), 2, 1).reshape(M, J, -1, S)
    context = _product("mjrs,mjsh->mjrh", rows, source.values, dtype)
    return jnp.moveaxis(context.reshape(M, J, B // M, T, G, h), 2, 1).reshape(B, J, T, G, h)


def _product(equation: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jnp.einsum(
        equation, a.astype(dtype), b.astype(dtype), precision=precision(dtype), preferred_element_type=jnp.float32
    )
