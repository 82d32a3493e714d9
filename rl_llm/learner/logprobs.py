"""How likely given responses are: hidden states, log-probabilities and entropies of tokens that were sampled before."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rl_llm.learner.gradient import in_parts
from rl_llm.model import ModelConfig, extend, gathered_head, platform, prefill, unembed, weight_table
from rl_llm.parallel import mesh as meshes
from rl_llm.parallel.numbers import PROGRAMS
from rl_llm.types import Max, Mean, Metrics, Prompts, Rollout

# Response positions whose logits exist at one time: [B, 32, V] instead of [B, T, V]. For accelerators at least as many,
# and more where they fit into so many bytes of a device: for each chunk the head's gradient is summed over all rows.
HEAD_POSITIONS = 32
LOGITS_BYTES = 1 << 29


def logp_and_entropy(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """logits f32[..., V], tokens i32[...] -> log softmax(logits) at the tokens and its entropy, f32[...] each."""
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    logp = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - normalizer
    return logp, normalizer - jnp.sum(jax.nn.softmax(logits, axis=-1) * logits, axis=-1)


def read_responses(
    config: ModelConfig, params: dict, prompts: Prompts, tokens: jax.Array, after_token: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """The hidden states f32[B, T, D] that predict the tokens i32[B, T] of responses, each that of the token before;
    or, `after_token`, those of the tokens themselves. And the experts that read each token that was read (all but the
    last, or all), i32[L, B, T - 1 or T, k], where the model has experts.
    """
    B, T = tokens.shape
    prompt_hidden, cache = prefill(config, params, prompts.tokens, prompts.lengths)
    if after_token:
        return extend(config, params, tokens, cache, prompts.lengths)
    last = jnp.take_along_axis(prompt_hidden, (prompts.lengths - 1)[:, None, None], axis=1)
    hidden = jnp.repeat(last, B // prompts.lengths.shape[0], axis=0)
    if T == 1:
        return hidden, None
    further, chosen = extend(config, params, tokens[:, :-1], cache, prompts.lengths)
    return jnp.concatenate([hidden, further], axis=1), chosen


def response_hidden(
    config: ModelConfig, params: dict, prompts: Prompts, tokens: jax.Array, after_token: bool = False
) -> jax.Array:
    """The hidden states of `read_responses` alone."""
    return read_responses(config, params, prompts, tokens, after_token)[0]


def expert_load(chosen: jax.Array, mask: jax.Array, experts: int) -> Metrics:
    """How evenly tokens (mask f32[B, T]) are spread over experts, from those that read each, i32[L, B, T, k]: the
    largest share of a layer's tokens that one expert reads, 1 being an equal share; and the fraction that reads none.
    """
    L, _, _, k = chosen.shape
    weights = jnp.broadcast_to(mask[None, :, :, None], chosen.shape)
    counts = jnp.zeros((L, experts)).at[jnp.arange(L)[:, None, None, None], chosen].add(weights)
    share = counts * experts / jnp.maximum(k * jnp.sum(mask), 1.0)
    return {
        "experts/max_load": Max(jax.lax.stop_gradient(jnp.max(share))),
        "experts/idle": Mean(jnp.sum(counts == 0).astype(jnp.float32), jnp.float32(L * experts)),
    }


def by_position(
    of_logits: Callable[..., tuple], config: ModelConfig, params: dict, hidden: jax.Array, *others: jax.Array
) -> tuple:
    """`of_logits(logits, *others)` for hidden f32[B, T, D] and others [B, T, ...] -> a tuple of [B, T, ...].

    Logits are made, used and forgotten in chunks of positions, and made again for the gradient.
    """
    B, T = hidden.shape[:2]
    head = gathered_head(config, params)
    chunk = min(T, _head_positions(config, B))

    @jax.checkpoint
    def of_chunk(parts: tuple[jax.Array, ...]) -> tuple:
        return of_logits(unembed(config, head, parts[0]), *parts[1:])

    def chunks(x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [T / chunk, B, chunk, ...], zero-padded."""
        padded = jnp.pad(x, ((0, 0), (0, -T % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(B, -1, chunk, *x.shape[2:]), 1, 0)

    parts = jax.lax.map(of_chunk, tuple(chunks(x) for x in (hidden, *others)))
    return tuple(jnp.moveaxis(part, 0, 1).reshape(B, -1, *part.shape[3:])[:, :T] for part in parts)


def _head_positions(config: ModelConfig, rows: int) -> int:
    """Positions whose logits exist at one time."""
    if platform() == "cpu":
        return HEAD_POSITIONS
    own_rows = max(1, rows // (meshes.ways("data") * meshes.ways("fsdp")))
    bytes_of_position = 4 * own_rows * config.vocabulary // meshes.ways("tensor")
    return max(HEAD_POSITIONS, LOGITS_BYTES // bytes_of_position)


def predict(
    config: ModelConfig,
    params: dict,
    hidden: jax.Array,
    tokens: jax.Array,
    temperature: jax.Array | float = 1.0,
    others: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """log pi(token | prompt, tokens before) and the entropy of pi = softmax(logits / temperature), f32[B, T] each; and
    with `others` i32[B, T, k] the log-probabilities f32[B, T, k] of those at the same places.
    """

    def of_logits(logits: jax.Array, tokens: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
        logits = logits / temperature
        at_others = (jnp.take_along_axis(jax.nn.log_softmax(logits), ids, axis=-1) for ids in others)
        return (*logp_and_entropy(logits, tokens), *at_others)

    return by_position(of_logits, config, params, hidden, tokens, *(() if others is None else (others,)))


def token_logps(
    config: ModelConfig, params: dict, prompts: Prompts, tokens: jax.Array, temperature: jax.Array | float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """log pi(token | prompt, tokens before) and the entropy of pi, f32[B, T] each, pi = softmax(logits /
    temperature).
    """
    logp, entropy = predict(config, params, response_hidden(config, params, prompts, tokens), tokens, temperature)
    return logp, entropy


def likeliest(
    config: ModelConfig, params: dict, prompts: Prompts, tokens: jax.Array, temperature: jax.Array | float, k: int
) -> tuple[jax.Array, jax.Array]:
    """The k likeliest tokens at each place of responses, i32[B, T, k], and their log-probabilities f32[B, T, k]."""

    def of_logits(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        logps, ids = jax.lax.top_k(jax.nn.log_softmax(logits / temperature), k)
        return ids, logps

    ids, logps = by_position(of_logits, config, params, response_hidden(config, params, prompts, tokens))
    return ids, logps


@lru_cache(maxsize=PROGRAMS)
def compile_logps(config: ModelConfig, mesh: Mesh, parts: int = 1) -> Callable[[dict, Rollout, jax.Array], jax.Array]:
    """(params, rollout, temperature) -> the log-probability f32[B, T] of every sampled token under other parameters, 0
    at padding; jitted for a mesh.
    """

    def logps(params: dict, rollout: Rollout, temperature: jax.Array) -> jax.Array:
        return token_logps(config, params, rollout.prompts, rollout.tokens, temperature)[0] * rollout.mask

    return compile_over_rows(logps, config, mesh, parts)


@lru_cache(maxsize=PROGRAMS)
def compile_logps_at(
    config: ModelConfig, mesh: Mesh, parts: int = 1
) -> Callable[[dict, tuple[Rollout, jax.Array], jax.Array], jax.Array]:
    """(params, (rollout, ids i32[B, T, k]), temperature) -> the log-probabilities f32[B, T, k] of other tokens in the
    place of the sampled ones; jitted for a mesh.
    """

    def logps_at(params: dict, rows: tuple[Rollout, jax.Array], temperature: jax.Array) -> jax.Array:
        rollout, ids = rows
        hidden = response_hidden(config, params, rollout.prompts, rollout.tokens)
        return predict(config, params, hidden, rollout.tokens, temperature, ids)[2]

    return compile_over_rows(logps_at, config, mesh, parts)


@lru_cache(maxsize=PROGRAMS)
def compile_likeliest(
    config: ModelConfig, mesh: Mesh, k: int, parts: int = 1
) -> Callable[[dict, Rollout, jax.Array], tuple[jax.Array, jax.Array]]:
    """(params, rollout, temperature) -> the `k` likeliest tokens at each place, and their log-probabilities; jitted for
    a mesh.
    """

    def at_each_place(params: dict, rollout: Rollout, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
        return likeliest(config, params, rollout.prompts, rollout.tokens, temperature, k)

    return compile_over_rows(at_each_place, config, mesh, parts)


def compile_over_rows(function: Callable, config: ModelConfig, mesh: Mesh, parts: int = 1) -> Callable:
    """A function of (params, rows of a rollout, one value more) that gives rows, jitted for a mesh; it reads so many
    `parts` of the prompts one after the other.
    """

    def over_rows(params: dict, rows: Any, value: jax.Array) -> Any:
        rollout = rows if isinstance(rows, Rollout) else rows[0]
        return in_parts(lambda part: function(params, part, value), rows, rollout.prompts.lengths.shape[0], parts)

    weights, rows = meshes.weight_shardings(mesh, weight_table(config)), meshes.over_batch(mesh)
    same = meshes.replicated(mesh)
    compiled: Callable = meshes.compile(over_rows, mesh, in_shardings=(weights, rows, same), out_shardings=rows)
    return compiled
