"""Exact expectations of gradients for a policy small enough to enumerate all responses and all groups of them."""

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_llm.algorithms import Algorithm, Moments
from rl_llm.learner.train_step import make_batch
from rl_llm.types import Prompts, Rollout

V, T = 3, 3  # token 0 ends a response
RESPONSES = [r for n in range(1, T + 1) for r in product(range(V), repeat=n) if 0 not in r[:-1] and (0 in r or n == T)]
STATES = sorted({r[:t] for r in RESPONSES for t in range(len(r))})  # possible prefixes of a token
TOKENS = np.array([r + (0,) * (T - len(r)) for r in RESPONSES])
BEFORE = np.array([((0, *r) + (0,) * T)[:T] for r in RESPONSES])
LENGTHS = np.array([len(r) for r in RESPONSES])
MASK = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)
TRUNCATED = TOKENS[:, -1] > 0

DRAW = np.random.default_rng(0)
POLICY, REF = (DRAW.normal(size=(T, V, V)).astype(np.float32) for _ in range(2))
SAMPLER = POLICY + 0.5 * DRAW.normal(size=POLICY.shape).astype(np.float32)
REWARD = DRAW.normal(size=len(RESPONSES)).astype(np.float32)  # of both signs, without ties
KL_BASELINE = 0.3
RIGHT = (DRAW.permutation(len(RESPONSES)) < 5).astype(np.float32)


def logps(table: Any) -> jax.Array:
    """Logits [T, V, V] by (position, token before, token) -> log-probabilities [responses, T], 0 at padding."""
    return jax.nn.log_softmax(jnp.asarray(table))[np.arange(T), BEFORE, TOKENS] * MASK


def probability(table: Any) -> jax.Array:
    """Probability of each response, f32[responses]."""
    return jnp.exp(jnp.sum(logps(table), axis=1))


def begins(state: tuple[int, ...]) -> np.ndarray:
    """1 for responses that begin with this state, f32[responses]."""
    return np.array([response[: len(state)] == state for response in RESPONSES], np.float32)


def at_state(table: Any, state: tuple[int, ...]) -> jax.Array:
    """Logits [V] of the next token in a state."""
    return jnp.asarray(table)[len(state), state[-1] if state else 0]


def over_states(per_state: Any, visited: Any) -> jax.Array:
    """Expected sum of `per_state(state)` over the tokens of a response drawn from `visited`."""
    chance = jax.lax.stop_gradient(probability(visited))
    return sum(jnp.sum(chance * begins(state)) * per_state(state) for state in STATES)  # type: ignore[return-value]


def values_at(table: Any, reward: Any) -> np.ndarray:
    """Exact value of the state before each token, f32[responses, T]."""
    chance = np.asarray(probability(table), np.float64)
    of = {s: (chance * begins(s) * reward).sum() / (chance * begins(s)).sum() for s in STATES}
    rows = [[of[r[:t]] if t < len(r) else 0.0 for t in range(T)] for r in RESPONSES]
    return np.array(rows, np.float32)


TEACHER_TOKENS = np.argsort(-REF, axis=-1)[np.arange(T), BEFORE][..., :2]  # the teacher's likeliest two of three


def at_teachers(table: Any) -> jax.Array:
    """Log-probabilities [responses, T, 2] of the teacher's likeliest tokens."""
    states = jax.nn.log_softmax(jnp.asarray(table))[np.arange(T), BEFORE]
    return jnp.take_along_axis(states, jnp.asarray(TEACHER_TOKENS), axis=-1)


def batches(
    algorithm: Algorithm, sampler: Any, old: Any, made: dict, moments: Any, groups: int, k: int
) -> tuple[jax.Array, jax.Array, Any]:
    """Rows of every batch, its probability, and the batch."""
    rows = np.array(list(product(range(len(RESPONSES)), repeat=groups * k)))
    prompts = Prompts(jnp.zeros((groups, 1), jnp.int32), jnp.ones(groups, jnp.int32), jnp.arange(groups))
    sampled, begun = logps(sampler), logps(old)
    made = dict(made)
    reward = made.pop("reward")

    def batch_of(row: jax.Array) -> Any:
        tokens, mask = jnp.asarray(TOKENS)[row], jnp.asarray(MASK)[row]
        logp = begun[row]
        rollout = Rollout(prompts, tokens, mask, jnp.asarray(TRUNCATED)[row], sampled[row], logp, logp, reward[row])
        fields = {name: jnp.asarray(value)[row] for name, value in made.items()}
        return make_batch(algorithm, rollout, fields, moments)[0]

    return jnp.asarray(rows), jnp.prod(probability(sampler)[rows], axis=1), jax.vmap(batch_of)(jnp.asarray(rows))


