"""The sampler: one jitted function from prompts to a rollout.

Each prompt is prefilled once for its K responses, and rows are sampled until all have ended. Temperature, truncations
and stop ids are arguments of the program, so changing one compiles nothing. A row's noise is a function of (seed,
purpose, step, problem, sample index, position), so its tokens do not depend on the batch around it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from rl_llm import prng
from rl_llm.config.fields import Checked, NonNegativeFloat, NonNegativeInt, PositiveInt, PositiveShare, UnitFloat
from rl_llm.model import (
    Caches,
    ModelConfig,
    decode,
    decode_context,
    gather_head,
    grow_cache,
    init,
    init_cache,
    prefill,
    unembed,
    weight_table,
)
from rl_llm.parallel.population import any_member
from rl_llm.parallel.programs import ROWS, SAME, BoundProgram, compile_program, laid_out
from rl_llm.types import Prompts, Rollout

STOP_SLOTS = 8  # stop ids are an array of fixed size, so their number is no part of the program


@dataclass(frozen=True)
class Sampling(Checked):
    """Sampling from softmax(logits / temperature), truncated by top_k, then top_p, then min_p.

    top_k 0, top_p 1 and min_p 0 are off; temperature 0 takes the likeliest token. top_p is the nucleus of arXiv
    1904.09751, renormalised after top_k. min_p drops tokens less likely than min_p x the likeliest (arXiv 2407.01082).
    """

    max_tokens: PositiveInt = 64
    temperature: NonNegativeFloat = 1.0
    top_k: NonNegativeInt = 0
    top_p: PositiveShare = 1.0
    min_p: UnitFloat = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.temperature < 1e-3:
            raise ValueError(f"Sampling.temperature must be 0 (greedy) or at least 0.001, not {self.temperature}")
        if self.temperature == 0 and (self.top_k, self.top_p, self.min_p) != (0, 1.0, 0.0):
            raise ValueError(f"Sampling at temperature 0 is greedy: top_k, top_p and min_p cannot act ({self})")

    def at(self, temperature: float) -> "Sampling":
        """Return the same sampling at another temperature; at 0 it drops the truncations, which cannot act."""
        if temperature == 0:
            return Sampling(self.max_tokens, temperature=0.0)
        return replace(self, temperature=temperature)

    def values(self, stop_ids: tuple[int, ...], limit: int | None = None) -> "SamplingValues":
        """Return traced values; `limit` caps response tokens. Raises ValueError for more than STOP_SLOTS stop ids."""
        if len(stop_ids) > STOP_SLOTS:
            raise ValueError(f"at most {STOP_SLOTS} stop ids, not {len(stop_ids)}: {stop_ids}")
        padded = jnp.asarray(stop_ids + (-1,) * (STOP_SLOTS - len(stop_ids)), jnp.int32)
        f32 = partial(jnp.asarray, dtype=jnp.float32)
        longest = jnp.int32(jnp.iinfo(jnp.int32).max if limit is None else limit)
        return SamplingValues(
            f32(self.temperature), jnp.int32(self.top_k), f32(self.top_p), f32(self.min_p), padded, longest
        )


@struct.dataclass
class SamplingValues:
    """`Sampling` as device scalars; stop_ids i32[STOP_SLOTS] padded with -1; limit i32[], the longest response."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    stop_ids: jax.Array
    limit: jax.Array


class _Record(NamedTuple):
    """Tokens sampled so far: the response fields of `Rollout`, [B, T] each."""

    tokens: jax.Array
    mask: jax.Array
    logp: jax.Array
    policy_logp: jax.Array
    model_logp: jax.Array


class _Loop(NamedTuple):
    step: jax.Array
    token: jax.Array
    ended: jax.Array
    record: _Record
    caches: Caches


