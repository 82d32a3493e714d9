"""The transformer as pure functions over whole sequences; `decoding.decode` reads one token at a time.

`prefill` reads prompts, `extend` the responses to them, `read_packed` several texts in one row. A prompt is
right-padded and read once; its K responses share its keys and values. The sampler (prefill + decode) and the learner
(prefill + extend) do the same computation, so their log-probabilities agree.
"""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp

from rl_llm.model.attention import KeyValues, attention, fused_attention, kernel_for
from rl_llm.model.block import embed, finish_layer, normalize, queries_keys_values
from rl_llm.model.config import ModelConfig
from rl_llm.model.views import MaskBuilder, causal_mask, make_views, prompt_mask, segment_positions, select_view
from rl_llm.model.weights import weight_table
from rl_llm.parallel import mesh as meshes

# Layers per iteration of the scan over layers. More than one is faster (experiments/benchmarks/rl_step.py with a 1 here
# shows it), and a deep model still compiles as a loop. With rematerialisation it is one: the TPU compiler may recompute
# all layers of an iteration before it needs the first (Qwen3-4B with 12 layers, v6e:4x4, fsdp=8, tensor=2: 29.2 GiB per
# chip, and 18.9 one by one).
LAYERS_PER_ITERATION = 4
POLICIES = {"layers": None, "all but products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}  # by `remat`


def prefill(config: ModelConfig, params: dict, prompts: jax.Array, lengths: jax.Array) -> tuple[jax.Array, KeyValues]:
    """Read right-padded prompts i32[N, P] of `lengths` i32[N] -> hidden f32[N, P, D] and the cache [L, N, J, P, h]."""
    chex.assert_rank(prompts, 2)
    chex.assert_shape(lengths, prompts.shape[:1])
    P = prompts.shape[1]
    positions = jnp.arange(P)
    valid = positions[None] < lengths[:, None]

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        return (causal_mask(P, P, window) & valid[:, None],)

    hidden, (cache, _) = _read(config, params, prompts, positions[None], masks, segments=valid)
    assert cache is not None
    return hidden, cache


def extend(
    config: ModelConfig, params: dict, tokens: jax.Array, prompt_cache: KeyValues, prompt_lengths: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Read responses i32[B, T] after their prompts; row b follows prompt b // K.

    `prompt_cache` [L, N, J, P, h] is that of `prefill`, `prompt_lengths` i32[N]. Returns hidden f32[B, T, D] and the
    experts that read each token, i32[L, B, T, k] (None without experts).
    """
    chex.assert_rank([tokens, prompt_lengths], [2, 1])
    N, P = prompt_lengths.shape[0], prompt_cache.keys.shape[3]
    chex.assert_shape(prompt_cache, (config.layers, N, config.kv_heads, P, config.head_width))
    chex.assert_is_divisible(tokens.shape[0], N)
    response_length = tokens.shape[1]
    tokens = jnp.pad(tokens, ((0, 0), (0, -response_length % meshes.ways("tensor"))))  # for `pin_tokens`
    B, T = tokens.shape
    steps = jnp.arange(T)
    positions = jnp.repeat(prompt_lengths, B // N)[:, None] + steps[None]

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        return prompt_mask(prompt_lengths, P, steps, window), causal_mask(T, T, window)

    hidden, (_, chosen) = _read(config, params, tokens, positions, masks, prompt_cache, prompt_lengths)
    return hidden[:, :response_length], None if chosen is None else chosen[:, :, :response_length]


def read_packed(
    config: ModelConfig, params: dict, tokens: jax.Array, segments: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Read rows i32[B, S] that hold several texts each, every text as if it were alone.

    `segments` i32[B, S] numbers the texts of a row, 0 being padding. Positions restart at 0 with each text, and no text
    sees another. Returns hidden f32[B, S, D] and the experts that read each token, i32[L, B, S, k] (None without
    experts).
    """
    chex.assert_rank(tokens, 2)
    chex.assert_equal_shape([tokens, segments])
    S = tokens.shape[1]

    def masks(window: int | None) -> tuple[jax.Array, ...]:
        return (causal_mask(S, S, window) & (segments[:, :, None] == segments[:, None, :]),)

    hidden, (_, chosen) = _read(config, params, tokens, segment_positions(segments), masks, segments=segments)
    return hidden, chosen


def forward(
    config: ModelConfig,
    params: dict,
    tokens: jax.Array,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Logits f32[B, S, V] of tokens i32[B, S]: the reference that tests hold everything faster to.

    `lengths` i32[B]: rows are right-padded. `mask` bool[B, S]: True at tokens, with padding on the left or anywhere.
    Logits at padding mean nothing. Raises ValueError if both are given.
    """
    chex.assert_rank(tokens, 2)
    if lengths is not None and mask is not None:
        raise ValueError("forward got lengths and a mask; expected at most one: pass lengths for right-padded rows")
    if mask is not None:
        chex.assert_equal_shape([tokens, mask])
        order = jnp.argsort(~jnp.asarray(mask, bool), axis=1, stable=True)
        logits = forward(config, params, jnp.take_along_axis(tokens, order, axis=1), jnp.sum(mask, axis=1))
        return jnp.take_along_axis(logits, jnp.argsort(order, axis=1)[:, :, None], axis=1)
    lengths = jnp.full(tokens.shape[0], tokens.shape[1]) if lengths is None else lengths
    return unembed(config, params, prefill(config, params, tokens, lengths)[0])


def unembed(config: ModelConfig, params: dict, hidden: jax.Array) -> jax.Array:
    """Logits f32[..., V] of hidden f32[..., D]; always in float32, because rounding here moves log-probabilities."""
    chex.assert_axis_dimension(hidden, -1, config.width)
    head = params["head"] if "head" in params else params["embedding"].T
    logits = jnp.einsum("...d,dv->...v", hidden, head, precision=jax.lax.Precision.HIGHEST)
    cap = config.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def gather_head(config: ModelConfig, params: dict) -> dict:
    """`params` with the weights of `embed` and `unembed` gathered once, for callers that read them many times."""
    table = weight_table(config)
    return params | {
        name: meshes.pin_gathered(params[name], table[name]) for name in ("embedding", "head") if name in params
    }


def _read(
    config: ModelConfig,
    params: dict,
    tokens: jax.Array,
    positions: jax.Array,
    masks: MaskBuilder,
    prompt_cache: KeyValues | None = None,
    prompt_lengths: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, tuple[KeyValues | None, jax.Array | None]]:
    """Read tokens i32[B, T] through all layers and the last norm.

    Plain attention sees by `masks`, a fused kernel by the prompts' lengths and the segments. Returns hidden
    f32[B, T, D] and, stacked over layers, the tokens' keys and values (None with a prompt cache) and the experts that
    read each token (None without experts).
    """
    fused: Callable[..., jax.Array] | None = None
    if kernel := kernel_for(config, tokens.shape[1]):
        fused = partial(fused_attention, kernel, config, own_segments=segments, prompt_lengths=prompt_lengths)
    views, x = make_views(config, positions, masks), embed(config, params, tokens)
    kinds = None
    if config.sliding:
        kinds = jnp.array([config.is_sliding(layer) for layer in range(config.layers)], jnp.int32)

    def layer(x: jax.Array, inputs: tuple[dict, KeyValues | None, jax.Array | None]) -> tuple[jax.Array, tuple]:
        weights, prompt, kind = inputs
        view = select_view(views, kind)
        queries, own = queries_keys_values(config, weights, x, view.tables)
        if fused is None:
            context = attention(config, queries, (own,) if prompt is None else (prompt, own), view.masks)
        elif config.sliding is None:
            context = fused(queries, own, prompt)
        else:  # the window is compiled into a kernel, so the layer chooses between two
            windowed = partial(fused, window=config.sliding.window)
            context = jax.lax.cond(kind == 1, windowed, fused, queries, own, prompt)
        x, chosen = finish_layer(config, weights, x, context)
        return meshes.pin_tokens(x), (own if prompt is None else None, chosen)

    inputs = (params["layers"], prompt_cache, kinds)
    step, unroll = layer, LAYERS_PER_ITERATION
    if config.remat in POLICIES:
        step, unroll = jax.checkpoint(layer, prevent_cse=False, policy=POLICIES[config.remat]), 1
    hidden, outputs = jax.lax.scan(step, meshes.pin_tokens(x), inputs, unroll=unroll)
    return meshes.pin_rows(normalize(config, hidden, params["final_norm"])), outputs
