"""Reward-model scores: the value of a critic at the last token of a response."""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_llm.algorithms.returns import at_last_token
from rl_llm.experiment import Experiment
from rl_llm.learner.critic import compile_values
from rl_llm.learner.train_step import first_batch
from rl_llm.parallel import hosts
from rl_llm.types import Rollout

Scorer = Callable[[Rollout], np.ndarray]


def compile_scorer(model: tuple[Experiment, dict], mesh: Mesh) -> Scorer:
    """Compile the scores f32[B] of a reward model, given as its experiment and its critic's parameters."""
    experiment, params = model
    values = compile_values(experiment.model, experiment.critic, experiment.algorithm.after_token, mesh)

    def score(rollout: Rollout) -> np.ndarray:
        token_values, on_host = hosts.to_host((values(None, params, rollout), rollout))
        batch = first_batch(replace(on_host, reward=jnp.zeros(on_host.mask.shape[0])))
        last = at_last_token(batch, jnp.ones(on_host.mask.shape[0]))
        return np.asarray(jnp.sum(token_values * last, axis=1))

    return score
