"""Batch fields that only some algorithms need, computed for each step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rl_llm.experiment import Experiment
from rl_llm.learner.critic import compile_values
from rl_llm.learner.logprobs import RolloutProgram, compile_over_rows, likeliest, logps_at, sampled_logps
from rl_llm.learner.state import policy_of
from rl_llm.parallel.mesh import on_devices, put_on_batch
from rl_llm.rollout.collect import graded_rows
from rl_llm.runs.load import SourceModels
from rl_llm.types import Rollout, TrainState

MADE_WITH_THE_BATCH = frozenset({"moments", "returns"})
ROLLOUT_FIELDS = frozenset({"rewards", "greedy_reward"})  # the rollout brings them
FORWARD_PASSES = {"old_logp": 1, "ref_logp": 1, "value": 1, "kl_baseline": 2, "teacher_tokens": 1, "old_top_logp": 1}


@dataclass(frozen=True)
class BatchFields:
    """Computes the batch fields `names`; made by `compile_batch_fields`. Fields that nobody needs cost nothing."""

    names: frozenset[str]
    experiment: Experiment
    mesh: Mesh
    sources: SourceModels
    logps: RolloutProgram
    logps_at: RolloutProgram
    values: Callable[[dict | None, dict, Rollout], jax.Array]
    teacher_logps: RolloutProgram | None
    teacher_likeliest: RolloutProgram | None

    @property
    def passes(self) -> int:
        """Forward passes over the rollout that the fields cost."""
        return sum(FORWARD_PASSES.get(name, 0) for name in self.names)

    def compute(self, state: TrainState, rollout: Rollout, replayed: bool = False) -> dict[str, jax.Array]:
        """Fields of the batch of one rollout that depend on the current policy or on other models, by name."""
        reference: dict = {}  # parameters of the reference policy on the devices
        if (settings := self.experiment.reference) is not None:
            reference = policy_of(state, on_devices(state.reference) if settings.offload else state.reference)
        fields: dict[str, Any] = self._compute(state, reference, rollout, replayed)
        if (graded := graded_rows(rollout)) is not None:
            fields |= {"counted": graded}
        return put_on_batch(self.mesh, fields)

    def shapes(self, state: TrainState, rollout: Rollout) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the fields, from those of the state and of the rollout."""
        reference = {} if self.experiment.reference is None else policy_of(state, state.reference)
        return jax.eval_shape(lambda *arguments: self._compute(*arguments), state, reference, rollout)

    def _compute(
        self, state: TrainState, reference: dict, rollout: Rollout, replayed: bool = False
    ) -> dict[str, jax.Array]:
        names = self.names | ({"old_logp"} if replayed else set())
        policy, teacher_tokens = policy_of(state), rollout.teacher_tokens
        extra: dict[str, Any] = {}
        if "old_logp" in names:
            extra["old_logp"] = self.logps(policy, rollout, self._temperature)
        if "sampler_logp" in names:  # the distribution that stored responses were sampled from is unknown
            extra["sampler_logp"] = extra["old_logp"]
        if "ref_logp" in names and self.teacher_logps and self.sources.teacher:
            extra["ref_logp"] = self.teacher_logps(self.sources.teacher[1], rollout, self._temperature)
        elif "ref_logp" in names:
            extra["ref_logp"] = self.logps(reference, rollout, self._temperature)
        if "kl_baseline" in names:
            extra["kl_baseline"] = self._kl_baseline(policy, reference, rollout)
        if "value" in names:
            extra["value"] = self.values(policy, state.critic.params, rollout)
        if self.teacher_likeliest is not None:
            params = self.sources.teacher[1] if self.sources.teacher else reference
            teacher_tokens, teacher_logp = self.teacher_likeliest(params, rollout, self._temperature)
            extra |= {"teacher_tokens": teacher_tokens, "teacher_logp": teacher_logp}
        if "old_top_logp" in names:
            extra["old_top_logp"] = self.logps_at(policy, (rollout, teacher_tokens), self._temperature)
        return extra

    @property
    def _temperature(self) -> jax.Array:
        return jnp.float32(self.experiment.sampling.temperature)

    def _kl_baseline(self, policy: dict, reference: dict, rollout: Rollout) -> jax.Array:
        """Mean of log(pi / ref) over responses to the previous prompt, f32[B] with one number (KTO)."""
        shifted = replace(rollout, prompts=jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), rollout.prompts))
        shifted = put_on_batch(self.mesh, shifted)
        policy_logp, ref_logp = (self.logps(params, shifted, self._temperature) for params in (policy, reference))
        gain = policy_logp - ref_logp
        return jnp.full(gain.shape[0], jnp.mean(jnp.sum(gain, axis=1)))


def compile_batch_fields(experiment: Experiment, mesh: Mesh, sources: SourceModels) -> BatchFields:
    """Compile the fields that an algorithm needs, and the policy's log-probabilities if another sampled the rollout."""
    names = set(experiment.algorithm.needs) - MADE_WITH_THE_BATCH - ROLLOUT_FIELDS
    teacher, stored = experiment.teacher, experiment.responses
    if experiment.staleness or stored or (teacher and teacher.on_policy < 1):
        names.add("old_logp")
    if stored:
        names.add("sampler_logp")
    teacher_logps = teacher_likeliest = None
    parts = experiment.updates_per_rollout * experiment.micro_batches  # no more in memory at a time than an update has
    own, critic = experiment.model, experiment.critic
    model, source = (sources.teacher[0].model, teacher) if sources.teacher else (own, experiment.reference)
    if sources.teacher is not None:
        teacher_logps = compile_over_rows(sampled_logps, model, mesh, parts)
    if source is not None and source.top_tokens:
        teacher_likeliest = compile_over_rows(likeliest, model, mesh, parts, (source.top_tokens,))
    return BatchFields(
        names=frozenset(names),
        experiment=experiment,
        mesh=mesh,
        sources=sources,
        logps=compile_over_rows(sampled_logps, own, mesh, parts),
        logps_at=compile_over_rows(logps_at, own, mesh, parts),
        values=compile_values(own, critic, experiment.algorithm.after_token, mesh, parts),
        teacher_logps=teacher_logps,
        teacher_likeliest=teacher_likeliest,
    )
