"""A reward model's score of responses: the value that its critic gives at their last token."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_llm.algorithms.returns import at_last_token
from rl_llm.experiment import Experiment
from rl_llm.learner.train_step import first_batch
from rl_llm.parallel import hosts
from rl_llm.types import Rollout
from rl_llm.update.batch_fields import compile_values

Scorer = Callable[[Rollout], np.ndarray]


def scorer(model: tuple[Experiment, dict], mesh: Mesh) -> Scorer:
    """From a reward model (its experiment and its critic's parameters) to its score f32[B] of a rollout's responses."""
    experiment, params = model
    values = compile_values(experiment, mesh)

    def score(rollout: Rollout) -> np.ndarray:
        of_tokens, on_host = hosts.to_host((values(None, params, rollout), rollout))
        batch = first_batch(on_host, jnp.zeros(on_host.mask.shape[0]))
        last = at_last_token(batch, jnp.ones(on_host.mask.shape[0]))
        return np.asarray(jnp.sum(of_tokens * last, axis=1))

    return score
