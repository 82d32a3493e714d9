"""Randomness by name: every draw is a function of (seed, purpose, step, ...), so a resumed run repeats it."""

from enum import IntEnum

import jax
import numpy as np


class Purpose(IntEnum):
    """Purpose of a draw. Purposes share no noise. The numbers are part of a run's identity: append, never reorder."""

    PARAMETERS = 0
    DEMONSTRATIONS = 1
    PROMPT_ORDER = 2
    ROLLOUT = 3
    EVALUATION = 4
    SKILL = 5
    REPLAY = 6
    MIXTURE = 7
    ON_POLICY = 8
    GATE = 9


def key(seed: int, purpose: Purpose, step: int | jax.Array = 0) -> jax.Array:
    """JAX key of a purpose at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), int(purpose)), step)


def row_keys(step_key: jax.Array, problem_ids: jax.Array, responses_per_prompt: int) -> jax.Array:
    """Keys [B] of a step's rows, from problem ids i32[N] and sample indices only, so independent of the batch."""
    problems = jax.vmap(jax.random.fold_in, (None, 0))(step_key, problem_ids)
    samples = jax.numpy.arange(responses_per_prompt)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(problems, samples).reshape(-1)


def generator(seed: int, purpose: Purpose, step: int = 0) -> np.random.Generator:
    """NumPy counterpart of `key`, for data order and demonstrations."""
    return np.random.default_rng([seed, int(purpose), step])
