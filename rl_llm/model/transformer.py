"""The transformer as pure functions over whole sequences: `prefill` reads prompts, `extend` the responses to them,
`packed` several whole texts in a row. `decoding.decode` reads one token more.

A prompt is right-padded and read once; its K responses look at it as a shared source of keys and values. The sampler
(prefill + decode) and the learner (prefill + extend) are the same computation, so their log-probabilities agree.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from rl_llm.model.attention import KeyValues, fused, kernel_for
from rl_llm.model.block import after_attention, attend, embed, normalized, queries_keys_values
from rl_llm.model.config import ModelConfig
from rl_llm.model.views import View, own_mask, positions_in, prompt_mask, view_of, views_of
from rl_llm.model.weights import weight_table
from rl_llm.parallel import mesh as meshes

HEADS = ("embedding", "head")

# Layers that one iteration of the scan over layers runs: faster than one by one (experiments/benchmarks/rl_step.py with
# a 1 here shows it), and a deep model still compiles as a loop. But one by one where layers are computed again: those
# of an iteration may all be computed again before the first of them is needed, and a TPU's compiler does so (Qwen3-4B
# with 12 layers, v6e:4x4, fsdp=8, tensor=2: 29.2 GiB of each chip, and 18.9 one by one).
LAYERS_PER_ITERATION = 4


def prefill(config: ModelConfig, params: dict, prompts: jax.Array, lengths: jax.Array) -> tuple[jax.Array, KeyValues]:
    """Read right-padded prompts i32[N, P] of `lengths` i32[N] -> hidden f32[N, P, D] and the cache [L, N, J, P, h]."""
    P = prompts.shape[1]
    positions = jnp.arange(P)
    valid = positions[None] < lengths[:, None]

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        return (own_mask(P, P, window) & valid[:, None],)

    kernel = kernel_for(config, P)
    whole = kernel and partial(fused, kernel, config, own_segments=valid.astype(jnp.int32), prompt_lengths=None)
    views = views_of(config, positions[None], masks)
    hidden, (cache, _) = _through_layers(config, params, embed(config, params, prompts), views, None, whole)
    assert cache is not None
    return hidden, cache


def extend(
    config: ModelConfig, params: dict, tokens: jax.Array, prompt_cache: KeyValues, prompt_lengths: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Read responses i32[B, T] that follow their prompts (row b follows prompt b // K) -> hidden f32[B, T, D], and
    the experts that read each token, i32[L, B, T, k] (None where there are none).
    """
    asked = tokens.shape[1]
    tokens = jnp.pad(tokens, ((0, 0), (0, -asked % meshes.ways("tensor"))))  # for `pin_tokens`
    B, T = tokens.shape
    N, P = prompt_lengths.shape[0], prompt_cache.keys.shape[3]
    steps = jnp.arange(T)
    positions = jnp.repeat(prompt_lengths, B // N)[:, None] + steps[None]

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        return prompt_mask(prompt_lengths, P, steps, window), own_mask(T, T, window)

    kernel = kernel_for(config, T)
    whole = kernel and partial(fused, kernel, config, own_segments=None, prompt_lengths=prompt_lengths)
    views = views_of(config, positions, masks)
    hidden, (_, chosen) = _through_layers(config, params, embed(config, params, tokens), views, prompt_cache, whole)
    return hidden[:, :asked], None if chosen is None else chosen[:, :, :asked]


def packed(
    config: ModelConfig, params: dict, tokens: jax.Array, segments: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Read rows i32[B, S] that hold several texts one after the other -> hidden f32[B, S, D], and the experts that read
    each token, i32[L, B, S, k] (None where there are none).

    `segments` i32[B, S] numbers the texts of a row, 0 being padding. A text is read as if it were alone: its positions
    begin with 0, and it sees no other.
    """
    S = tokens.shape[1]

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        return (own_mask(S, S, window) & (segments[:, :, None] == segments[:, None, :]),)

    kernel = kernel_for(config, S)
    whole = kernel and partial(fused, kernel, config, own_segments=segments, prompt_lengths=None)
    views = views_of(config, positions_in(segments), masks)
    hidden, (_, chosen) = _through_layers(config, params, embed(config, params, tokens), views, None, whole)
    return hidden, chosen


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


def gathered_head(config: ModelConfig, params: dict) -> dict:
    """The parameters that `unembed` and `embed` read, gathered once by what reads them many times, and the others."""
    table = weight_table(config)
    return params | {name: meshes.pin_gathered(params[name], table[name]) for name in HEADS if name in params}


def _through_layers(
    config: ModelConfig,
    params: dict,
    x: jax.Array,
    views: View,
    prompt_cache: KeyValues | None,
    whole: Callable[..., jax.Array] | None,
) -> tuple[jax.Array, tuple[KeyValues | None, jax.Array | None]]:
    """x [B, T, D] through all layers and the last norm; with each layer's own keys and values (where they are the
    first) and the experts that read each token, stacked. `whole` is a fused kernel in the place of plain attention.
    """
    kinds = None
    if config.sliding:
        kinds = jnp.array([config.is_sliding(layer) for layer in range(config.layers)], jnp.int32)

    def layer(x: jax.Array, inputs: tuple[dict, KeyValues | None, jax.Array | None]) -> tuple[jax.Array, tuple]:
        weights, prompt, kind = inputs
        view = view_of(views, kind)
        queries, own = queries_keys_values(config, weights, x, view.tables)
        if whole is None:
            context = attend(config, queries, (own,) if prompt is None else (prompt, own), view.masks)
        else:
            context = _fused(config, whole, queries, own, prompt, kind)
        x, chosen = after_attention(config, weights, x, context)
        return meshes.pin_tokens(x), (own if prompt is None else None, chosen)

    inputs = (params["layers"], prompt_cache, kinds)
    together = LAYERS_PER_ITERATION if config.remat == "nothing" else 1
    hidden, outputs = jax.lax.scan(_remembering(config, layer), meshes.pin_tokens(x), inputs, unroll=together)
    return meshes.pin_rows(normalized(config, hidden, params["final_norm"])), outputs


def _fused(
    config: ModelConfig,
    whole: Callable[..., jax.Array],
    queries: jax.Array,
    own: KeyValues,
    prompt: KeyValues | None,
    kind: jax.Array | None,
) -> jax.Array:
    """Attention by a fused kernel. Its window is a part of the program, so a layer chooses between two of them."""

    def within(window: int | None) -> Callable[..., jax.Array]:
        return lambda queries, own, prompt: whole(queries=queries, own=own, prompt=prompt, window=window)

    if config.sliding is None:
        return within(None)(queries, own, prompt)
    return jax.lax.cond(kind == 1, within(config.sliding.window), within(None), queries, own, prompt)


def _remembering(config: ModelConfig, layer: Callable) -> Callable:
    """A layer whose backward pass keeps what `config.remat` says."""
    if config.remat == "nothing":
        return layer
    policy = None
    if config.remat == "all but products":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(layer, prevent_cse=False, policy=policy)
