"""The state of a run on disk: what it carries, its checkpoints, and the frozen parameters that are stored once."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rl_llm.experiment import Experiment
from rl_llm.learner.state import PARAMS_ONLY, StateSpec, abstract_state
from rl_llm.parallel import hosts
from rl_llm.runs.checkpoint import CheckpointError, Checkpoints, Restored
from rl_llm.runs.folder import RunFolder
from rl_llm.sampler import prompts_shape, rollout_shape
from rl_llm.types import Rollout, TrainState


def save_state(
    folder: RunFolder, step: int, state: TrainState, progress: dict[str, Any], spare: int | None = None
) -> None:
    """Save a checkpoint of a state; before the first one, save its frozen parameters. `spare` is not removed."""
    if state.frozen is not None and not hosts.on_writer(lambda: folder.frozen.holds(0)):
        folder.frozen.save(0, state.frozen, {})
    folder.checkpoints.save(step, replace(state, frozen=None), progress, spare)
    folder.saved(step)


def restore_state(
    experiment: Experiment, checkpoints: Checkpoints, frozen: Checkpoints, mesh: Mesh, step: int | None = None
) -> Restored | None:
    """Restore the newest good one of `checkpoints`, or that of `step`; None if there is none at all.

    Raises CheckpointError if all are damaged or misfit, or if there is none of `step`.
    """
    template = partial(_state_template, experiment, mesh)
    restored = checkpoints.restore_newest(lambda saved: replace(template(saved), frozen=None), step)
    if restored is None or experiment.model.lora is None:
        return restored
    base = frozen.restore_newest(lambda _: template({}).frozen)
    if base is None:
        raise CheckpointError(f"{frozen.folder} is missing: the weights that the adapters beside it belong to")
    return replace(restored, state=replace(restored.state, frozen=base.state))


def state_spec(experiment: Experiment) -> StateSpec:
    """Parts of the train state that an experiment's RL carries from step to step."""
    algorithm, replay = experiment.algorithm, experiment.replay
    return StateSpec(
        critic=experiment.critic,
        critic_optimizer=experiment.critic_optimizer,
        reference=experiment.reference is not None,
        offload=experiment.reference is not None and experiment.reference.offload,
        past=experiment.staleness,
        moments="moments" in algorithm.needs,
        coefficients=tuple((name, component.coefficient) for name, component in algorithm.adaptive.items()),
        replay=replay.max_age if replay else 0,
        replayed=graded_shape(experiment) if replay else None,
    )


def graded_shape(experiment: Experiment) -> Rollout:
    """Shapes and dtypes of a step's graded rollout."""
    prompts = prompts_shape(experiment.prompts_per_step, experiment.max_prompt_tokens)
    K, T = experiment.responses_per_prompt, experiment.sampling.max_tokens
    rollout = rollout_shape(experiment.model, prompts, K, T)
    reward = jax.ShapeDtypeStruct(rollout.truncated.shape, jnp.float32)
    rewards = jax.ShapeDtypeStruct((*reward.shape, len(experiment.reward.names)), jnp.float32)
    optional = {"rewards": rewards, "greedy_reward": reward}
    fields: dict[str, Any] = {name: shape for name, shape in optional.items() if name in experiment.algorithm.needs}
    if experiment.responses is not None and (k := experiment.responses.top_tokens):
        for name, dtype in (("teacher_tokens", jnp.int32), ("teacher_logp", jnp.float32)):
            fields[name] = jax.ShapeDtypeStruct((*rollout.tokens.shape, k), dtype)
    return replace(rollout, reward=reward, **fields)


def _state_template(experiment: Experiment, mesh: Mesh, progress: dict[str, Any]) -> TrainState:
    """Shapes of the state saved with this progress. The warm start has its own optimizer, and no parts for RL alone."""
    if progress.get("reinforcing"):
        optimizer, spec = experiment.policy_optimizer, state_spec(experiment)
    else:
        optimizer, spec = experiment.warm_optimizer, PARAMS_ONLY
    return abstract_state(experiment.model, optimizer, mesh, spec)