def generate(
    config: ModelConfig,
    params: dict,
    prompts: Prompts,
    step_key: jax.Array,
    values: SamplingValues,
    *,
    responses_per_prompt: int,
    max_tokens: int,
) -> Rollout:
    """Sample K responses of at most `max_tokens` tokens to each prompt; `step_key` names the noise (`rl_llm.prng`)."""
    chex.assert_rank([prompts.tokens, prompts.lengths, prompts.ids], [2, 1, 1])
    N, K, T = prompts.tokens.shape[0], responses_per_prompt, max_tokens
    B = N * K
    keys = prng.row_keys(step_key, prompts.ids, K)
    hidden, prompt_cache = prefill(config, params, prompts.tokens, prompts.lengths)
    read = decode_context(config, params, prompts.lengths, prompt_cache)
    params = gather_head(config, params)
    last = jnp.take_along_axis(hidden, (prompts.lengths - 1)[:, None, None], axis=1)[:, 0]

    def draw(loop: _Loop, logits: jax.Array) -> _Loop:
        token, logps = sample(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, loop.step), values)
        alive = ~loop.ended & (loop.step < values.limit)  # others of a population may have a later limit
        token = jnp.where(alive, token, 0)
        column = (token, alive.astype(jnp.float32), *(jnp.where(alive, logp, 0.0) for logp in logps))
        record = jax.tree.map(
            lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new[:, None], loop.step, axis=1),
            loop.record,
            _Record(*column),
        )
        ended = loop.ended | jnp.any(token[:, None] == values.stop_ids[None], axis=1)
        return _Loop(loop.step + 1, token, ended, record, loop.caches)

    def advance(span: int, loop: _Loop) -> _Loop:
        hidden, caches = decode(config, params, read, loop.token, loop.step - 1, loop.caches, span)
        return draw(loop._replace(caches=caches), unembed(config, params, hidden))

    def going(span: int, loop: _Loop) -> jax.Array:
        return (loop.step <= span) & any_member((loop.step < values.limit) & ~jnp.all(loop.ended))

    empty = _Record(jnp.zeros((B, T), jnp.int32), *(jnp.zeros((B, T), jnp.float32) for _ in range(4)))
    loop = _Loop(jnp.int32(0), jnp.zeros(B, jnp.int32), jnp.zeros(B, bool), empty, init_cache(config, B, T))
    loop = draw(loop, jnp.repeat(unembed(config, params, last), K, axis=0))
    for span in cache_spans(T):
        loop = loop._replace(caches=grow_cache(loop.caches, span))
        loop = jax.lax.while_loop(partial(going, span), partial(advance, span), loop)
    return Rollout(prompts=prompts, truncated=~loop.ended, **loop.record._asdict())


