"""The learner: one batch from one rollout, and the jitted update of the policy and of its critic.

The loss is a weighted sum over tokens whose weights were computed once on the whole batch, so an update does not
depend on how its rows are cut into micro-batches, ordered or spread over devices, up to rounding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rl_llm.algorithms import (
    Algorithm,
    Divergence,
    Moments,
    Normalize,
    PolicyGradient,
    TokenMean,
    apply_filters,
    update_moments,
    with_coefficient,
)
from rl_llm.learner.critic import Critic
from rl_llm.learner.gradient import apply_gradient, loss_and_gradient, split
from rl_llm.learner.logprobs import expert_load, predict, read_responses, response_hidden
from rl_llm.learner.optimizer import Optimizer
from rl_llm.learner.state import PARAMS_ONLY, StateSpec, Update, compile_update
from rl_llm.model import ModelConfig, join_params
from rl_llm.parallel import mesh as meshes
from rl_llm.parallel.numbers import PROGRAMS, Numbers
from rl_llm.parallel.population import program
from rl_llm.types import Batch, CriticState, Max, Mean, Metrics, Rollout, TrainState, masked_mean

# Maximum likelihood is the policy gradient with advantage 1: demonstrations are learned by the same updates.
MAXIMUM_LIKELIHOOD = Algorithm(
    advantage=Normalize(mean="none", std="none"), objective=PolicyGradient(), aggregate=TokenMean()
)


def first_batch(rollout: Rollout, reward: jax.Array) -> Batch:
    """A rollout with its rewards f32[B], before anything was made of them."""
    return Batch(
        prompts=rollout.prompts,
        tokens=rollout.tokens,
        mask=rollout.mask,
        truncated=rollout.truncated,
        old_logp=rollout.policy_logp,
        sampler_logp=rollout.logp,
        reward=reward,
        kept=jnp.ones(reward.shape, bool),
        advantage=jnp.zeros_like(rollout.mask),
        weight=jnp.zeros_like(rollout.mask),
    )


def make_batch(
    algorithm: Algorithm,
    rollout: Rollout,
    reward: jax.Array,
    made: Mapping[str, Any] = MappingProxyType({}),
    moments: Moments | None = None,
    coefficients: Mapping[str, jax.Array] | None = None,
    *,
    replayed: bool = False,
) -> tuple[Batch, Moments | None]:
    """Rollout and rewards f32[B] -> the batch of its updates: filters, shaping, advantages and weights of the whole
    rollout at once; and the moments of all rewards with these. `coefficients` are those that controllers adapt; the
    moments have the rewards of what is `replayed` already.

    `made` are further fields of the batch: those that the algorithm needs, and `old_logp` where the sampler was some
    steps behind. Elsewhere the ratio's old log-probabilities are the sampler's own: sampler and learner agree to
    rounding (metrics agreement/*).
    """
    batch = apply_filters(algorithm.filters, replace(first_batch(rollout, reward), **made))
    for shape in algorithm.shaping:
        batch = shape(batch, **with_coefficient(shape, coefficients))
    if moments is not None and not replayed:
        moments = update_moments(moments, batch.reward, batch.counted)
    advantage = algorithm.advantage(replace(batch, moments=moments))
    batch = replace(batch, advantage=advantage)
    weight = algorithm.aggregate(batch.mask * batch.kept[:, None], batch)
    for correct in algorithm.corrections:
        weight = weight * correct(batch)
    batch = replace(batch, weight=weight)
    if algorithm.value_loss is not None:
        dropped = getattr(algorithm.value_loss, "learns_from_dropped", False)
        mask = batch.mask if dropped else batch.mask * batch.kept[:, None]
        batch = replace(batch, value_weight=algorithm.value_aggregate(mask, batch))
        if batch.value is not None:
            returns = algorithm.advantage.returns(batch)  # type: ignore[attr-defined]  # `check` has seen to it
            batch = replace(batch, returns=returns)
    return batch, moments


def compile_make_batch(
    algorithm: Algorithm, mesh: Mesh, replayed: bool = False
) -> Callable[..., tuple[Batch, Moments | None]]:
    """`make_batch` jitted for a mesh: rows stay where the sampler left them. One program for all numbers."""
    numbers = Numbers.of(algorithm)
    return partial(_compile_make_batch(numbers.structure, mesh, replayed), numbers)


@lru_cache(maxsize=PROGRAMS)
def _compile_make_batch(structure: Algorithm, mesh: Mesh, replayed: bool) -> Any:
    rows, same = meshes.over_batch(mesh), meshes.replicated(mesh)

    def batch(numbers: Numbers[Algorithm], *arguments: Any) -> tuple[Batch, Moments | None]:
        return make_batch(numbers.value, *arguments, replayed=replayed)

    return program(batch, in_shardings=(same, rows, rows, rows, same, same), out_shardings=(rows, same))


def policy_loss(
    config: ModelConfig,
    algorithm: Algorithm,
    temperature: jax.Array | float,
    coefficients: Mapping[str, jax.Array] | None,
    params: dict,
    batch: Batch,
) -> tuple[jax.Array, Metrics, jax.Array]:
    """The weighted sum of per-token losses over a part of a batch, that part's metrics, and the hidden states."""
    hidden, chosen = read_responses(config, params, batch.prompts, batch.tokens)
    logp, entropy, *student = predict(config, params, hidden, batch.tokens, temperature, batch.teacher_tokens)
    logp, entropy = (jnp.where(batch.mask > 0, x, 0.0) for x in (logp, entropy))
    batch = replace(batch, student_logp=student[0]) if student else batch
    losses, metrics = algorithm.objective(logp, batch)
    gap = jax.lax.stop_gradient(logp) - batch.old_logp
    metrics = metrics | {
        "policy/entropy": masked_mean(entropy, batch.mask),
        "agreement/mean": masked_mean(jnp.abs(gap), batch.mask),
        "agreement/max": Max(jnp.max(jnp.abs(gap) * batch.mask)),
        # k3 estimate of KL(sampler || learner): E[r - 1 - log r] with r = learner / sampler
        "agreement/kl": masked_mean(jnp.expm1(gap) - gap, batch.mask),
    }
    if chosen is not None and config.experts is not None:
        metrics |= expert_load(chosen, batch.mask[:, :-1], config.experts.count)
    if batch.ref_logp is not None:
        metrics |= {"policy/kl": masked_mean(Divergence()(logp, batch.ref_logp), batch.mask)}
    for regularizer in algorithm.regularizers:
        extra, more = regularizer(logp, entropy, batch, **with_coefficient(regularizer, coefficients))
        losses, metrics = losses + extra, metrics | more
    return jnp.sum(batch.weight * losses), metrics, hidden


def value_loss(
    config: ModelConfig, algorithm: Algorithm, critic: Critic, params: dict, batch: Batch, hidden: jax.Array | None
) -> tuple[jax.Array, Metrics]:
    """The weighted sum of a critic's losses over a part of a batch, and that part's metrics."""
    after = getattr(algorithm.value_loss, "after_token", False)
    values = critic.values(config, params, batch.prompts, batch.tokens, hidden, after)
    assert algorithm.value_loss is not None
    losses, metrics = algorithm.value_loss(jnp.where(batch.mask > 0, values, 0.0), batch)
    return critic.coefficient * jnp.sum(batch.value_weight * losses), metrics


def joint_loss(
    config: ModelConfig,
    algorithm: Algorithm,
    critic: Critic | None,
    temperature: jax.Array | float,
    coefficients: Mapping[str, jax.Array] | None,
    params: tuple[dict, dict | None],
    batch: Batch,
    frozen: dict | None = None,
) -> tuple[jax.Array, Metrics]:
    """What the policy and, where there is one, its critic minimise together. `params` are those of both that are
    trained, `frozen` the policy's others.
    """
    trained, of_critic = params
    policy = join_params(trained, frozen)
    loss, metrics, hidden = policy_loss(config, algorithm, temperature, coefficients, policy, batch)
    if critic is not None and of_critic is not None:
        extra, more = value_loss(config, algorithm, critic, of_critic, batch, hidden)
        loss, metrics = loss + extra, metrics | more
    return loss, jax.lax.stop_gradient(metrics)


@dataclass(frozen=True)
class Learner:
    """Everything about an update but its state: the policy's shape and algorithm, the optimizers, how a batch is cut.
    All is static but the numbers of algorithm, optimizers and critic.
    """

    config: ModelConfig = field(metadata={"static": True})
    algorithm: Algorithm
    optimizer: Optimizer
    updates_per_rollout: int = 1
    micro_batches: int = 1
    critic: Critic | None = None
    critic_optimizer: Optimizer | None = None

    def mini_batch(self, batch: Batch, update: jax.Array) -> Batch:
        """What the `update`-th of the updates on a batch sees: its share of the prompts.

        The shares' weights are those of the whole batch times the number of updates, so the mean of the updates'
        gradients is the whole batch's gradient.
        """
        n = self.updates_per_rollout
        share = jax.tree.map(lambda x: x[update], split(batch, n))
        weight = None if share.value_weight is None else share.value_weight * n
        return replace(share, weight=share.weight * n, value_weight=weight)

    def train_step(
        self,
        state: TrainState,
        batch: Batch,
        update: jax.Array,
        temperature: jax.Array,
        demonstrations: Batch | None = None,
        frozen: dict | None = None,
    ) -> tuple[TrainState, Metrics]:
        """One update of the policy, and of its critic if it has one; `demonstrations` add their own loss to it.
        `frozen` are the parameters that are not trained: no part of `state`, which is given away.
        """
        of_both = partial(joint_loss, frozen=frozen)
        loss = partial(of_both, self.config, self.algorithm, self.critic, temperature, state.coefficients)
        critic = state.critic
        both = (state.params, critic.params if critic else None)
        value, metrics, (gradient, of_critic) = loss_and_gradient(
            loss, both, self.mini_batch(batch, update), self.micro_batches
        )
        if demonstrations is not None:
            likelihood = partial(of_both, self.config, MAXIMUM_LIKELIHOOD, None, 1.0, None)
            more, _, (extra, _) = loss_and_gradient(likelihood, (state.params, None), demonstrations, 1)
            gradient = jax.tree.map(jnp.add, gradient, extra)
            metrics |= {"demonstrations/loss": Mean(more, jnp.float32(1.0))}
        params, opt_state, more_metrics = apply_gradient(self.optimizer, state.params, state.opt_state, gradient)
        metrics |= more_metrics | {"loss": Mean(value, jnp.float32(1.0))}
        if critic is not None:
            critic, more_metrics = self._update_critic(critic, of_critic)
            metrics |= more_metrics
        return replace(state, step=state.step + 1, params=params, opt_state=opt_state, critic=critic), metrics

    def critic_step(
        self, state: TrainState, batch: Batch, update: jax.Array, frozen: dict | None = None
    ) -> tuple[TrainState, Metrics]:
        """One update of the critic alone: the policy stays as it is."""
        critic = self.critic
        assert critic is not None

        def loss(params: dict, part: Batch) -> tuple[jax.Array, Metrics]:
            hidden = None
            if critic.shared:
                policy = join_params(state.params, frozen)
                hidden = response_hidden(self.config, policy, part.prompts, part.tokens)
            value, metrics = value_loss(self.config, self.algorithm, critic, params, part, hidden)
            return value, jax.lax.stop_gradient(metrics)

        value, metrics, gradient = loss_and_gradient(
            loss, state.critic.params, self.mini_batch(batch, update), self.micro_batches
        )
        updated, more = self._update_critic(state.critic, gradient)
        return replace(state, critic=updated), metrics | more | {"loss": Mean(value, jnp.float32(1.0))}

    def _update_critic(self, critic: CriticState, gradient: dict) -> tuple[CriticState, Metrics]:
        assert self.critic_optimizer is not None
        params, opt_state, metrics = apply_gradient(
            self.critic_optimizer, critic.params, critic.opt_state, gradient, "critic"
        )
        return CriticState(params, opt_state), metrics


def compile_train_step(learner: Learner, mesh: Mesh, spec: StateSpec = PARAMS_ONLY) -> Update:
    """`Learner.train_step` jitted for a mesh. Learners that differ in numbers share a program."""
    numbers = Numbers.of(learner)
    return Update(_compile_train_step(numbers.structure, mesh, Numbers.of(spec).structure), numbers)


@lru_cache(maxsize=PROGRAMS)
def _compile_train_step(learner: Learner, mesh: Mesh, spec: StateSpec) -> Any:
    def train_step(numbers: Numbers[Learner], *arguments: Any) -> tuple[TrainState, Metrics]:
        return numbers.value.train_step(*arguments)

    rows, same = meshes.over_batch(mesh), meshes.replicated(mesh)
    return compile_update(train_step, learner.config, learner.optimizer, mesh, spec, (rows, same, same, rows))


def compile_critic_step(learner: Learner, mesh: Mesh, spec: StateSpec) -> Update:
    """`Learner.critic_step` likewise."""
    numbers = Numbers.of(learner)
    return Update(_compile_critic_step(numbers.structure, mesh, Numbers.of(spec).structure), numbers)


@lru_cache(maxsize=PROGRAMS)
def _compile_critic_step(learner: Learner, mesh: Mesh, spec: StateSpec) -> Any:
    def critic_step(numbers: Numbers[Learner], *arguments: Any) -> tuple[TrainState, Metrics]:
        return numbers.value.critic_step(*arguments)

    rows, same = meshes.over_batch(mesh), meshes.replicated(mesh)
    return compile_update(critic_step, learner.config, learner.optimizer, mesh, spec, (rows, same))
