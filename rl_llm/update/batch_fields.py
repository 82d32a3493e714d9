"""What a batch gets besides its rollout and rewards: the fields that only some algorithms need, made for each step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rl_llm.experiment import Experiment
from rl_llm.learner.critic import Critic
from rl_llm.learner.gradient import in_parts
from rl_llm.learner.logprobs import compile_likeliest, compile_logps, compile_logps_at, response_hidden
from rl_llm.learner.state import policy_of
from rl_llm.model import ModelConfig, weight_table
from rl_llm.parallel import mesh as meshes
from rl_llm.parallel.mesh import on_devices, put_on_batch
from rl_llm.parallel.numbers import PROGRAMS, Numbers
from rl_llm.runs.load import SourceModels
from rl_llm.types import Experience, Rollout, TrainState

Logps = Callable[[dict, Rollout, jax.Array], jax.Array]
MADE_WITH_THE_BATCH = frozenset({"moments", "returns"})


@dataclass(frozen=True)
class Fields:
    """Makes `names` (made by `fields_for`); each costs what it takes, and nothing where it is not needed. `passes`
    tells the cost: forward passes over the rollout.
    """

    names: frozenset[str]
    experiment: Experiment
    mesh: Mesh
    sources: SourceModels
    logps: Logps
    logps_at: Callable[[dict, tuple[Rollout, jax.Array], jax.Array], jax.Array]
    values: Callable[[dict | None, dict, Rollout], jax.Array]
    teacher_logps: Logps | None
    teacher_likeliest: Callable[[dict, Rollout, jax.Array], tuple[jax.Array, jax.Array]] | None

    @property
    def passes(self) -> int:
        cost = {"old_logp": 1, "ref_logp": 1, "value": 1, "kl_baseline": 2, "teacher_tokens": 1, "old_top_logp": 1}
        return sum(cost.get(name, 0) for name in self.names)

    def make(self, state: TrainState, experience: Experience, replayed: bool = False) -> dict[str, jax.Array]:
        """The fields of the batch of one experience, by name, on the mesh: those that depend on the policy as it is
        now, and the experience's own.
        """
        names = self.names | ({"old_logp"} if replayed else set())
        rollout, policy = experience.rollout, policy_of(state)
        reference = self._reference(state)
        made: dict[str, Any] = dict(experience.fields)
        if "old_logp" in names:
            made["old_logp"] = self.logps(policy, rollout, self._temperature)
        if "sampler_logp" in names:  # of stored responses nobody knows who gave them
            made["sampler_logp"] = made["old_logp"]
        if "ref_logp" in names:
            made["ref_logp"] = self._ref_logp(reference, rollout)
        if "kl_baseline" in names:
            made["kl_baseline"] = self._kl_baseline(policy, reference, rollout)
        if "value" in names:
            made["value"] = self.values(policy, state.critic.params, rollout)
        if self.teacher_likeliest is not None:
            params = self.sources.teacher[1] if self.sources.teacher else reference
            found = self.teacher_likeliest(params, rollout, self._temperature)
            made["teacher_tokens"], made["teacher_logp"] = found
        if "old_top_logp" in names:
            made["old_top_logp"] = self.logps_at(policy, (rollout, made["teacher_tokens"]), self._temperature)
        return put_on_batch(self.mesh, made)

    @property
    def _temperature(self) -> jax.Array:
        return jnp.float32(self.experiment.sampling.temperature)

    def _reference(self, state: TrainState) -> dict:
        """The reference policy, on the devices; {} where there is none."""
        settings = self.experiment.reference
        if settings is None:
            return {}
        return policy_of(state, on_devices(state.reference) if settings.offload else state.reference)

    def _ref_logp(self, reference: dict, rollout: Rollout) -> jax.Array:
        if self.teacher_logps and self.sources.teacher:
            return self.teacher_logps(self.sources.teacher[1], rollout, self._temperature)
        return self.logps(reference, rollout, self._temperature)

    def _kl_baseline(self, policy: dict, reference: dict, rollout: Rollout) -> jax.Array:
        """f32[B], one number: the mean of log(pi / ref) over responses to the prompt before theirs (KTO)."""
        shifted = replace(rollout, prompts=jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), rollout.prompts))
        shifted = put_on_batch(self.mesh, shifted)
        of_policy, of_reference = (self.logps(params, shifted, self._temperature) for params in (policy, reference))
        gain = of_policy - of_reference
        return jnp.full(gain.shape[0], jnp.mean(jnp.sum(gain, axis=1)))


def fields_for(experiment: Experiment, mesh: Mesh, sources: SourceModels) -> Fields:
    """What the experiment's algorithm needs; and the policy's own log-probabilities where another one sampled."""
    names = set(experiment.algorithm.needs) - MADE_WITH_THE_BATCH
    teacher, stored = experiment.teacher, experiment.responses
    if experiment.staleness or stored or (teacher and teacher.on_policy < 1):
        names.add("old_logp")
    if stored:
        names.add("sampler_logp")
    teacher_logps = teacher_likeliest = None
    parts = experiment.updates_per_rollout * experiment.micro_batches  # as small as what an update has in memory
    model, source = (sources.teacher[0].model, teacher) if sources.teacher else (experiment.model, experiment.reference)
    if sources.teacher is not None:
        teacher_logps = compile_logps(model, mesh, parts)
    if source is not None and source.top_tokens:
        teacher_likeliest = compile_likeliest(model, mesh, source.top_tokens, parts)
    return Fields(
        frozenset(names),
        experiment,
        mesh,
        sources,
        compile_logps(experiment.model, mesh, parts),
        compile_logps_at(experiment.model, mesh, parts),
        compile_values(experiment, mesh, parts),
        teacher_logps,
        teacher_likeliest,
    )


def compile_values(
    experiment: Experiment, mesh: Mesh, parts: int = 1
) -> Callable[[dict | None, dict, Rollout], jax.Array]:
    """(params, the critic's params, rollout) -> V f32[B, T] of an experiment's critic, 0 at padding; jitted, in `parts`
    of the prompts one after the other. Only a shared critic reads the policy's parameters.
    """
    after = getattr(experiment.algorithm.value_loss, "after_token", False)
    critic = Numbers.of(experiment.critic).structure
    compiled = _compile_values(experiment.model, critic, after, mesh, parts)
    shared = critic is not None and critic.shared
    return lambda params, critic_params, rollout: compiled(params if shared else None, critic_params, rollout)


@lru_cache(maxsize=PROGRAMS)
def _compile_values(config: ModelConfig, critic: Critic | None, after: bool, mesh: Mesh, parts: int) -> Any:
    def values(params: dict | None, critic_params: dict, rollout: Rollout) -> jax.Array:
        groups = rollout.prompts.lengths.shape[0]
        return in_parts(partial(of_part, params, critic_params), rollout, groups, parts)

    def of_part(params: dict | None, critic_params: dict, rollout: Rollout) -> jax.Array:
        assert critic is not None
        hidden = response_hidden(config, params, rollout.prompts, rollout.tokens) if params is not None else None
        return critic.values(config, critic_params, rollout.prompts, rollout.tokens, hidden, after) * rollout.mask

    weights, rows = partial(meshes.weight_shardings, mesh), meshes.over_batch(mesh)
    own = weights(critic.table(config)) if critic else None
    policy = weights(weight_table(config)) if critic is not None and critic.shared else None
    return meshes.compile(values, mesh, in_shardings=(policy, own, rows), out_shardings=rows)
