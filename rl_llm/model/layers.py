"""Building blocks of a layer: products in the compute type, activation, rotary positions."""

import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from rl_llm.model.config import RopeScaling, YarnScaling


def project(
    x: jax.Array, weight: jax.Array, dtype: jnp.dtype, contract: int = 1, bias: jax.Array | None = None
) -> jax.Array:
    """Multiply x [B, T, ...in] by weight [...in, ...out] and add bias [...out] -> f32[B, T, ...out].

    The first `contract` axes of the weight are the input. All tokens go through one plain matrix product: for products
    of higher rank, XLA's CPU backend makes transposed copies, most of all in the gradients.
    """
    chex.assert_equal(x.shape[2:], weight.shape[:contract])
    B, T = x.shape[:2]
    fan_in = math.prod(weight.shape[:contract])
    product = jnp.dot(
        x.reshape(B * T, fan_in).astype(dtype),
        weight.reshape(fan_in, -1).astype(dtype),
        precision=precision(dtype),
        preferred_element_type=jnp.float32,
    ).reshape(B, T, *weight.shape[contract:])
    return product if bias is None else product + jnp.broadcast_to(bias, product.shape)


def precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """Full precision for float32: by default, accelerators round the inputs of products to fewer bits."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def activate(x: jax.Array, kind: Literal["silu", "gelu_tanh"]) -> jax.Array:
    """SiLU, x sigmoid(x), or the tanh form of GELU (arXiv 1606.08415)."""
    return jax.nn.silu(x) if kind == "silu" else jax.nn.gelu(x, approximate=True)


def rotary_tables(
    positions: jax.Array, head_width: int, base: float, scaling: RopeScaling | YarnScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin [..., 1, h/2] for positions [...]; the singleton is the head axis (arXiv 2104.09864, eq. 34).

    With YaRN both are multiplied by its attention factor.
    """
    frequencies = base ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    if isinstance(scaling, YarnScaling):
        frequencies = yarn_frequencies(frequencies, base, scaling)
    elif scaling is not None:
        frequencies = scale_frequencies(frequencies, scaling)
    positions = positions.astype(jnp.float32)[..., None, None]
    angles = positions * jax.lax.expand_dims(frequencies, range(positions.ndim - 1))
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if not isinstance(scaling, YarnScaling):
        return cos, sin
    factor = scaling.attention_factor or yarn_magnitude(scaling.factor)
    return factor * cos, factor * sin


def yarn_magnitude(factor: float, slope: float = 1.0) -> float:
    """Factor of queries and keys after positions were stretched by `factor` (arXiv 2309.00071, eq. 22)."""
    return 0.1 * slope * math.log(factor) + 1.0 if factor > 1 else 1.0


def yarn_frequencies(frequencies: jax.Array, base: float, scaling: YarnScaling) -> jax.Array:
    """Apply YaRN to rotary frequencies of a base, in radians per position (arXiv 2309.00071, eq. 16 to 19)."""
    last = 2 * len(frequencies) - 1

    def index(turns: float) -> float:
        """Index of the frequency that makes so many turns over the original positions."""
        wavelength = scaling.original_positions / turns
        return len(frequencies) * math.log(wavelength / (2 * math.pi)) / math.log(base)

    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, last)
    width = high - low or 0.001  # a step from one frequency to the next
    stretched = jnp.clip((jnp.arange(len(frequencies)) - low) / width, 0.0, 1.0)
    return stretched * frequencies / scaling.factor + (1 - stretched) * frequencies


def scale_frequencies(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Apply a RopeScaling to rotary frequencies, in radians per position."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_positions * frequencies / (2 * math.pi)  # over the original context
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding of x [..., heads, h]. Pairs are the two halves of h, as in Llama and Qwen weights."""
    cos, sin = tables
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
