"""The transformer as pure functions: `prefill` reads prompts, `extend` reads whole responses, `decode` reads one
token more.

A prompt is right-padded and read once; its K responses look at it as a shared source of keys and values. The sampler
(prefill + decode) and the learner (prefill + extend) are the same computation, so their log-probabilities agree.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rl_llm.model.attention import KeyValues, Source, attention, fused, kernel_for
from rl_llm.model.config import ModelConfig
from rl_llm.model.experts import mixture
from rl_llm.model.layers import activate, project, rms_norm, rotary_tables, rotate

# Layers that one iteration of the scan over layers runs: faster than one by one (experiments/benchmarks/rl_step.py with
# a 1 here shows it), and a deep model still compiles as a loop.
LAYERS_PER_ITERATION = 4

FAR = 1 << 30  # a window that holds everything


class View(NamedTuple):
    """What the layers of one kind see: rotary tables, and a mask for each source of keys and values."""

    tables: tuple[jax.Array, jax.Array]
    masks: tuple[jax.Array, ...]


Masks = Callable[[int | None], tuple[jax.Array, ...]]  # those of a window


def prefill(config: ModelConfig, params: dict, prompts: jax.Array, lengths: jax.Array) -> tuple[jax.Array, KeyValues]:
    """Read right-padded prompts i32[N, P] of `lengths` i32[N] -> hidden f32[N, P, D] and the cache [L, N, J, P, h]."""
    P = prompts.shape[1]
    positions = jnp.arange(P)
    valid = positions[None] < lengths[:, None]

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        return (_backwards(P, P, window) & valid[:, None],)

    views = _views(config, positions[None], masks)
    kernel = kernel_for(config, P)

    def attend(queries: jax.Array, own: KeyValues, _: None, view: View) -> jax.Array:
        return _plain(config, queries, (_source(own, view.masks[0]),))

    def attend_fused(queries: jax.Array, own: KeyValues, _: None, window: int | None) -> jax.Array:
        assert kernel is not None
        return fused(kernel, config, queries, own, valid, None, lengths, window)

    hidden, (cache, _) = _through_layers(
        config, params, _embed(config, params, prompts), views, attend, attend_fused if kernel else None, None
    )
    assert cache is not None
    return hidden, cache


def extend(
    config: ModelConfig, params: dict, tokens: jax.Array, prompt_cache: KeyValues, prompt_lengths: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Read responses i32[B, T] that follow their prompts (row b follows prompt b // K) -> hidden f32[B, T, D], and
    the experts that read each token, i32[L, B, T, k] (None where there are none).
    """
    B, T = tokens.shape
    N, P = prompt_lengths.shape[0], prompt_cache.keys.shape[3]
    steps = jnp.arange(T)
    positions = jnp.repeat(prompt_lengths, B // N)[:, None] + steps[None]

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        return _prompt_mask(prompt_lengths, P, steps, window), _backwards(T, T, window)

    views = _views(config, positions, masks)
    kernel = kernel_for(config, T)

    def attend(queries: jax.Array, own: KeyValues, prompt: KeyValues, view: View) -> jax.Array:
        return _plain(config, queries, (_source(prompt, view.masks[0]), _source(own, view.masks[1])))

    def attend_fused(queries: jax.Array, own: KeyValues, prompt: KeyValues, window: int | None) -> jax.Array:
        assert kernel is not None
        return fused(kernel, config, queries, own, None, prompt, prompt_lengths, window)

    hidden, (_, chosen) = _through_layers(
        config, params, _embed(config, params, tokens), views, attend, attend_fused if kernel else None, prompt_cache
    )
    return hidden, chosen


def decoding_layers(config: ModelConfig, params: dict) -> list[dict]:
    """The weights of each layer apart, matrices in the compute type: made once per generation, read at every step.

    Slices taken inside the loop would be copied at every step, and float32 masters of a bfloat16 model would be read at
    twice the bytes.
    """
    dtype = jnp.dtype(config.compute_dtype)

    def take(name: str, stacked: jax.Array, index: int) -> jax.Array:
        exact = stacked.ndim == 2 or name.endswith("_bias") or name == "router"
        return stacked[index] if exact else stacked[index].astype(dtype)

    return [{n: take(n, w, index) for n, w in params["layers"].items()} for index in range(config.layers)]


def decode(
    config: ModelConfig,
    params: dict,
    layers: list[dict],
    tokens: jax.Array,
    step: jax.Array,
    prompt_caches: list[KeyValues],
    prompt_lengths: jax.Array,
    caches: list[KeyValues],
) -> tuple[jax.Array, list[KeyValues]]:
    """Read the `step`-th response token i32[B] -> hidden f32[B, D] and the caches [B, J, S, h] with slot `step` filled.

    `layers` are `decoding_layers`, and there is one cache per layer: a stacked cache is copied whole at every step.
    """
    K = tokens.shape[0] // prompt_lengths.shape[0]
    P, S = prompt_caches[0].keys.shape[2], caches[0].keys.shape[2]
    positions = jnp.repeat(prompt_lengths, K)[:, None] + step

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        slots = jnp.arange(S)
        own = slots <= step if window is None else (slots <= step) & (step - slots < window)
        return _prompt_mask(prompt_lengths, P, step[None], window), own[None, None, :]

    views = _views(config, positions, masks)
    x = _embed(config, params, tokens[:, None])
    filled = []
    for index, (weights, prompt, cache) in enumerate(zip(layers, prompt_caches, caches, strict=True)):
        view = _view(views, int(config.is_sliding(index)))
        queries, new = _queries_keys_values(config, weights, x, view.tables)
        own = jax.tree.map(lambda old, fresh: _write(old, fresh, step), cache, new)
        filled.append(own)
        context = _plain(config, queries, (_source(prompt, view.masks[0]), _source(own, view.masks[1])))
        x, _ = _after_attention(config, weights, x, context)
    return _norm(config, x[:, 0], params["final_norm"]), filled


def _write(cache: jax.Array, new: jax.Array, step: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), step, axis=2)


