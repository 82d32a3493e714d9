"""Randomness by name, never carried: every draw is a function of (seed, purpose, step, ...), so a resumed run redraws
it.
"""

from enum import IntEnum

import jax
import numpy as np


class Purpose(IntEnum):
    """What a draw is for. Two purposes never share noise; the numbers are part of a run's identity: append, never
    reorder.
    """

    PARAMETERS = 0
    DEMONSTRATIONS = 1
    PROMPT_ORDER = 2
    ROLLOUT = 3
    EVALUATION = 4
    SKILL = 5
    REPLAY = 6
    MIXTURE = 7
    ON_POLICY = 8


def key(seed: int, purpose: Purpose, step: int | jax.Array = 0) -> jax.Array:
    """The JAX key of one step of one purpose."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), int(purpose)), step)


def row_keys(step_key: jax.Array, problem_ids: jax.Array, responses_per_prompt: int) -> jax.Array:
    """Keys [B] of a step's rows from the problem's id and the sample's index: whatever else is in the batch plays no
    part.
    """
    problems = jax.vmap(jax.random.fold_in, (None, 0))(step_key, problem_ids)
    samples = jax.numpy.arange(responses_per_prompt)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(problems, samples).reshape(-1)


def generator(seed: int, purpose: Purpose, step: int = 0) -> np.random.Generator:
    """The host's counterpart of `key`, for data order and demonstrations."""
    return np.random.default_rng([seed, int(purpose), step])
