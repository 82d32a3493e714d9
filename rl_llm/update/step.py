"""The update of one RL step: graded rollout -> batch -> updates, and the state that is carried to the next step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

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
from rl_llm.parallel.programs import BoundProgram, compile_program
from rl_llm.prng import Purpose, generator
from rl_llm.problem import Problem
from rl_llm.runs.load import SourceModels
from rl_llm.runs.state import state_spec
from rl_llm.types import Batch, Mean, Metrics, Rollout, TrainState, merge_metrics
from rl_llm.update.batch_fields import BatchFields, compile_batch_fields
from rl_llm.update.warm_start import demonstrations


@dataclass(frozen=True)
class Learning:
    """Compiled programs of a run's RL steps, made by `compile_learning`. A mixture demonstrates `problems`."""

    experiment: Experiment
    seed: int
    mesh: Mesh
    problems: Sequence[Problem]
    fields: BatchFields
    make_batch: BoundProgram
    make_replayed_batch: BoundProgram
    train_step: Update
    critic_step: Update
    adapt: Callable[..., dict[str, jax.Array]]

    def passes(self, step: int) -> int:
        """Passes over a rollout that a step costs; replayed rollouts are assumed to be as long.

        Updates cost 3 (adapters 2: no products for the weights' gradients), log-probabilities of other policies 1 each.
        """
        critic, replay = self.experiment.critic, self.experiment.replay
        rollouts = 1 + len(replay.drawn(self.seed, step) if replay else ())
        policy = 0 if step < self.experiment.pretraining_steps else 3 if self.experiment.model.lora is None else 2
        return rollouts * (policy + self.fields.passes + (3 if critic and not critic.shared else 0))

    def update(self, state: TrainState, rollout: Rollout, step: int) -> tuple[TrainState, Metrics]:
        """Learn from the graded rollout of a step (from 0), then from the earlier ones that it replays."""
        experiment = self.experiment
        # Replayed rollouts, and parameters that a sampler may be reading, must not be donated with the state.
        replay, past = state.replay, state.past
        state = replace(state, replay=None, past=None)
        draw = generator(self.seed, Purpose.MIXTURE, step)
        state, metrics = self._learn(state, rollout, step, draw)
        for age in experiment.replay.drawn(self.seed, step) if experiment.replay else ():
            state, more = self._learn(state, replay[-age], step, draw, replayed=True)
            metrics += more
        merged = merge_update_metrics(metrics)
        if experiment.reference is not None:
            state = replace(state, reference=self._reference_after(experiment.reference, state, step + 1))
        if state.coefficients is not None and step >= experiment.pretraining_steps:
            rows = experiment.prompts_per_step * experiment.responses_per_prompt
            state = replace(state, coefficients=self.adapt(state.coefficients, merged, rows))
            one = jnp.float32(1.0)
            merged |= {f"coefficient/{name}": Mean(acting(c), one) for name, c in state.coefficients.items()}
        return replace(state, replay=replay and (*replay[1:], rollout), past=past), merged

    @staticmethod
    def _reference_after(reference: Reference, state: TrainState, step: int) -> dict:
        if not reference.offload:
            return reference.after_step(state.reference, state.params, step)
        if not reference.moves(step):
            return dict(state.reference)
        return dict(on_host(reference.after_step(on_devices(state.reference), state.params, step)))

    def _learn(
        self, state: TrainState, rollout: Rollout, step: int, draw: np.random.Generator, replayed: bool = False
    ) -> tuple[TrainState, list[Metrics]]:
        """Make the updates on one rollout; returns the metrics of each."""
        extra_fields = self.fields.compute(state, rollout, replayed)
        make_batch = self.make_replayed_batch if replayed else self.make_batch
        batch, moments = make_batch(rollout, extra_fields, state.moments, state.coefficients)
        reference = state.reference
        state = replace(state, moments=moments, reference=None)
        metrics = []
        for update in map(jnp.int32, range(self.experiment.updates_per_rollout)):
            if step < self.experiment.pretraining_steps:
                state, update_metrics = self.critic_step(state, batch, update)
            else:
                temperature = jnp.float32(self.experiment.sampling.temperature)
                state, update_metrics = self.train_step(state, batch, update, temperature, self._demonstrations(draw))
            metrics.append(update_metrics)
        return replace(state, reference=reference), metrics

    def _demonstrations(self, draw: np.random.Generator) -> Batch | None:
        mixture = self.experiment.mixture
        if mixture is None:
            return None
        batch, _ = demonstrations(self.experiment, self.problems, draw, mixture.per_update, mixture.max_tokens)
        weighted: Batch = put_on_batch(self.mesh, replace(batch, weight=mixture.coefficient * batch.weight))
        return weighted


def compile_learning(
    experiment: Experiment, seed: int, mesh: Mesh, sources: SourceModels, problems: Sequence[Problem]
) -> Learning:
    """Compile the programs of an experiment's steps; each compiles at its first call."""
    spec, algorithm = state_spec(experiment), experiment.algorithm
    learner = Learner(
        experiment.model,
        algorithm,
        experiment.policy_optimizer,
        experiment.updates_per_rollout,
        experiment.micro_batches,
        experiment.critic,
        spec.critic_optimizer,
    )
    in_update = replace(spec, replay=0, replayed=None, past=0, reference=False)
    return Learning(
        experiment,
        seed,
        mesh,
        problems,
        compile_batch_fields(experiment, mesh, sources),
        compile_make_batch(algorithm, mesh),
        compile_make_batch(algorithm, mesh, replayed=True),
        compile_train_step(learner, mesh, in_update),
        compile_critic_step(learner, mesh, in_update),
        compile_program(Algorithm.adapted, mesh, numbers=(algorithm,)),
    )


def sampler_params(state: TrainState) -> dict:
    """Parameters that sample next: the oldest of the past, or the current ones if no past is kept."""
    return policy_of(state, state.past[0] if state.past else None)


def push_past_params(state: TrainState) -> TrainState:
    """Replace the oldest past parameters by the current ones, which the step's updates will overwrite."""
    if state.past is None:
        return state
    return replace(state, past=(*state.past[1:], jax.tree.map(jnp.copy, state.params)))


def merge_update_metrics(metrics: Sequence[Metrics]) -> Metrics:
    """Merge the metrics of a step's updates; agreement is the first update's, since later ones change the policy."""
    merged = reduce(merge_metrics, metrics)
    return merged | {name: metric for name, metric in metrics[0].items() if name.startswith("agreement/")}
