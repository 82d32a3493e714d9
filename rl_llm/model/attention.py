"""Attention: what queries make of the keys and values that they may look at, and with which kernel on which platform.

The plain form serves every platform and every shape; `kernel_for` is the one place that decides where a fused kernel
takes over, which never holds a matrix of all queries by all keys. All forms are compared in tests/test_attention.py.
Letters are those of `rl_llm.types`; G = H / J is the number of query heads that share one key/value head.
"""

from functools import partial, reduce
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rl_llm.model.config import ModelConfig
from rl_llm.model.layers import precision

MASKED = -1e30  # finite, so that a row whose keys are all masked (padding) gives numbers and not NaN
BLOCK = 128  # queries and keys that the fused TPU kernel takes at a time are multiples of this
LARGEST_BLOCK = 512
Kernel = Literal["cudnn", "splash"]


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


def attention(
    queries: jax.Array, sources: tuple[Source, ...], dtype: jnp.dtype, query_scalar: float | None = None
) -> jax.Array:
    """Softmax attention of queries [B, T, H, h] over the union of the sources -> [B, T, H, h].

    A source with M < B rows is shared by K = B / M consecutive queries rows: a prompt is read once for all its
    responses, as one matrix product with K * T * G rows instead of K products.
    """
    B, T, H, h = queries.shape
    J = sources[0].keys.shape[1]
    queries = (queries * (query_scalar or h) ** -0.5).reshape(B, T, J, H // J, h)
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


def platform() -> str:
    """What the program is compiled for: the platform of the mesh of `mesh.compile`, "cpu" without one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return "cpu" if device is None else str(device.platform)


def kernel_for(config: ModelConfig, queries: int) -> Kernel | None:
    """The fused kernel that reads `queries` tokens at a time, or None for the plain form: decided by the platform, and
    by what each kernel can do.
    """
    if queries < BLOCK:
        return None
    if platform() == "tpu" and config.head_width % 64 == 0:
        return "splash"
    if platform() in ("gpu", "cuda", "rocm") and config.compute_dtype == "bfloat16":
        return "cudnn"
    return None


def fused(
    kernel: Kernel,
    config: ModelConfig,
    queries: jax.Array,
    own: KeyValues,
    own_segments: jax.Array | None,
    prompt: KeyValues | None,
    prompt_lengths: jax.Array | None,
    window: int | None,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention of queries [B, T, H, h] over their own keys and values, and over the prompt's [N, J, P, h]
    before them -> [B, T, H, h] in float32; over the last `window` of them if given.

    A token sees those of its own segment only: i32[B, T] numbers them, 0 where there is no token; without it, and in
    prompts, all are of segment 1. Prompts are moved to the end of their slots, so that slots are as far apart as the
    tokens in them.
    """
    B, T = queries.shape[:2]
    of_queries = jnp.ones((B, T), jnp.int32) if own_segments is None else own_segments
    (keys, values), of_keys = own, of_queries
    if prompt is not None and prompt_lengths is not None:
        N, P = prompt_lengths.shape[0], prompt.keys.shape[2]
        slots = (jnp.arange(P)[None] - P + prompt_lengths[:, None]) % P
        moved = (jnp.take_along_axis(x, slots[:, None, :, None], axis=2) for x in prompt)
        before = jnp.arange(P)[None] >= P - prompt_lengths[:, None]
        keys, values = (
            jnp.concatenate([jnp.repeat(x, B // N, axis=0), y], axis=2) for x, y in zip(moved, own, strict=True)
        )
        of_keys = jnp.concatenate([jnp.repeat(before.astype(jnp.int32), B // N, axis=0), of_queries], axis=1)
    dtype, scale = jnp.dtype(config.compute_dtype), (config.query_scalar or config.head_width) ** -0.5
    attend = _cudnn if kernel == "cudnn" else partial(_splash, interpret=interpret)
    inputs = ((queries * scale).astype(dtype), keys.astype(dtype), values.astype(dtype), of_queries, of_keys)
    return attend(*inputs, window=window).astype(jnp.float32)


def _cudnn(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    of_queries: jax.Array,
    of_keys: jax.Array,
    window: int | None,
) -> jax.Array:
    """Scaled queries [B, T, H, h] of segments i32[B, T], keys and values [B, J, S, h] of segments i32[B, S]; the last T
    are the queries' own.
    """
    T, S = queries.shape[1], keys.shape[2]
    apart = jnp.arange(S - T, S)[:, None] - jnp.arange(S)[None]
    seen = (apart >= 0) & (apart < (S if window is None else window))
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
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    of_queries: jax.Array,
    of_keys: jax.Array,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    """The same through the TPU's splash kernel. On a mesh each device attends for its rows and heads."""
    T, S = queries.shape[1], keys.shape[2]
    block = min(LARGEST_BLOCK, -(-T // BLOCK) * BLOCK)
    queries = jnp.moveaxis(jnp.pad(queries, ((0, 0), (0, -T % block), (0, 0), (0, 0))), 1, 2)
    keys, values = (jnp.pad(x, ((0, 0), (0, 0), (0, -S % block), (0, 0))) for x in (keys, values))
    of_queries = jnp.pad(of_queries, ((0, 0), (0, -T % block)))
    of_keys = jnp.pad(of_keys, ((0, 0), (0, -S % block)))
    part = partial(_splash_part, block=block, offset=S - T, window=window, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        rows, heads = PartitionSpec(("data", "fsdp")), PartitionSpec(("data", "fsdp"), "tensor")
        part = jax.shard_map(part, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False)
    return jnp.moveaxis(part(queries, keys, values, of_queries, of_keys), 1, 2)[:, :T]


def _splash_part(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    of_queries: jax.Array,
    of_keys: jax.Array,
    *,
    block: int,
    offset: int,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, H, T, _ = queries.shape
    shape = (T, keys.shape[2])
    seen = (
        splash.CausalMask(shape, offset) if window is None else splash.LocalMask(shape, (window - 1, 0), offset=offset)
    )
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([seen] * H),
        block_sizes=splash.BlockSizes(*(block,) * 8),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def of_row(queries: jax.Array, keys: jax.Array, values: jax.Array, q: jax.Array, kv: jax.Array) -> jax.Array:
        return kernel(queries, keys, values, splash.SegmentIds(q=q, kv=kv))

    return jax.vmap(of_row)(queries, keys, values, of_queries, of_keys)
