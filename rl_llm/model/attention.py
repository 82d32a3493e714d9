"""Attention: a plain form for every platform and shape, and fused kernels chosen by platform.

`kernel_for` alone decides where a fused kernel replaces the plain form. Fused kernels never hold a matrix of all
queries by all keys. tests/model/test_attention.py compares all forms.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rl_llm.model.config import ModelConfig
from rl_llm.model.layers import precision

MASKED = -1e30  # finite, so that rows with all keys masked (padding) give numbers and not NaN
BLOCK = 128  # the TPU kernel's blocks of queries and keys are multiples of this
LARGEST_BLOCK = 512
Kernel = Literal["cudnn", "splash"]
Segments = tuple[jax.Array, jax.Array]  # numbers of the queries' segments i32[B, T], and of the keys' i32[B, S]


class KeyValues(NamedTuple):
    """Keys and values [M, J, S, h]; [L, M, J, S, h] for all layers of a model."""

    keys: jax.Array
    values: jax.Array


def attention(
    config: ModelConfig, queries: jax.Array, sources: Sequence[KeyValues], masks: Sequence[jax.Array]
) -> jax.Array:
    """Softmax attention of queries f32[B, T, H, h] over the union of `sources` -> f32[B, T, H, h].

    A source has keys and values [M, J, S, h] and a mask bool[M or B, 1 or T, S], True where a query sees a key. Its M
    rows serve B = M * K queries: K consecutive rows share a prompt, which is read once for all its responses, as one
    matrix product with K * T * G rows instead of K products.
    """
    chex.assert_rank([queries, *masks], [4, *[3] * len(masks)])
    for source in sources:
        chex.assert_shape(source, (None, config.kv_heads, None, config.head_width))
    dtype = jnp.dtype(config.compute_dtype)
    B, T, H, h = queries.shape
    J = config.kv_heads
    queries = (queries * (config.query_scalar or h) ** -0.5).reshape(B, T, J, H // J, h)
    logits = [_logits(queries, *source, dtype) for source in zip(sources, masks, strict=True)]
    top = jax.lax.stop_gradient(jnp.max(jnp.stack([x.max(-1, keepdims=True) for x in logits]), axis=0))
    weights = [jnp.exp(x - top) for x in logits]
    total = reduce(jnp.add, [x.sum(-1, keepdims=True) for x in weights])
    context = reduce(jnp.add, [_weighted_values(w, source, dtype) for w, source in zip(weights, sources, strict=True)])
    return jnp.moveaxis(context / total, 1, 2).reshape(B, T, H, h)


def _logits(queries: jax.Array, source: KeyValues, mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """f32[B, J, T, G, S] from queries [B, T, J, G, h], masked."""
    B, T, J, G, h = queries.shape
    M, _, S, _ = source.keys.shape
    rows = jnp.moveaxis(queries.reshape(M, B // M * T, J, G, h), 2, 1).reshape(M, J, -1, h)
    logits = _product("mjrh,mjsh->mjrs", rows, source.keys, dtype)
    logits = jnp.moveaxis(logits.reshape(M, J, B // M, T, G, S), 2, 1).reshape(B, J, T, G, S)
    mask = jnp.repeat(mask, B // mask.shape[0], axis=0)
    return jnp.where(mask[:, None, :, None, :], logits, MASKED)


def _weighted_values(weights: jax.Array, source: KeyValues, dtype: jnp.dtype) -> jax.Array:
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


def platform() -> str:
    """Platform of the program being traced: that of the mesh of `compile_program`, "cpu" without one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return "cpu" if device is None else str(device.platform)


def kernel_for(config: ModelConfig, queries: int) -> Kernel | None:
    """The fused kernel that reads `queries` tokens at a time on this platform, or None for the plain form."""
    if queries < BLOCK:
        return None
    if platform() == "tpu" and config.head_width % 64 == 0:
        return "splash"
    if platform() in ("gpu", "cuda", "rocm") and config.compute_dtype == "bfloat16":
        return "cudnn"
    return None


