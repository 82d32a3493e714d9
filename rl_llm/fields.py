"""What a batch gets besides its rollout and rewards: the fields that only some algorithms need, made for each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_llm.actor import Actor, Answers
from rl_llm.learner import compile_logps
from rl_llm.mesh import put_on_batch
from rl_llm.problem import Problem
from rl_llm.types import Rollout, TrainState

Logps = Callable[[dict, Rollout, jax.Array], jax.Array]


@dataclass(frozen=True)
class Fields:
    """Makes `names` (made by `fields_for`); each costs what it takes, and nothing where it is not needed."""

    names: frozenset[str]
    actor: Actor
    logps: Logps

    def make(
        self, state: TrainState, problems: Sequence[Problem], answers: Answers, key: jax.Array
    ) -> dict[str, jax.Array]:
        """The fields of the batch of one step, by name, on the mesh."""
        makers: dict[str, Callable[[], Any]] = {
            "old_logp": lambda: self._logp(state.params, answers),
            "ref_logp": lambda: self._logp(state.reference, answers),
            "greedy_reward": lambda: self._greedy_reward(state.params, problems, key),
            "rewards": lambda: self._components(answers),
        }
        return {name: put_on_batch(self.actor.mesh, makers[name]()) for name in sorted(self.names)}

    def _logp(self, params: dict, answers: Answers) -> jax.Array:
        return self.logps(params, answers.rollout, jnp.float32(self.actor.experiment.sampling.temperature))

    def _greedy_reward(self, params: dict, problems: Sequence[Problem], key: jax.Array) -> np.ndarray:
        """f32[B]; the greedy response is made K times over, by the program that is there."""
        return self.actor.answer(params, problems, key, self.actor.experiment.sampling.at(0.0)).rewards

    def _components(self, answers: Answers) -> np.ndarray:
        """f32[B, C], unweighted, in the order of the reward; 0 for what could not be graded."""
        names = self.actor.experiment.reward.names
        return np.array([[grade.components.get(name, 0.0) for name in names] for grade in answers.grades], np.float32)


def fields_for(actor: Actor) -> Fields:
    """What the experiment's algorithm needs; and the policy's own log-probabilities where the sampler is behind it."""
    experiment = actor.experiment
    names = experiment.algorithm.needs - {"moments"} | ({"old_logp"} if experiment.staleness else set())
    return Fields(frozenset(names), actor, compile_logps(experiment.model, actor.mesh))
