"""The transformer as pure functions: `prefill` reads prompts, `extend` reads whole responses, `decode` reads one
token more.

A prompt is right-padded and read once; its K responses look at it as a shared source of keys and values. The sampler
(prefill + decode) and the learner (prefill + extend) are the same computation, so their log-probabilities agree.
"""

import jax
import jax.numpy as jnp

from rl_llm.model.config import ModelConfig
from rl_llm.model.layers import KeyValues, Source, attention, project, rms_norm, rotary_tables, rotate

# Layers that one iteration of the scan over layers runs: faster than one by one (experiments/benchmarks/rl_step.py with
# a 1 here shows it), and a deep model still compiles as a loop.
LAYERS_PER_ITERATION = 4


def prefill(config: ModelConfig, params: dict, prompts: jax.Array, lengths: jax.Array) -> tuple[jax.Array, KeyValues]:
    """Read right-padded prompts i32[N, P] of `lengths` i32[N] -> hidden f32[N, P, D] and the cache [L, N, J, P, h]."""
    P = prompts.shape[1]
    positions = jnp.arange(P)
    causal = (positions[:, None] >= positions[None])[None] & (positions[None] < lengths[:, None])[:, None]
    tables = rotary_tables(positions[None], config.head_width, config.rope_base)

    def layer(x: jax.Array, weights: dict) -> tuple[jax.Array, KeyValues]:
        queries, cache = _queries_keys_values(config, weights, x, tables)
        context = attention(queries, (Source(*cache, causal),), jnp.dtype(config.compute_dtype))
        return _feed_forward(config, weights, x + _output(config, weights, context)), cache

    hidden, cache = jax.lax.scan(layer, _embed(params, prompts), params["layers"], unroll=LAYERS_PER_ITERATION)
    return rms_norm(hidden, params["final_norm"], config.norm_epsilon), cache


def extend(
    config: ModelConfig, params: dict, tokens: jax.Array, prompt_cache: KeyValues, prompt_lengths: jax.Array
) -> jax.Array:
    """Read responses i32[B, T] that follow their prompts (row b follows prompt b // K) -> hidden f32[B, T, D]."""
    B, T = tokens.shape
    N = prompt_lengths.shape[0]
    steps = jnp.arange(T)
    causal = (steps[:, None] >= steps[None, :])[None]
    prompt_mask = _prompt_mask(prompt_cache, prompt_lengths)
    positions = jnp.repeat(prompt_lengths, B // N)[:, None] + steps[None]
    tables = rotary_tables(positions, config.head_width, config.rope_base)

    def layer(x: jax.Array, inputs: tuple[dict, KeyValues]) -> tuple[jax.Array, None]:
        weights, prompt = inputs
        queries, own = _queries_keys_values(config, weights, x, tables)
        sources = (Source(*prompt, prompt_mask), Source(*own, causal))
        context = attention(queries, sources, jnp.dtype(config.compute_dtype))
        return _feed_forward(config, weights, x + _output(config, weights, context)), None

    hidden, _ = jax.lax.scan(
        layer, _embed(params, tokens), (params["layers"], prompt_cache), unroll=LAYERS_PER_ITERATION
    )
    return rms_norm(hidden, params["final_norm"], config.norm_epsilon)


def decoding_layers(config: ModelConfig, params: dict) -> list[dict]:
    """The weights of each layer apart, matrices in the compute type: made once per generation, read at every step.

    Slices taken inside the loop would be copied at every step, and float32 masters of a bfloat16 model would be read at
    twice the bytes.
    """
    dtype = jnp.dtype(config.compute_dtype)

    def take(index: int) -> dict:
        return {n: w[index] if w.ndim == 2 else w[index].astype(dtype) for n, w in params["layers"].items()}

    return [take(index) for index in range(config.layers)]


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
    prompt_mask = _prompt_mask(prompt_caches[0], prompt_lengths)
    own_mask = (jnp.arange(caches[0].keys.shape[2]) <= step)[None, None, :]
    positions = jnp.repeat(prompt_lengths, K)[:, None] + step
    tables = rotary_tables(positions, config.head_width, config.rope_base)
    x = _embed(params, tokens[:, None])
    filled = []
    for weights, prompt, cache in zip(layers, prompt_caches, caches, strict=True):
        queries, new = _queries_keys_values(config, weights, x, tables)
        own = jax.tree.map(lambda old, fresh: _write(old, fresh, step), cache, new)
        filled.append(own)
        sources = (Source(*prompt, prompt_mask), Source(own.keys, own.values, own_mask))
        context = attention(queries, sources, jnp.dtype(config.compute_dtype))
        x = _feed_forward(config, weights, x + _output(config, weights, context))
    return rms_norm(x[:, 0], params["final_norm"], config.norm_epsilon), filled


def _write(cache: jax.Array, new: jax.Array, step: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), step, axis=2)


def forward(config: ModelConfig, params: dict, tokens: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """Logits f32[B, S, V] of right-padded tokens i32[B, S]: the reference that everything faster is tested against."""
    lengths = jnp.full(tokens.shape[0], tokens.shape[1]) if lengths is None else lengths
    return unembed(params, prefill(config, params, tokens, lengths)[0])


def unembed(params: dict, hidden: jax.Array) -> jax.Array:
    """Logits f32[..., V] of hidden f32[..., D], in float32 whatever the compute type: rounding here moves log-
    probabilities.
    """
    head = params["head"] if "head" in params else params["embedding"].T
    return jnp.einsum("...d,dv->...v", hidden, head, precision=jax.lax.Precision.HIGHEST)


def _embed(params: dict, tokens: jax.Array) -> jax.Array:
    return jnp.take(params["embedding"], tokens, axis=0)


def _prompt_mask(cache: KeyValues, lengths: jax.Array) -> jax.Array:
    """bool[N, 1, P]: the prompt slots that hold a token."""
    return (jnp.arange(cache.keys.shape[-2])[None] < lengths[:, None])[:, None]


def _queries_keys_values(
    config: ModelConfig, weights: dict, x: jax.Array, tables: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, KeyValues]:
    """Rotated queries [B, T, H, h], and rotated keys and values [B, J, T, h]."""
    dtype = jnp.dtype(config.compute_dtype)
    normed = rms_norm(x, weights["attention_norm"], config.norm_epsilon)
    queries = project(normed, weights["query"], dtype)
    keys = project(normed, weights["key"], dtype)
    values = project(normed, weights["value"], dtype)
    if config.qk_norm:
        queries = rms_norm(queries, weights["query_norm"], config.norm_epsilon)
        keys = rms_norm(keys, weights["key_norm"], config.norm_epsilon)
    return rotate(queries, tables), KeyValues(jnp.moveaxis(rotate(keys, tables), 1, 2), jnp.moveaxis(values, 1, 2))


def _output(config: ModelConfig, weights: dict, context: jax.Array) -> jax.Array:
    return project(context, weights["output"], jnp.dtype(config.compute_dtype), contract=2)


def _feed_forward(config: ModelConfig, weights: dict, x: jax.Array) -> jax.Array:
    """x + down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202, eq. 6)."""
    dtype = jnp.dtype(config.compute_dtype)
    normed = rms_norm(x, weights["mlp_norm"], config.norm_epsilon)
    gate = project(normed, weights["gate"], dtype)
    up = project(normed, weights["up"], dtype)
    return x + project(jax.nn.silu(gate) * up, weights["down"], dtype)
