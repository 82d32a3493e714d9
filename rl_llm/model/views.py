"""Rotary tables and attention masks, built once and shared by all layers of one kind.

Layers with a sliding window have tables and masks of their own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rl_llm.model.config import ModelConfig
from rl_llm.model.layers import rotary_tables

UNLIMITED = 1 << 30  # a window longer than any text


class View(NamedTuple):
    """Rotary tables, and a mask for each source of keys and values."""

    tables: tuple[jax.Array, jax.Array]
    masks: tuple[jax.Array, ...]


MaskBuilder = Callable[[int | None], tuple[jax.Array, ...]]  # masks for a window


def make_views(config: ModelConfig, positions: jax.Array, masks: MaskBuilder) -> View:
    """The view of tokens at `positions` i32[B or 1, T]; with sliding windows, two views (full, sliding) stacked."""
    full = rotary_tables(positions, config.head_width, config.rope_base, config.rope_scaling)
    if config.sliding is None:
        return View(full, masks(None))
    base = config.sliding.rope_base
    local = full if base is None else rotary_tables(positions, config.head_width, base)
    views = View(full, masks(UNLIMITED)), View(local, masks(config.sliding.window))
    return jax.tree.map(lambda *kinds: jnp.stack(kinds), *views)


def select_view(views: View, kind: jax.Array | int | None) -> View:
    """The view of a layer of a kind (1: sliding)."""
    return views if kind is None or views.tables[0].ndim == 4 else jax.tree.map(lambda x: x[kind], views)


def causal_mask(T: int, S: int, window: int | None) -> jax.Array:
    """bool[1, T, S]: each token sees itself and earlier tokens of its own sequence, `window` in all."""
    distance = jnp.arange(T)[:, None] - jnp.arange(S)[None]
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return seen[None]


def segment_positions(segments: jax.Array) -> jax.Array:
    """i32[B, S]: position of each token within its segment, for rows of segment numbers i32[B, S]."""
    slots = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return slots - jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)


def prompt_mask(lengths: jax.Array, P: int, steps: jax.Array, window: int | None) -> jax.Array:
    """bool[N, 1 or T, P]: the prompt tokens that response tokens `steps` i32[T] see; padding is masked."""
    slots = jnp.arange(P)
    valid = (slots[None] < lengths[:, None])[:, None]
    if window is None:
        return valid
    distance = (lengths[:, None] + steps[None])[:, :, None] - slots[None, None]
    return valid & (distance < window)
