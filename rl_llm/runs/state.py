"""What a run's state carries, and the state on the disk: checkpoints, and beside them, once, what is not trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rl_llm.experiment import Experiment
from rl_llm.learner.state import PARAMS_ONLY, StateSpec, abstract_state
from rl_llm.parallel import hosts
from rl_llm.runs.checkpoint import CheckpointError, Checkpoints, Restored
from rl_llm.runs.folder import RunFolder
from rl_llm.types import Experience, Prompts, Rollout, TrainState

FROZEN = "frozen"  # the folder of what is not trained, beside "checkpoints"


def save(folder: RunFolder, step: int, state: TrainState, progress: dict[str, Any]) -> None:
    """A checkpoint of a state; before the first one, the parameters that stay as they are."""
    if state.frozen is not None and not hosts.on_writer((folder.path / FROZEN / "0").exists):
        Checkpoints(folder.path / FROZEN).save(0, state.frozen, {})
    folder.checkpoints.save(step, replace(state, frozen=None), progress)


def restore(experiment: Experiment, folder: Path, mesh: Mesh) -> Restored | None:
    """The newest good checkpoint of a run folder on the mesh, or None where there is none. Raises CheckpointError
    where all are damaged, or do not fit.
    """
    template = template_of(experiment, mesh)
    restored = Checkpoints(folder / "checkpoints").restore_newest(
        lambda progress: replace(template(progress), frozen=None)
    )
    if restored is None or experiment.model.lora is None:
        return restored
    frozen = Checkpoints(folder / FROZEN).restore_newest(lambda _: template({}).frozen)
    if frozen is None:
        raise CheckpointError(f"{folder / FROZEN} is missing: the weights that the adapters in {folder} belong to")
    return replace(restored, state=replace(restored.state, frozen=frozen.state))


def state_spec(experiment: Experiment) -> StateSpec:
    """What the state of an experiment's RL carries from step to step."""
    algorithm, critic, replay = experiment.algorithm, experiment.critic, experiment.replay
    return StateSpec(
        critic=critic,
        critic_optimizer=critic.optimizer.build(experiment.rollout_updates(experiment.steps)) if critic else None,
        reference=experiment.reference is not None,
        offload=experiment.reference is not None and experiment.reference.offload,
        past=experiment.staleness,
        moments="moments" in algorithm.needs,
        coefficients=tuple((name, component.coefficient) for name, component in algorithm.adaptive.items()),
        replay=replay.max_age if replay else 0,
        experience=_experience_shape(experiment) if replay else None,
    )


def _experience_shape(experiment: Experiment) -> Experience:
    """What a step of an experiment leaves to be replayed."""
    N, K, T = experiment.prompts_per_step, experiment.responses_per_prompt, experiment.sampling.max_tokens
    B, P = N * K, experiment.max_prompt_tokens

    def shape(dtype: type, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    prompts = Prompts(shape(jnp.int32, N, P), shape(jnp.int32, N), shape(jnp.int32, N))
    tokens = [shape(jnp.float32, B, T)] * 4
    rollout = Rollout(prompts, shape(jnp.int32, B, T), tokens[0], shape(jnp.bool_, B), *tokens[1:])
    fields = {"rewards": shape(jnp.float32, B, len(experiment.reward.names)), "greedy_reward": shape(jnp.float32, B)}
    needed = {name: fields[name] for name in fields if name in experiment.algorithm.needs}
    return Experience(rollout, shape(jnp.float32, B), needed)


def template_of(experiment: Experiment, mesh: Mesh) -> Callable[[dict[str, Any]], TrainState]:
    """From the progress saved with a checkpoint to its state's shapes: the warm start has an optimizer of its own, and
    nothing of what only RL carries.
    """
    warm = experiment.warm_start.optimizer if experiment.warm_start else experiment.optimizer

    def template(progress: dict[str, Any]) -> TrainState:
        if progress.get("reinforcing"):
            optimizer, extra = experiment.optimizer.build(experiment.policy_updates()), state_spec(experiment)
        else:
            optimizer, extra = warm.build(experiment.warm_steps), PARAMS_ONLY
        return abstract_state(experiment.model, optimizer, mesh, extra)

    return template