# Little optimization: these programs are compiled once and run once.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@partial(jax.jit, static_argnames=("algorithm", "groups", "k"), compiler_options=QUICKLY)
def _ascent(
    algorithm: Algorithm, table: Any, sampler: Any, old: Any, made: dict, moments: Any, groups: int, k: int
) -> jax.Array:
    rows, chance, all_batches = batches(algorithm, sampler, old, made, moments, groups, k)

    def loss(table: Any, row: jax.Array, batch: Any) -> jax.Array:
        states = jax.nn.log_softmax(jnp.asarray(table))
        entropy = -jnp.sum(jnp.exp(states) * states, axis=-1)[np.arange(T), BEFORE] * MASK
        logp = logps(table)[row]
        if "teacher_tokens" in algorithm.needs:
            batch = replace(batch, student_logp=at_teachers(table)[row])
        losses = algorithm.objective(logp, batch)[0]
        for term in algorithm.regularizers:
            losses = losses + term(logp, entropy[row], batch)[0]
        return jnp.sum(batch.weight * losses)

    return -jax.grad(lambda x: jnp.sum(chance * jax.vmap(partial(loss, x))(rows, all_batches)))(table)


@partial(jax.jit, static_argnames=("algorithm", "groups", "k"), compiler_options=QUICKLY)
def _critics_ascent(
    algorithm: Algorithm, values: Any, sampler: Any, old: Any, made: dict, moments: Any, groups: int, k: int
) -> jax.Array:
    rows, chance, all_batches = batches(algorithm, sampler, old, made, moments, groups, k)

    def loss(values: Any, row: jax.Array, batch: Any) -> jax.Array:
        assert algorithm.value_loss is not None
        return jnp.sum(batch.value_weight * algorithm.value_loss(values_of(values)[row], batch)[0])

    return -jax.grad(lambda x: jnp.sum(chance * jax.vmap(partial(loss, x))(rows, all_batches)))(values)


def values_of(values: Any) -> jax.Array:
    """Values [T, V] by (position, token before) -> [responses, T], 0 at padding."""
    return jnp.asarray(values)[np.arange(T), BEFORE] * MASK


def expected_ascent(
    algorithm: Algorithm,
    *,
    k: int = 3,
    groups: int = 1,
    reward: Any = REWARD,
    sampler: Any = POLICY,
    old: Any = POLICY,
    value: Any = None,
    moments: Moments | None = None,
    critic: Any = None,
) -> np.ndarray:
    """Expected ascent direction at POLICY (or of a critic at `critic`), minus the gradient of the loss.

    Over all batches of `groups` groups of k responses from `sampler`, for updates that began at `old`.
    """
    greedy = reward[int(np.argmax(probability(POLICY)))]  # any fixed response would do
    made = {
        "reward": jnp.asarray(reward),
        "ref_logp": logps(REF),
        "greedy_reward": np.full(len(RESPONSES), greedy, np.float32),
        "value": MASK if value is None else value,
        "rewards": np.stack([reward, RIGHT], axis=1),
        "kl_baseline": np.full(len(RESPONSES), KL_BASELINE, np.float32),
        "teacher_tokens": TEACHER_TOKENS,
        "teacher_logp": at_teachers(REF),
    }
    made = {name: made[name] for name in made if name == "reward" or name in algorithm.needs}
    ascent, at = (_ascent, POLICY) if critic is None else (_critics_ascent, critic)
    return np.asarray(ascent(algorithm, at, sampler, old, made, moments, groups, k))


def gradient(objective: Any) -> np.ndarray:
    """Gradient of a function of the table, at POLICY."""
    return np.asarray(jax.jit(jax.grad(objective), compiler_options=QUICKLY)(POLICY))


def expected_reward(table: Any, reward: Any = REWARD) -> jax.Array:
    return jnp.sum(probability(table) * reward)