def cache_spans(max_tokens: int) -> tuple[int, ...]:
    """Cache sizes of the successive decoding stages, in slots.

    Attention costs as much as the cache holds, so it starts small. Every span is a loop of its own in the program, so
    there are few: an eighth, a quarter, a half and the whole, from 32 up.
    """
    whole = max_tokens - 1  # the last sampled token is never read
    return tuple(sorted({-(-whole // part) for part in (8, 4, 2) if whole // part >= 31} | ({whole} - {0})))


def sample(
    logits: jax.Array, keys: jax.Array, values: SamplingValues
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Draw one token per row of logits f32[B, V], each with its own key.

    Returns tokens i32[B] and (logp, policy_logp, model_logp), f32[B]. argmax(log p + Gumbel noise) is distributed as p.
    """
    chex.assert_rank(logits, 2)
    greedy = values.temperature == 0.0
    tempered = logits / jnp.where(greedy, 1.0, values.temperature)
    kept = truncate(tempered, values)
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32))(keys)
    token = jnp.argmax(jnp.where(greedy, logits, kept + gumbel), axis=-1)
    model, policy, sampled = (_logp_of(token, x) for x in (logits, tempered, kept))
    zero = jnp.zeros_like(sampled)  # greedy decoding samples from a point mass
    return token.astype(jnp.int32), (jnp.where(greedy, zero, sampled), jnp.where(greedy, zero, policy), model)


def truncate(logits: jax.Array, values: SamplingValues) -> jax.Array:
    """Mask the tokens outside top_k, top_p and min_p: logits f32[B, V] with -inf there.

    Ties with the last kept token are kept. Each truncation is a threshold found bit by bit, because a TPU's compiler
    takes minutes for a sort. The search runs only if a truncation is on.
    """
    V = logits.shape[-1]

    def cut(logits: jax.Array) -> jax.Array:
        order = _in_order(logits)
        k = jnp.where(values.top_k > 0, values.top_k, V)
        threshold = _largest(lambda least: jnp.sum(order >= least, axis=-1, keepdims=True) >= k, logits.shape[0])
        probabilities = jax.nn.softmax(jnp.where(order >= threshold, logits, -jnp.inf), axis=-1)

        def holds_nucleus(least: jax.Array) -> jax.Array:
            inside = jnp.where(order >= least, probabilities, 0.0)
            return jnp.sum(inside, axis=-1, keepdims=True) >= values.top_p

        nucleus = jnp.where(values.top_p < 1.0, _largest(holds_nucleus, logits.shape[0]), jnp.uint32(0))
        floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(values.min_p)  # log 0 = -inf: off
        return jnp.where((order >= jnp.maximum(threshold, nucleus)) & (logits >= floor), logits, -jnp.inf)

    on = any_member((values.top_k > 0) | (values.top_p < 1.0) | (values.min_p > 0.0))
    return jax.lax.cond(on, cut, lambda logits: logits, logits)


def _in_order(x: jax.Array) -> jax.Array:
    """Map float32 to uint32 in the same order: negative numbers have their bits flipped and come first."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)  # -0.0 + 0.0 is 0.0
    return jnp.where(bits >> 31 == 0, bits | jnp.uint32(1 << 31), ~bits)


def _largest(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """Largest uint32[rows, 1] that satisfies `holds`, by bisection over bits; `holds` is true up to it, false above."""

    def with_bit(index: jax.Array, found: jax.Array) -> jax.Array:
        larger = found | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        return jnp.where(holds(larger), larger, found)

    return jax.lax.fori_loop(0, 32, with_bit, jnp.zeros((rows, 1), jnp.uint32))


def _logp_of(token: jax.Array, logits: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)


def rollout_shape(config: ModelConfig, prompts: Prompts, K: int, T: int) -> Rollout:
    """Shapes and dtypes of the rollout that `generate` samples for prompts, or for shapes of prompts."""
    key, values = jax.random.key(0), Sampling().values(())
    return jax.eval_shape(lambda prompts: _generate(config, K, T, init(config, key), prompts, key, values), prompts)


def prompts_shape(prompts: int, max_prompt_tokens: int) -> Prompts:
    """Shapes and dtypes of a number of prompts."""
    lengths = jax.ShapeDtypeStruct((prompts,), jnp.int32)
    return Prompts(jax.ShapeDtypeStruct((prompts, max_prompt_tokens), jnp.int32), lengths, lengths)


Sampler = Callable[[dict, Prompts, jax.Array, SamplingValues], Rollout]


def compile_sampler(config: ModelConfig, mesh: Mesh, responses_per_prompt: int, max_tokens: int) -> BoundProgram:
    """Compile `generate` for a mesh as a program of (params, prompts, step_key, values)."""
    static, inputs = (config, responses_per_prompt, max_tokens), (laid_out(weight_table(config)), ROWS, SAME, SAME)
    return compile_program(_generate, mesh, static, inputs=inputs, outputs=ROWS)


def _generate(config: ModelConfig, responses_per_prompt: int, max_tokens: int, *arguments: Any) -> Rollout:
    return generate(config, *arguments, responses_per_prompt=responses_per_prompt, max_tokens=max_tokens)