def fused_attention(
    kernel: Kernel,
    config: ModelConfig,
    queries: jax.Array,
    own: KeyValues,
    prompt: KeyValues | None = None,
    own_segments: jax.Array | None = None,
    prompt_lengths: jax.Array | None = None,
    window: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention of queries f32[B, T, H, h] through a fused kernel -> f32[B, T, H, h].

    Queries see their own keys and values [B, J, T, h], preceded by the prompt's [N, J, P, h] if given, and with
    `window` only the last `window` tokens. A token sees its own segment only: own_segments [B, T] numbers them (0 or
    False: no token). Without it, and in prompts, every token is of segment 1. Prompts are moved to the end of their
    slots, so that distances between slots are distances between tokens.
    """
    chex.assert_rank(queries, 4)
    chex.assert_shape(own, (queries.shape[0], config.kv_heads, queries.shape[1], config.head_width))
    B, T = queries.shape[:2]
    own_segments = jnp.ones((B, T), jnp.int32) if own_segments is None else own_segments.astype(jnp.int32)
    (keys, values), segments = own, (own_segments, own_segments)
    if prompt is not None and prompt_lengths is not None:
        N, P = prompt_lengths.shape[0], prompt.keys.shape[2]
        slots = (jnp.arange(P)[None] - P + prompt_lengths[:, None]) % P
        moved = (jnp.take_along_axis(x, slots[:, None, :, None], axis=2) for x in prompt)
        valid = jnp.arange(P)[None] >= P - prompt_lengths[:, None]
        pairs = zip(moved, own, strict=True)
        keys, values = (jnp.concatenate([jnp.repeat(x, B // N, axis=0), y], axis=2) for x, y in pairs)
        prompt_segments = jnp.repeat(valid.astype(jnp.int32), B // N, axis=0)
        segments = (own_segments, jnp.concatenate([prompt_segments, own_segments], axis=1))
    dtype, scale = jnp.dtype(config.compute_dtype), (config.query_scalar or config.head_width) ** -0.5
    attend = _cudnn if kernel == "cudnn" else partial(_splash, interpret=interpret)
    inputs = ((queries * scale).astype(dtype), keys.astype(dtype), values.astype(dtype), segments)
    return attend(*inputs, window=window).astype(jnp.float32)


def _cudnn(queries: jax.Array, keys: jax.Array, values: jax.Array, segments: Segments, window: int | None) -> jax.Array:
    """Attention of scaled queries [B, T, H, h] over keys and values [B, J, S, h]; the last T are the queries' own."""
    T, S = queries.shape[1], keys.shape[2]
    distance = jnp.arange(S - T, S)[:, None] - jnp.arange(S)[None]
    seen = (distance >= 0) & (distance < (S if window is None else window))
    of_queries, of_keys = segments
    mask = seen[None] & (of_queries[:, :, None] == of_keys[:, None])
    return jax.nn.dot_product_attention(
        queries,
        jnp.moveaxis(keys, 1, 2),
        jnp.moveaxis(values, 1, 2),
        mask=mask[:, None],
        scale=1.0,
        implementation="xla" if platform() == "cpu" else "cudnn",
    )


def _splash(
    queries: jax.Array, keys: jax.Array, values: jax.Array, segments: Segments, window: int | None, interpret: bool
) -> jax.Array:
    """The same through the TPU's splash kernel, padded to whole blocks.

    On a mesh, each device attends for its rows and heads.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, S = queries.shape[1], keys.shape[2]
    block = min(LARGEST_BLOCK, -(-T // BLOCK) * BLOCK)
    queries = jnp.moveaxis(jnp.pad(queries, ((0, 0), (0, -T % block), (0, 0), (0, 0))), 1, 2)
    keys, values = (jnp.pad(x, ((0, 0), (0, 0), (0, -S % block), (0, 0))) for x in (keys, values))
    ids = splash.SegmentIds(*(jnp.pad(x, ((0, 0), (0, -x.shape[1] % block))) for x in segments))
    shape, offset = (queries.shape[2], keys.shape[2]), S - T
    mask = splash.CausalMask(shape, offset) if window is None else splash.LocalMask(shape, (window - 1, 0), offset)

    def on_device(queries: jax.Array, keys: jax.Array, values: jax.Array, ids: Segments) -> jax.Array:
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([mask] * queries.shape[1]),
            block_sizes=splash.BlockSizes(*(block,) * 8),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.vmap(kernel)(queries, keys, values, ids)

    local: Callable[..., jax.Array] = on_device
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        rows, heads = PartitionSpec(("data", "fsdp")), PartitionSpec(("data", "fsdp"), "tensor")
        local = jax.shard_map(on_device, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return jnp.moveaxis(local(queries, keys, values, ids), 1, 2)[:, :T]