def forward(
    config: ModelConfig,
    params: dict,
    tokens: jax.Array,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Logits f32[B, S, V] of tokens i32[B, S]: the reference that everything faster is tested against. Rows are
    right-padded where `lengths` i32[B] are given; with `mask` bool[B, S] the tokens are those where it is True, padded
    on the left or anywhere. Logits at padding mean nothing. Raises ValueError for both.
    """
    if lengths is not None and mask is not None:
        raise ValueError("forward takes lengths (of right-padded rows) or a mask, not both")
    if mask is not None:
        order = jnp.argsort(~jnp.asarray(mask, bool), axis=1, stable=True)
        logits = forward(config, params, jnp.take_along_axis(tokens, order, axis=1), jnp.sum(mask, axis=1))
        return jnp.take_along_axis(logits, jnp.argsort(order, axis=1)[:, :, None], axis=1)
    lengths = jnp.full(tokens.shape[0], tokens.shape[1]) if lengths is None else lengths
    return unembed(config, params, prefill(config, params, tokens, lengths)[0])


def unembed(config: ModelConfig, params: dict, hidden: jax.Array) -> jax.Array:
    """Logits f32[..., V] of hidden f32[..., D], in float32 whatever the compute type: rounding here moves log-
    probabilities.
    """
    head = params["head"] if "head" in params else params["embedding"].T
    logits = jnp.einsum("...d,dv->...v", hidden, head, precision=jax.lax.Precision.HIGHEST)
    cap = config.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def _embed(config: ModelConfig, params: dict, tokens: jax.Array) -> jax.Array:
    embedded = jnp.take(params["embedding"], tokens, axis=0)
    if not config.embedding_scale:
        return embedded
    scale = jnp.asarray(config.width**0.5, config.compute_dtype)  # rounded, as these models were trained
    return embedded * scale.astype(jnp.float32)


def _through_layers(
    config: ModelConfig,
    params: dict,
    x: jax.Array,
    views: View,
    attend: Callable[[jax.Array, KeyValues, Any, View], jax.Array],
    attend_fused: Callable[..., jax.Array] | None,
    prompt_cache: KeyValues | None,
) -> tuple[jax.Array, tuple[KeyValues | None, jax.Array | None]]:
    """x [B, T, D] through all layers and the last norm; with each layer's own keys and values (where they are the
    first) and the experts that read each token, stacked. `attend_fused` takes a window and the place of `attend`.
    """
    kinds = None
    if config.sliding:
        kinds = jnp.array([config.is_sliding(layer) for layer in range(config.layers)], jnp.int32)

    def layer(x: jax.Array, inputs: tuple[dict, KeyValues | None, jax.Array | None]) -> tuple[jax.Array, tuple]:
        weights, prompt, kind = inputs
        view = _view(views, kind)
        queries, own = _queries_keys_values(config, weights, x, view.tables)
        if attend_fused is None:
            context = attend(queries, own, prompt, view)
        elif config.sliding is None:
            context = attend_fused(queries, own, prompt, None)
        else:
            of_kind = (partial(attend_fused, window=window) for window in (config.sliding.window, None))
            context = jax.lax.cond(kind == 1, *of_kind, queries, own, prompt)
        x, chosen = _after_attention(config, weights, x, context)
        return x, (own if prompt is None else None, chosen)

    inputs = (params["layers"], prompt_cache, kinds)
    hidden, outputs = jax.lax.scan(_remembering(config, layer), x, inputs, unroll=LAYERS_PER_ITERATION)
    return _norm(config, hidden, params["final_norm"]), outputs


def _remembering(config: ModelConfig, layer: Callable) -> Callable:
    """A layer whose backward pass keeps what `config.remat` says."""
    if config.remat == "nothing":
        return layer
    policy = None
    if config.remat == "all but products":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(layer, prevent_cse=False, policy=policy)


def _views(config: ModelConfig, positions: jax.Array, masks: Masks) -> View:
    """What layers see that read tokens at `positions` [B or 1, T]: one view, or with sliding windows two, stacked."""
    full = rotary_tables(positions, config.head_width, config.rope_base, config.rope_scaling)
    if config.sliding is None:
        return View(full, masks(None))
    base = config.sliding.rope_base
    local = full if base is None else rotary_tables(positions, config.head_width, base)
    seen = View(full, masks(FAR)), View(local, masks(config.sliding.window))
    return jax.tree.map(lambda *kinds: jnp.stack(kinds), *seen)


def _view(views: View, kind: jax.Array | int | None) -> View:
    """The view of a layer of a kind (1 for sliding)."""
    return views if kind is None or views.tables[0].ndim == 4 else jax.tree.map(lambda x: x[kind], views)


def _backwards(T: int, S: int, window: int | None) -> jax.Array:
    """bool[1, T, S]: the slots that a token sees of its own sequence, itself and those before, `window` in all."""
    apart = jnp.arange(T)[:, None] - jnp.arange(S)[None]
    seen = apart >= 0 if window is None else (apart >= 0) & (apart < window)
    return seen[None]


def _prompt_mask(lengths: jax.Array, P: int, steps: jax.Array, window: int | None) -> jax.Array:
    """bool[N, 1 or T, P]: the prompt slots that hold a token, and that the response tokens `steps` i[T] see."""
    slots = jnp.arange(P)
    valid = (slots[None] < lengths[:, None])[:, None]
    if window is None:
        return valid
    apart = (lengths[:, None] + steps[None])[:, :, None] - slots[None, None]
    return valid & (apart < window)


def _source(cache: KeyValues, mask: jax.Array) -> Source:
    return Source(cache.keys, cache.values, mask)


def _plain(config: ModelConfig, queries: jax.Array, sources: tuple[Source, ...]) -> jax.Array:
    dtype = jnp.dtype(config.compute_dtype)
    return attention(queries, sources, dtype, config.query_scalar)


def _norm(config: ModelConfig, x: jax.Array, scale: jax.Array) -> jax.Array:
    return rms_norm(x, scale, config.norm_epsilon, config.unit_offset_norms)


def _queries_keys_values(
    config: ModelConfig, weights: dict, x: jax.Array, tables: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, KeyValues]:
    """Rotated queries [B, T, H, h], and rotated keys and values [B, J, T, h]."""
    dtype = jnp.dtype(config.compute_dtype)
    normed = _norm(config, x, weights["attention_norm"])
    queries = project(normed, weights["query"], dtype, bias=weights.get("query_bias"))
    keys = project(normed, weights["key"], dtype, bias=weights.get("key_bias"))
    values = project(normed, weights["value"], dtype, bias=weights.get("value_bias"))
    if config.qk_norm:
        queries = _norm(config, queries, weights["query_norm"])
        keys = _norm(config, keys, weights["key_norm"])
    return rotate(queries, tables), KeyValues(jnp.moveaxis(rotate(keys, tables), 1, 2), jnp.moveaxis(values, 1, 2))


def _after_attention(
    config: ModelConfig, weights: dict, x: jax.Array, context: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """What a layer gives from its input x and what attention found: the new x, and the experts that read each token."""
    dtype = jnp.dtype(config.compute_dtype)
    output = project(context, weights["output"], dtype, contract=2, bias=weights.get("output_bias"))
    if config.sandwich_norms:
        output = _norm(config, output, weights["attention_post_norm"])
    x = x + output
    normed = _norm(config, x, weights["mlp_norm"])
    chosen = None
    if config.experts:
        output, chosen = mixture(config, weights, normed)
    else:
        output = _feed_forward(config, weights, normed)
    if config.sandwich_norms:
        output = _norm(config, output, weights["mlp_post_norm"])
    return x + output, chosen


def _feed_forward(config: ModelConfig, weights: dict, x: jax.Array) -> jax.Array:
    """down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202, eq. 6), or with GELU in the place of silu."""
    dtype = jnp.dtype(config.compute_dtype)
    gate = project(x, weights["gate"], dtype, bias=weights.get("gate_bias"))
    up = project(x, weights["up"], dtype, bias=weights.get("up_bias"))
    return project(activate(gate, config.activation) * up, weights["down"], dtype, bias=weights.get("down_bias"))
