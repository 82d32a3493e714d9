"""Reading one token more, at every step of a generation: in the form that suits the platform.

On CPU the layers are unrolled and each has a cache of its own: there a stacked cache is copied whole at every step. On
accelerators one scan runs over the layers with the caches of all of them in its carry: XLA updates it in place if it
was made in the same program (otherwise it copies it into the layout that it likes better), and compiles one layer
instead of L. The numbers are the same.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rl_llm.model.attention import KeyValues, platform
from rl_llm.model.block import after_attention, attend, embed, normalized, queries_keys_values
from rl_llm.model.config import ModelConfig
from rl_llm.model.views import View, prompt_mask, view_of, views_of
from rl_llm.model.weights import weight_table
from rl_llm.parallel import mesh as meshes

Caches = Any  # KeyValues of [B, J, S, h] for each layer, or of [L, B, J, S, h] for all of them


class Reader(NamedTuple):
    """What stays the same while responses are read token by token (made by `reader`): prompts' lengths i32[N], and for
    each layer, or stacked, its weights in the compute type and the keys and values of the prompts.
    """

    lengths: jax.Array
    layers: Any
    prompts: Any


def decode_context(config: ModelConfig, params: dict, lengths: jax.Array, prompt_cache: KeyValues) -> Reader:
    """Made once per generation: slices of weights taken inside its loop would be copied at every step, and float32
    masters of a bfloat16 model would be read at twice the bytes.
    """
    dtype = jnp.dtype(config.compute_dtype)

    def exact(name: str, weight: jax.Array) -> bool:
        return weight.ndim == 2 or name.endswith("_bias") or name == "router"

    layers = {name: w if exact(name, w) else w.astype(dtype) for name, w in params["layers"].items()}
    if platform() != "cpu":
        table = weight_table(config)
        layers = {name: meshes.pin_gathered(w, table[f"layers/{name}"]) for name, w in layers.items()}
        return Reader(lengths, layers, prompt_cache)
    each = (partial(jax.tree.map, lambda x, i=index: x[i]) for index in range(config.layers))
    return Reader(lengths, *zip(*((take(layers), take(prompt_cache)) for take in each), strict=True))


def init_cache(config: ModelConfig, rows: int, slots: int) -> Caches:
    """Empty caches for `rows` responses of at most `slots` tokens; on CPU with no slots yet (see `grow_cache`).

    The dtype is the one attention reads. On CPU that is float32: converting 16-bit values costs more than reading
    twice the bytes.
    """
    J, h = config.kv_heads, config.head_width
    if platform() == "cpu":
        return [KeyValues(*(jnp.zeros((rows, J, 0, h)) for _ in range(2))) for _ in range(config.layers)]
    return KeyValues(*(jnp.zeros((config.layers, rows, J, slots, h), config.compute_dtype) for _ in range(2)))


def grow_cache(caches: Caches, span: int) -> Caches:
    """Caches of at least `span` slots. Those of accelerators have all slots from the beginning, since growing needs the
    old ones and the new ones at once; a step looks at the first `span` of them.
    """
    if platform() != "cpu":
        return caches
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, span - x.shape[2]), (0, 0))), caches)


def decode(
    config: ModelConfig, params: dict, read: Reader, tokens: jax.Array, step: jax.Array, caches: Caches, span: int
) -> tuple[jax.Array, Caches]:
    """Read the `step`-th response token i32[B] -> hidden f32[B, D] and the caches with slot `step` filled. `step` is
    less than `span`, the slots that are looked at.
    """
    N, P = read.lengths.shape[0], jax.tree.leaves(read.prompts)[0].shape[-2]
    positions = jnp.repeat(read.lengths, tokens.shape[0] // N)[:, None] + step
    slots = jnp.arange(span)

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        own = slots <= step if window is None else (slots <= step) & (step - slots < window)
        return prompt_mask(read.lengths, P, step[None], window), own[None, None, :]

    views = views_of(config, positions, masks)
    x = embed(config, params, tokens[:, None])
    of_layers = _one_by_one if platform() == "cpu" else _in_a_scan
    x, caches = of_layers(config, read, views, x, step, caches, span)
    return normalized(config, x[:, 0], params["final_norm"]), caches


def _one_by_one(
    config: ModelConfig, read: Reader, views: View, x: jax.Array, step: jax.Array, caches: Caches, span: int
) -> tuple[jax.Array, Caches]:
    filled = []
    for index, (weights, prompt, cache) in enumerate(zip(read.layers, read.prompts, caches, strict=True)):
        view = view_of(views, int(config.is_sliding(index)))
        queries, new = queries_keys_values(config, weights, x, view.tables)
        own = jax.tree.map(lambda old, fresh: _write(old, fresh, (0, 0, step, 0)), cache, new)
        filled.append(own)
        x, _ = after_attention(config, weights, x, attend(config, queries, (prompt, own), view.masks))
    return x, filled


def _in_a_scan(
    config: ModelConfig, read: Reader, views: View, x: jax.Array, step: jax.Array, caches: Caches, span: int
) -> tuple[jax.Array, Caches]:
    def layer(carry: tuple[jax.Array, KeyValues], inputs: tuple) -> tuple[tuple[jax.Array, KeyValues], None]:
        (x, caches), (weights, prompt, index, kind) = carry, inputs
        view = view_of(views, kind)
        queries, new = queries_keys_values(config, weights, x, view.tables)
        caches = jax.tree.map(lambda old, fresh: _write(old, fresh[None], (index, 0, 0, step, 0)), caches, new)
        _, B, J, _, h = caches.keys.shape
        own = jax.tree.map(lambda c: jax.lax.dynamic_slice(c, (index, 0, 0, 0, 0), (1, B, J, span, h))[0], caches)
        x, _ = after_attention(config, weights, x, attend(config, queries, (prompt, own), view.masks))
        return (meshes.pin_rows(x), caches), None

    kinds = jnp.array([config.is_sliding(index) for index in range(config.layers)], jnp.int32)
    inputs = (read.layers, read.prompts, jnp.arange(config.layers), kinds)
    (x, caches), _ = jax.lax.scan(layer, (meshes.pin_rows(x), caches), inputs)
    return x, caches


def _write(cache: jax.Array, new: jax.Array, start: tuple) -> jax.Array:
    return jax.lax.dynamic_update_slice(cache, new.astype(cache.dtype), start)
