"""A reward model's score of responses: the value that its critic gives at their last token."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_llm.experiment import Experiment
from rl_llm.fields import compile_values
from rl_llm.types import Rollout

Scorer = Callable[[Rollout], np.ndarray]


def scorer(model: tuple[Experiment, dict], mesh: Mesh) -> Scorer:
    """From a reward model (its experiment and its critic's parameters) to its score f32[B] of a rollout's responses."""
    experiment, params = model
    values = compile_values(experiment, mesh)
    policy = {name: params[name] for name in params if name != "value_head"}

    def score(rollout: Rollout) -> np.ndarray:
        last = jnp.sum(rollout.mask, axis=1).astype(jnp.int32) - 1
        of_tokens = values(policy, params, rollout)
        return np.asarray(jnp.take_along_axis(of_tokens, last[:, None], axis=1)[:, 0])

    return score
