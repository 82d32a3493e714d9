"""What a step learns from its experience: experience -> batch -> updates, and what the state carries on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_llm.algorithms import Algorithm, Reference
from rl_llm.algorithms.controller import acting
from rl_llm.experiment import Experiment
from rl_llm.learner.state import Update, policy_of
from rl_llm.learner.train_step import Learner, compile_critic_step, compile_make_batch, compile_train_step
from rl_llm.parallel.mesh import on_devices, on_host, put_on_batch
from rl_llm.parallel.numbers import PROGRAMS, Numbers
from rl_llm.parallel.population import program
from rl_llm.prng import Purpose, generator
from rl_llm.problem import Problem
from rl_llm.runs.load import SourceModels
from rl_llm.runs.state import state_spec
from rl_llm.types import Batch, Experience, Mean, Metrics, TrainState, merge_metrics
from rl_llm.update.batch_fields import Fields, fields_for
from rl_llm.update.warm_start import demonstrations


@dataclass(frozen=True)
class Learning:
    """The compiled programs of a run's RL steps, made by `compile_learning`. `problems` are those that are demonstrated
    where the experiment mixes demonstrations in.
    """

    experiment: Experiment
    seed: int
    mesh: Mesh
    problems: Sequence[Problem]
    fields: Fields
    build_batch: Callable[..., tuple[Batch, Any]]
    build_again: Callable[..., tuple[Batch, Any]]
    train_step: Update
    critic_step: Update
    adapt: Callable[..., dict[str, jax.Array]]

    def passes(self, step: int) -> int:
        """Passes over a rollout that a step costs: 3 for the updates (2 for those of adapters), 1 for the log-
        probabilities of another policy. What is replayed is taken to be as long.
        """
        critic, replay = self.experiment.critic, self.experiment.replay
        rollouts = 1 + len(replay.drawn(self.seed, step) if replay else ())
        adapters = self.experiment.model.lora is not None  # then the products for the weights' gradients are not made
        policy = (2 if adapters else 3) if step >= self.experiment.pretraining_steps else 0
        return rollouts * (policy + self.fields.passes + (3 if critic and not critic.shared else 0))

    def step(self, state: TrainState, experience: Experience, step: int) -> tuple[TrainState, Metrics]:
        """Learn from the experience of a step (from 0), then from the earlier ones that it replays."""
        experiment = self.experiment
        # What is replayed, and what a sampler may be reading just now, must not be given away with the state.
        replay, past = state.replay, state.past
        state = replace(state, replay=None, past=None)
        draw = generator(self.seed, Purpose.MIXTURE, step)
        state, metrics = self._learn(state, experience, step, draw)
        for age in experiment.replay.drawn(self.seed, step) if experiment.replay else ():
            state, more = self._learn(state, replay[-age], step, draw, replayed=True)
            metrics += more
        together = merge_update_metrics(metrics)
        if experiment.reference is not None:
            state = replace(state, reference=self._reference_after(experiment.reference, state, step + 1))
        if state.coefficients is not None and step >= experiment.pretraining_steps:
            rows = experiment.prompts_per_step * experiment.responses_per_prompt
            state = replace(state, coefficients=self.adapt(state.coefficients, together, rows))
            one = jnp.float32(1.0)
            together |= {f"coefficient/{name}": Mean(acting(c), one) for name, c in state.coefficients.items()}
        return replace(state, replay=replay and (*replay[1:], experience), past=past), together

    @staticmethod
    def _reference_after(reference: Reference, state: TrainState, step: int) -> dict:
        if not reference.offload:
            return reference.after_step(state.reference, state.params, step)
        if not reference.moves(step):
            return dict(state.reference)
        return dict(on_host(reference.after_step(on_devices(state.reference), state.params, step)))

    def _learn(
        self, state: TrainState, experience: Experience, step: int, draw: np.random.Generator, replayed: bool = False
    ) -> tuple[TrainState, list[Metrics]]:
        """The updates on one experience, each with its metrics."""
        made = self.fields.make(state, experience, replayed)
        build = self.build_again if replayed else self.build_batch
        batch, moments = build(experience.rollout, experience.reward, made, state.moments, state.coefficients)
        reference = state.reference
        state = replace(state, moments=moments, reference=None)
        metrics = []
        for update in map(jnp.int32, range(self.experiment.updates_per_rollout)):
            if step < self.experiment.pretraining_steps:
                state, of_update = self.critic_step(state, batch, update)
            else:
                temperature = jnp.float32(self.experiment.sampling.temperature)
                state, of_update = self.train_step(state, batch, update, temperature, self._demonstrations(draw))
            metrics.append(of_update)
        return replace(state, reference=reference), metrics

    def _demonstrations(self, draw: np.random.Generator) -> Batch | None:
        mixture = self.experiment.mixture
        if mixture is None:
            return None
        batch, _ = demonstrations(self.experiment, self.problems, draw, mixture.per_update, mixture.max_tokens)
        weighed: Batch = put_on_batch(self.mesh, replace(batch, weight=mixture.coefficient * batch.weight))
        return weighed


def compile_learning(
    experiment: Experiment, seed: int, mesh: Mesh, sources: SourceModels, problems: Sequence[Problem]
) -> Learning:
    """The programs of an experiment's steps; each is compiled when it is first called."""
    carries, critic = state_spec(experiment), experiment.critic
    learner = Learner(
        experiment.model,
        experiment.algorithm,
        experiment.optimizer.build(experiment.policy_updates()),
        experiment.updates_per_rollout,
        experiment.micro_batches,
        critic,
        carries.critic_optimizer,
    )
    in_update = replace(carries, replay=0, experience=None, past=0, reference=False)
    return Learning(
        experiment,
        seed,
        mesh,
        problems,
        fields_for(experiment, mesh, sources),
        compile_make_batch(experiment.algorithm, mesh),
        compile_make_batch(experiment.algorithm, mesh, replayed=True),
        compile_train_step(learner, mesh, in_update),
        compile_critic_step(learner, mesh, in_update),
        compile_adapted(experiment.algorithm),
    )


def compile_adapted(algorithm: Algorithm) -> Callable[..., dict[str, jax.Array]]:
    """`Algorithm.adapted` jitted: one program for all numbers."""
    numbers = Numbers.of(algorithm)
    return partial(_compile_adapted(numbers.structure), numbers)


@lru_cache(maxsize=PROGRAMS)
def _compile_adapted(structure: Algorithm) -> Any:
    def adapted(numbers: Numbers[Algorithm], *arguments: Any) -> dict[str, jax.Array]:
        return numbers.value.adapted(*arguments)

    return program(adapted)


def sampler_params(state: TrainState) -> dict:
    """Parameters that sample next: the oldest of the past, or the current ones without a past."""
    return policy_of(state, state.past[0] if state.past else None)


def push_past_params(state: TrainState) -> TrainState:
    """Before a step's updates: the parameters that they will overwrite take the place of the oldest of the past."""
    if state.past is None:
        return state
    return replace(state, past=(*state.past[1:], jax.tree.map(jnp.copy, state.params)))


def merge_update_metrics(metrics: Sequence[Metrics]) -> Metrics:
    """Metrics of a step's updates together; agreement is the first update's: after it the learner is another policy."""
    together = reduce(merge_metrics, metrics)
    return together | {name: metric for name, metric in metrics[0].items() if name.startswith("agreement/")}
