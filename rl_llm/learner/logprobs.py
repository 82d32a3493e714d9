"""Log-probabilities and entropies of given responses, and the hidden states they come from."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rl_llm.learner.gradient import in_parts
from rl_llm.model import ModelConfig, extend, gather_head, platform, prefill, unembed, weight_table
from rl_llm.parallel import mesh as meshes
from rl_llm.parallel.programs import ROWS, SAME, compile_program, laid_out
from rl_llm.types import Max, Mean, Metrics, Prompts, Rollout

# Response positions with logits in memory at a time: [B, 32, V] instead of [B, T, V]. Accelerators take more if they
# fit into LOGITS_BYTES of a device, because each chunk costs a sum of the head's gradient over all rows.
HEAD_POSITIONS = 32
LOGITS_BYTES = 1 << 29

RolloutProgram = Callable[[dict, Any, jax.Array], Any]  # of (params, rows of a rollout, temperature)


def logp_and_entropy(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log softmax(logits f32[..., V]) at tokens i32[...], and the entropy of the softmax; f32[...] each."""
    chex.assert_equal_shape_prefix([logits, tokens], tokens.ndim)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    logp = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - normalizer
    return logp, normalizer - jnp.sum(jax.nn.softmax(logits, axis=-1) * logits, axis=-1)


def read_responses(
    config: ModelConfig, params: dict, prompts: Prompts, tokens: jax.Array, after_token: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """Read responses, tokens i32[B, T], after their prompts.

    Returns the hidden states f32[B, T, D] that predict each token (those of the token before it), or with `after_token`
    those of the tokens themselves; and, if the model has experts, the experts of each token that was read, i32[L, B,
    T - 1, k], or with `after_token` i32[L, B, T, k].
    """
    chex.assert_rank(tokens, 2)
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
    """Hidden states of `read_responses`."""
    return read_responses(config, params, prompts, tokens, after_token)[0]


def expert_load(chosen: jax.Array, mask: jax.Array, experts: int) -> Metrics:
    """Load of experts from the `chosen` experts i32[L, B, T, k] of tokens with mask f32[B, T].

    Metrics: the largest share of a layer's tokens that one expert reads (1 is an equal share), and the fraction of
    experts that read none.
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
    function: Callable[..., tuple], config: ModelConfig, params: dict, hidden: jax.Array, *others: jax.Array
) -> tuple:
    """Apply `function(logits, *others)` to hidden f32[B, T, D] and others [B, T, ...]; returns a tuple of [B, T, ...].

    Logits exist for one chunk of positions at a time and are recomputed for the gradient.
    """
    B, T = hidden.shape[:2]
    head = gather_head(config, params)
    chunk = min(T, _head_positions(config, B))

    @jax.checkpoint
    def chunk_outputs(parts: tuple[jax.Array, ...]) -> tuple:
        return function(unembed(config, head, parts[0]), *parts[1:])

    def chunks(x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [T / chunk, B, chunk, ...], zero-padded."""
        padded = jnp.pad(x, ((0, 0), (0, -T % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(B, -1, chunk, *x.shape[2:]), 1, 0)

    parts = jax.lax.map(chunk_outputs, tuple(chunks(x) for x in (hidden, *others)))
    return tuple(jnp.moveaxis(part, 0, 1).reshape(B, -1, *part.shape[3:])[:, :T] for part in parts)


def _head_positions(config: ModelConfig, rows: int) -> int:
    """Number of positions with logits in memory at a time."""
    if platform() == "cpu":
        return HEAD_POSITIONS
    own_rows = max(1, rows // (meshes.ways("data") * meshes.ways("fsdp")))
    position_bytes = 4 * own_rows * config.vocabulary // meshes.ways("tensor")
    return max(HEAD_POSITIONS, LOGITS_BYTES // position_bytes)


def predict(
    config: ModelConfig,
    params: dict,
    hidden: jax.Array,
    tokens: jax.Array,
    temperature: jax.Array | float = 1.0,
    others: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Log-probabilities f32[B, T] of tokens and the entropy f32[B, T] of pi = softmax(logits / temperature).

    With `others` i32[B, T, k], also the log-probabilities f32[B, T, k] of those tokens at the same positions.
    """

    def outputs(logits: jax.Array, tokens: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
        logits = logits / temperature
        at_others = (jnp.take_along_axis(jax.nn.log_softmax(logits), ids, axis=-1) for ids in others)
        return (*logp_and_entropy(logits, tokens), *at_others)

    return by_position(outputs, config, params, hidden, tokens, *(() if others is None else (others,)))


def token_logps(
    config: ModelConfig, params: dict, prompts: Prompts, tokens: jax.Array, temperature: jax.Array | float = 1.0
) -> tuple[jax.Array, ...]:
    """Log pi(token | prompt, earlier tokens) and the entropy of pi = softmax(logits / temperature), f32[B, T] each."""
    return predict(config, params, response_hidden(config, params, prompts, tokens), tokens, temperature)


def compile_over_rows(
    function: Callable, config: ModelConfig, mesh: Mesh, parts: int = 1, static: tuple = ()
) -> RolloutProgram:
    """Compile `function(*static, config, params, rows, temperature)` as a program of the last three.

    `rows` are a rollout, or a tuple that begins with one. One of `parts` of its prompts is in memory at a time.
    """
    inputs = (laid_out(weight_table(config)), ROWS, SAME)
    return compile_program(_over_rows, mesh, (function, static, config, parts), inputs=inputs, outputs=ROWS)


def _over_rows(
    function: Callable, static: tuple, config: ModelConfig, parts: int, params: dict, rows: Any, temperature: jax.Array
) -> Any:
    rollout = rows if isinstance(rows, Rollout) else rows[0]
    groups = rollout.prompts.lengths.shape[0]
    return in_parts(lambda part: function(*static, config, params, part, temperature), rows, groups, parts)


def sampled_logps(config: ModelConfig, params: dict, rollout: Rollout, temperature: jax.Array) -> jax.Array:
    """Log-probabilities f32[B, T] of a rollout's tokens, 0 at padding."""
    return token_logps(config, params, rollout.prompts, rollout.tokens, temperature)[0] * rollout.mask


def logps_at(config: ModelConfig, params: dict, rows: tuple[Rollout, jax.Array], temperature: jax.Array) -> jax.Array:
    """Log-probabilities f32[B, T, k] of tokens i32[B, T, k] at the positions of a rollout; `rows` are both."""
    rollout, ids = rows
    hidden = response_hidden(config, params, rollout.prompts, rollout.tokens)
    return predict(config, params, hidden, rollout.tokens, temperature, ids)[2]


def likeliest(k: int, config: ModelConfig, params: dict, rollout: Rollout, temperature: jax.Array) -> tuple:
    """The k likeliest tokens at each position, i32[B, T, k], and their log-probabilities f32[B, T, k]."""

    def outputs(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        logps, ids = jax.lax.top_k(jax.nn.log_softmax(logits / temperature), k)
        return ids, logps

    return by_position(outputs, config, params, response_hidden(config, params, rollout.prompts, rollout.tokens))
