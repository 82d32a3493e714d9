"""What tokens see: the rotary tables of their positions, and which keys of each source are before them.

Layers with a sliding window see otherwise than the others; both views are made once, and each layer takes its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rl_llm.model.config import ModelConfig
from rl_llm.model.layers import rotary_tables

FAR = 1 << 30  # a window that holds everything


class View(NamedTuple):
    """What the layers of one kind see: rotary tables, and a mask for each source of keys and values."""

    tables: tuple[jax.Array, jax.Array]
    masks: tuple[jax.Array, ...]


Masks = Callable[[int | None], tuple[jax.Array, ...]]  # those of a window


def views_of(config: ModelConfig, positions: jax.Array, masks: Masks) -> View:
    """What layers see that read tokens at `positions` [B or 1, T]: one view, or with sliding windows two, stacked."""
    full = rotary_tables(positions, config.head_width, config.rope_base, config.rope_scaling)
    if config.sliding is None:
        return View(full, masks(None))
    base = config.sliding.rope_base
    local = full if base is None else rotary_tables(positions, config.head_width, base)
    seen = View(full, masks(FAR)), View(local, masks(config.sliding.window))
    return jax.tree.map(lambda *kinds: jnp.stack(kinds), *seen)


def view_of(views: View, kind: jax.Array | int | None) -> View:
    """The view of a layer of a kind (1 for sliding)."""
    return views if kind is None or views.tables[0].ndim == 4 else jax.tree.map(lambda x: x[kind], views)


def own_mask(T: int, S: int, window: int | None) -> jax.Array:
    """bool[1, T, S]: the slots that a token sees of its own sequence, itself and those before, `window` in all."""
    apart = jnp.arange(T)[:, None] - jnp.arange(S)[None]
    seen = apart >= 0 if window is None else (apart >= 0) & (apart < window)
    return seen[None]


def positions_in(segments: jax.Array) -> jax.Array:
    """i32[B, S]: how many tokens of the same segment stand before each token of rows of segments i32[B, S]."""
    slots = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return slots - jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)


def prompt_mask(lengths: jax.Array, P: int, steps: jax.Array, window: int | None) -> jax.Array:
    """bool[N, 1 or T, P]: the prompt slots that hold a token, and that the response tokens `steps` i[T] see."""
    slots = jnp.arange(P)
    valid = (slots[None] < lengths[:, None])[:, None]
    if window is None:
        return valid
    apart = (lengths[:, None] + steps[None])[:, :, None] - slots[None, None]
    return valid & (apart < window)
