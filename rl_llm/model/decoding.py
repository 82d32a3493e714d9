"""Read one response token at a time, in the form that suits the platform.

On CPU the layers are unrolled, each with a cache of its own: a stacked cache would be copied whole at every step. On
accelerators one scan over the layers carries the stacked caches: XLA updates them in place if the same program made
them (otherwise it copies them into its preferred layout), and compiles one layer instead of L. The numbers are equal.
"""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from rl_llm.model.attention import KeyValues, attention, platform
from rl_llm.model.block import embed, finish_layer, normalize, queries_keys_values
from rl_llm.model.config import ModelConfig
from rl_llm.model.views import View, make_views, prompt_mask, select_view
from rl_llm.model.weights import weight_table
from rl_llm.parallel import mesh as meshes

Caches = Any  # KeyValues [B, J, S, h] of each layer on CPU, stacked [L, B, J, S, h] on accelerators


class DecodeContext(NamedTuple):
    """Inputs that stay the same during a generation (made by `decode_context`).

    `lengths` i32[N] of the prompts; weights in the compute type and the prompts' keys and values, per layer on CPU,
    stacked on accelerators.
    """

    lengths: jax.Array
    weights: Any
    prompts: Any


def decode_context(config: ModelConfig, params: dict, lengths: jax.Array, prompt_cache: KeyValues) -> DecodeContext:
    """Prepare a generation once, outside its loop, from the prompts' lengths i32[N] and cache [L, N, J, P, h].

    Slices of weights taken inside the loop would be copied at every step, and float32 masters of a bfloat16 model
    would be read at twice the bytes.
    """
    chex.assert_rank(lengths, 1)
    chex.assert_shape(prompt_cache, (config.layers, lengths.shape[0], config.kv_heads, None, config.head_width))
    dtype = jnp.dtype(config.compute_dtype)

    def stays_float32(name: str, weight: jax.Array) -> bool:
        return weight.ndim == 2 or name.endswith("_bias") or name == "router"

    weights = {name: w if stays_float32(name, w) else w.astype(dtype) for name, w in params["layers"].items()}
    if platform() != "cpu":
        table = weight_table(config)
        weights = {name: meshes.pin_gathered(w, table[f"layers/{name}"]) for name, w in weights.items()}
        return DecodeContext(lengths, weights, prompt_cache)
    slices = (partial(jax.tree.map, lambda x, i=index: x[i]) for index in range(config.layers))
    return DecodeContext(lengths, *zip(*((take(weights), take(prompt_cache)) for take in slices), strict=True))


def init_cache(config: ModelConfig, rows: int, slots: int) -> Caches:
    """Empty caches for `rows` responses of at most `slots` tokens; on CPU without slots yet (see `grow_cache`).

    Their dtype is the one attention reads: on CPU float32, because converting 16-bit values costs more than reading
    twice the bytes.
    """
    J, h = config.kv_heads, config.head_width
    if platform() == "cpu":
        return [KeyValues(*(jnp.zeros((rows, J, 0, h)) for _ in range(2))) for _ in range(config.layers)]
    return KeyValues(*(jnp.zeros((config.layers, rows, J, slots, h), config.compute_dtype) for _ in range(2)))


def grow_cache(caches: Caches, span: int) -> Caches:
    """Caches of at least `span` slots.

    On accelerators all slots exist from the start, since growing needs the old and the new ones at once; a step looks
    at the first `span`.
    """
    if platform() != "cpu":
        return caches
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, span - x.shape[2]), (0, 0))), caches)


def decode(
    config: ModelConfig,
    params: dict,
    context: DecodeContext,
    tokens: jax.Array,
    step: jax.Array,
    caches: Caches,
    span: int,
) -> tuple[jax.Array, Caches]:
    """Read response token number `step` (i32[], less than `span`) of each row, i32[B].

    Attention looks at the first `span` slots. Returns hidden f32[B, D] and the caches with slot `step` filled.
    """
    chex.assert_rank([tokens, step], [1, 0])
    N, P = context.lengths.shape[0], jax.tree.leaves(context.prompts)[0].shape[-2]
    chex.assert_is_divisible(tokens.shape[0], N)
    positions = jnp.repeat(context.lengths, tokens.shape[0] // N)[:, None] + step
    slots = jnp.arange(span)

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        own = slots <= step if window is None else (slots <= step) & (step - slots < window)
        return prompt_mask(context.lengths, P, step[None], window), own[None, None, :]

    views = make_views(config, positions, masks)
    x = embed(config, params, tokens[:, None])
    run_layers = _unrolled if platform() == "cpu" else _scanned
    x, caches = run_layers(config, context, views, x, step, caches, span)
    return normalize(config, x[:, 0], params["final_norm"]), caches


def _unrolled(
    config: ModelConfig, context: DecodeContext, views: View, x: jax.Array, step: jax.Array, caches: Caches, span: int
) -> tuple[jax.Array, Caches]:
    filled = []
    for index, (weights, prompt, cache) in enumerate(zip(context.weights, context.prompts, caches, strict=True)):
        view = select_view(views, int(config.is_sliding(index)))
        queries, new = queries_keys_values(config, weights, x, view.tables)
        own = jax.tree.map(lambda old, fresh: _write(old, fresh, (0, 0, step, 0)), cache, new)
        filled.append(own)
        x, _ = finish_layer(config, weights, x, attention(config, queries, (prompt, own), view.masks))
    return x, filled


def _scanned(
    config: ModelConfig, context: DecodeContext, views: View, x: jax.Array, step: jax.Array, caches: Caches, span: int
) -> tuple[jax.Array, Caches]:
    def layer(carry: tuple[jax.Array, KeyValues], inputs: tuple) -> tuple[tuple[jax.Array, KeyValues], None]:
        (x, caches), (weights, prompt, index, kind) = carry, inputs
        view = select_view(views, kind)
        queries, new = queries_keys_values(config, weights, x, view.tables)
        caches = jax.tree.map(lambda old, fresh: _write(old, fresh[None], (index, 0, 0, step, 0)), caches, new)
        _, B, J, _, h = caches.keys.shape
        own = jax.tree.map(lambda c: jax.lax.dynamic_slice(c, (index, 0, 0, 0, 0), (1, B, J, span, h))[0], caches)
        x, _ = finish_layer(config, weights, x, attention(config, queries, (prompt, own), view.masks))
        return (meshes.pin_rows(x), caches), None

    kinds = jnp.array([config.is_sliding(index) for index in range(config.layers)], jnp.int32)
    inputs = (context.weights, context.prompts, jnp.arange(config.layers), kinds)
    (x, caches), _ = jax.lax.scan(layer, (meshes.pin_rows(x), caches), inputs)
    return x, caches


def _write(cache: jax.Array, new: jax.Array, start: tuple) -> jax.Array:
    return jax.lax.dynamic_update_slice(cache, new.astype(cache.dtype), start)
