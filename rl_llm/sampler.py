"""The sampler: one jitted function from prompts to a rollout.

Each prompt is read once and shared by its K responses; rows sample until all have ended. Temperature, truncations and
stop ids are values, not programs: changing one compiles nothing. A row's noise is a function of (seed, purpose, step,
problem, sample index, position) only, so its tokens do not depend on the batch it sits in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from rl_llm import prng
from rl_llm.model import (
    Caches,
    ModelConfig,
    decode,
    decode_context,
    gathered_head,
    grow_cache,
    init_cache,
    prefill,
    unembed,
    weight_table,
)
from rl_llm.parallel import mesh as meshes
from rl_llm.parallel.numbers import PROGRAMS
from rl_llm.parallel.population import of_any
from rl_llm.types import Prompts, Rollout

STOP_SLOTS = 8  # the stop ids travel in an array of fixed size, so that their number is not part of the program


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: softmax(logits / temperature), cut to the top_k tokens, then the top_p nucleus, then
    min_p.

    Off is top_k 0, top_p 1, min_p 0; temperature 0 takes the likeliest token. min_p drops tokens less likely than
    min_p times the likeliest (arXiv 2407.01082); top_p is the nucleus of arXiv 1904.09751, renormalised after top_k
    as is customary.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"Sampling.max_tokens must be at least 1, not {self.max_tokens}")
        if not (self.temperature == 0 or 1e-3 <= self.temperature < float("inf")):
            raise ValueError(f"Sampling.temperature must be 0 (greedy) or at least 0.001, not {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"Sampling needs top_k >= 0, 0 < top_p <= 1, 0 <= min_p <= 1, not {self}")
        if self.temperature == 0 and (self.top_k, self.top_p, self.min_p) != (0, 1.0, 0.0):
            raise ValueError(f"Sampling at temperature 0 is greedy: top_k, top_p and min_p cannot act ({self})")

    def at(self, temperature: float) -> "Sampling":
        """The same at another temperature; at 0 without the truncations, which could not act."""
        if temperature == 0:
            return Sampling(self.max_tokens, temperature=0.0)
        return replace(self, temperature=temperature)

    def values(self, stop_ids: tuple[int, ...], limit: int | None = None) -> "SamplingValues":
        """The traced values; responses are cut after `limit` tokens if that comes first. Raises ValueError
        for more than STOP_SLOTS stop ids.
        """
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
    """`Sampling` as device scalars, stop_ids i32[STOP_SLOTS] padded with -1, and the longest response in tokens."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    stop_ids: jax.Array
    limit: jax.Array


class _Record(NamedTuple):
    """What has been sampled so far: the response fields of `Rollout`, [B, T] each."""

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
    """Sample K responses of at most `max_tokens` tokens to each prompt. Pure; `compile_sampler` jits and shards it."""
    N, K, T = prompts.tokens.shape[0], responses_per_prompt, max_tokens
    B = N * K
    keys = prng.row_keys(step_key, prompts.ids, K)
    hidden, prompt_cache = prefill(config, params, prompts.tokens, prompts.lengths)
    read = decode_context(config, params, prompts.lengths, prompt_cache)
    params = gathered_head(config, params)
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
        return (loop.step <= span) & of_any((loop.step < values.limit) & ~jnp.all(loop.ended))

    empty = _Record(jnp.zeros((B, T), jnp.int32), *(jnp.zeros((B, T), jnp.float32) for _ in range(4)))
    loop = _Loop(jnp.int32(0), jnp.zeros(B, jnp.int32), jnp.zeros(B, bool), empty, init_cache(config, B, T))
    loop = draw(loop, jnp.repeat(unembed(config, params, last), K, axis=0))
    for span in cache_spans(T):
        loop = loop._replace(caches=grow_cache(loop.caches, span))
        loop = jax.lax.while_loop(partial(going, span), partial(advance, span), loop)
    return Rollout(prompts=prompts, truncated=~loop.ended, **loop.record._asdict())


def cache_spans(max_tokens: int) -> tuple[int, ...]:
    """Cache sizes of the successive stages of decoding: attention costs what the cache holds, so it starts small.

    Every span is a loop of its own in the program, hence few of them: an eighth, a quarter, a half, the whole, from
    32 up.
    """
    whole = max_tokens - 1  # the last sampled token is never read
    return tuple(sorted({-(-whole // part) for part in (8, 4, 2) if whole // part >= 31} | ({whole} - {0})))


def sample(
    logits: jax.Array, keys: jax.Array, values: SamplingValues
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Draw a token per row of logits f32[B, V] with its own key -> tokens i32[B], (logp, policy_logp, model_logp)
    f32[B].

    By the Gumbel maximum: argmax(log p + Gumbel noise) is distributed as p.
    """
    greedy = values.temperature == 0.0
    tempered = logits / jnp.where(greedy, 1.0, values.temperature)
    kept = truncate(tempered, values)
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32))(keys)
    token = jnp.argmax(jnp.where(greedy, logits, kept + gumbel), axis=-1)
    model, policy, sampled = (_logp_of(token, x) for x in (logits, tempered, kept))
    zero = jnp.zeros_like(sampled)  # greedy decoding samples from a point mass
    return token.astype(jnp.int32), (jnp.where(greedy, zero, sampled), jnp.where(greedy, zero, policy), model)


def truncate(logits: jax.Array, values: SamplingValues) -> jax.Array:
    """Logits f32[B, V] with the tokens that top_k, top_p and min_p leave out at -inf. Ties with the last kept token
    stay.

    Without a sort, which takes a TPU's compiler minutes: each truncation is a threshold, found bit by bit. That is only
    done when one is on.
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

    on = of_any((values.top_k > 0) | (values.top_p < 1.0) | (values.min_p > 0.0))
    return jax.lax.cond(on, cut, lambda logits: logits, logits)


def _in_order(x: jax.Array) -> jax.Array:
    """uint32 that are ordered as the float32 are: the bits of positive ones after those of negative ones, turned."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)  # -0.0 + 0.0 is 0.0
    return jnp.where(bits >> 31 == 0, bits | jnp.uint32(1 << 31), ~bits)


def _largest(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The largest uint32[rows, 1] for which `holds`, which holds for 0 and for none above one that it does not hold
    for.
    """

    def with_bit(index: jax.Array, found: jax.Array) -> jax.Array:
        larger = found | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        return jnp.where(holds(larger), larger, found)

    return jax.lax.fori_loop(0, 32, with_bit, jnp.zeros((rows, 1), jnp.uint32))


def _logp_of(token: jax.Array, logits: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)


Sampler = Callable[[dict, Prompts, jax.Array, SamplingValues], Rollout]


@lru_cache(maxsize=PROGRAMS)
def compile_sampler(config: ModelConfig, mesh: Mesh, responses_per_prompt: int, max_tokens: int) -> Sampler:
    """`generate` jitted for a mesh: weights sharded by their table, prompts and rows over the data-parallel axes."""
    rows, same = meshes.over_batch(mesh), meshes.replicated(mesh)

    def responses(*arguments: Any) -> Rollout:
        return generate(config, *arguments, responses_per_prompt=responses_per_prompt, max_tokens=max_tokens)

    weights = meshes.weight_shardings(mesh, weight_table(config))
    compiled: Sampler = meshes.compile(responses, mesh, in_shardings=(weights, rows, same, same), out_shardings=rows)
    return compiled
