"""The learner: one batch from one rollout, and the jitted update of the policy and its critic.

The loss is a weighted sum over tokens. Its weights are fixed once on the whole batch, so an update does not depend, up
to rounding, on how rows are cut into micro-batches, ordered or spread over devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import chex
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
from rl_llm.parallel.programs import ROWS, SAME, BoundProgram, compile_program
from rl_llm.types import Batch, CriticState, Leaf, Max, Mean, Metrics, Rollout, TrainState, masked_mean

# Maximum likelihood is the policy gradient with advantage 1, so demonstrations are learned by the same updates.
MAXIMUM_LIKELIHOOD = Algorithm(
    advantage=Normalize(mean="none", std="none"), objective=PolicyGradient(), aggregate=TokenMean()
)


def first_batch(rollout: Rollout, graded: Leaf = None) -> Batch:
    """Batch of a rollout before filters, shaping, advantages and weights. Rows that are not `graded` do not count."""

    def known(rewards: Leaf) -> Leaf:
        return rewards if graded is None or rewards is None else jnp.where(graded, rewards, 0.0)

    return Batch(
        prompts=rollout.prompts,
        tokens=rollout.tokens,
        mask=rollout.mask,
        truncated=rollout.truncated,
        old_logp=rollout.policy_logp,
        sampler_logp=rollout.logp,
        reward=known(rollout.reward),
        kept=jnp.ones(rollout.reward.shape, bool) if graded is None else graded,
        counted=graded,
        advantage=jnp.zeros_like(rollout.mask),
        weight=jnp.zeros_like(rollout.mask),
        rewards=rollout.rewards,
        greedy_reward=known(rollout.greedy_reward),
        teacher_tokens=rollout.teacher_tokens,
        teacher_logp=rollout.teacher_logp,
    )


def make_batch(
    algorithm: Algorithm,
    rollout: Rollout,
    extra_fields: Mapping[str, Any] = MappingProxyType({}),
    moments: Moments | None = None,
    coefficients: Mapping[str, jax.Array] | None = None,
    *,
    replayed: bool = False,
) -> tuple[Batch, Moments | None]:
    """Turn a rollout with rewards into the batch of its updates; also return the new moments.

    Filters, shaping, advantages and weights are computed on the whole rollout at once. `extra_fields` of the batch are
    those that the algorithm needs, `counted` if there are ungraded rows, and `old_logp` if the sampler lags behind the
    learner. Otherwise the ratio's old log-probabilities are the sampler's own, because sampler and learner agree to
    rounding (metrics agreement/*). `moments` are those of all earlier rewards, if the algorithm keeps them; with
    `replayed` they include these rewards already. `coefficients` are those that controllers adapt, by name.
    """
    chex.assert_rank([rollout.tokens, rollout.mask, rollout.reward], [2, 2, 1])
    chex.assert_equal_shape([rollout.tokens, rollout.mask, rollout.logp, rollout.policy_logp])
    graded = extra_fields.get("counted")
    batch = replace(first_batch(rollout, graded), **extra_fields)
    batch = apply_filters(algorithm.filters, batch)
    for shape in algorithm.shaping:
        batch = shape(batch, **with_coefficient(shape, coefficients))
    if moments is not None and not replayed:
        moments = update_moments(moments, batch.reward, batch.counted)
    batch = replace(batch, advantage=algorithm.advantage(replace(batch, moments=moments)))
    mask = batch.mask if graded is None else batch.mask * graded[:, None]
    kept = batch.mask * batch.kept[:, None]
    weight = algorithm.aggregate(kept, batch)
    for correct in algorithm.corrections:
        weight = weight * correct(replace(batch, mask=mask))
    batch = replace(batch, weight=weight)
    if algorithm.value_loss is not None:
        seen = mask if algorithm.value_loss.learns_from_dropped else kept
        batch = replace(batch, value_weight=algorithm.value_aggregate(seen, batch))
        if batch.value is not None:
            batch = replace(batch, returns=algorithm.advantage.returns(batch))
    return replace(batch, counted=None), moments


def compile_make_batch(algorithm: Algorithm, mesh: Mesh, replayed: bool = False) -> BoundProgram:
    """Compile `make_batch` as a program of (rollout, extra_fields, moments, coefficients).

    Rows stay on the devices where the sampler left them.
    """
    inputs, outputs = (ROWS, ROWS, SAME, SAME), (ROWS, SAME)
    return compile_program(_make_batch, mesh, (replayed,), (algorithm,), inputs=inputs, outputs=outputs)


def _make_batch(replayed: bool, algorithm: Algorithm, *arguments: Any) -> tuple[Batch, Moments | None]:
    return make_batch(algorithm, *arguments, replayed=replayed)


def policy_loss(
    config: ModelConfig,
    algorithm: Algorithm,
    temperature: jax.Array | float,
    coefficients: Mapping[str, jax.Array] | None,
    params: dict,
    batch: Batch,
) -> tuple[jax.Array, Metrics, jax.Array]:
    """Policy loss of a part of a batch: the weighted sum of its token losses.

    Returns the loss f32[], the part's metrics, and the hidden states f32[B, T, D] that a shared critic reads.
    """
    chex.assert_rank([batch.tokens, batch.weight, batch.advantage], 2)
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
    """Critic loss of a part of a batch: the weighted sum of its token losses, and metrics."""
    values = critic.values(config, params, batch.prompts, batch.tokens, hidden, algorithm.after_token)
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
    """Loss that the policy and its critic, if any, minimise together.

    `params` are the trained ones of both; `frozen` are the policy's other parameters.
    """
    trained, critic_params = params
    policy = join_params(trained, frozen)
    loss, metrics, hidden = policy_loss(config, algorithm, temperature, coefficients, policy, batch)
    if critic is not None and critic_params is not None:
        extra, more = value_loss(config, algorithm, critic, critic_params, batch, hidden)
        loss, metrics = loss + extra, metrics | more
    return loss, jax.lax.stop_gradient(metrics)


@dataclass(frozen=True)
class Learner:
    """An update without its state: model, algorithm, optimizers, and how a batch is cut.

    Everything is static except the floats of algorithm, optimizers and critic.
    """

    config: ModelConfig = field(metadata={"static": True})
    algorithm: Algorithm
    optimizer: Optimizer
    updates_per_rollout: int = 1
    micro_batches: int = 1
    critic: Critic | None = None
    critic_optimizer: Optimizer | None = None

    def mini_batch(self, batch: Batch, update: jax.Array) -> Batch:
        """Mini-batch of the `update`-th update: its share of the prompts.

        Its weights are those of the whole batch times the number of updates, so the mean of the updates' gradients is
        the whole batch's gradient.
        """
        n = self.updates_per_rollout
        part = jax.tree.map(lambda x: x[update], split(batch, n))
        value_weight = None if part.value_weight is None else part.value_weight * n
        return replace(part, weight=part.weight * n, value_weight=value_weight)

    def train_step(
        self,
        state: TrainState,
        batch: Batch,
        update: jax.Array,
        temperature: jax.Array,
        demonstrations: Batch | None = None,
        frozen: dict | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Update the policy, and its critic if it has one.

        `demonstrations` add their own loss. `frozen` are untrained parameters: they live outside `state`, which is
        donated.
        """
        joint = partial(joint_loss, frozen=frozen)
        loss = partial(joint, self.config, self.algorithm, self.critic, temperature, state.coefficients)
        critic = state.critic
        both, part = (state.params, critic.params if critic else None), self.mini_batch(batch, update)
        value, metrics, (gradient, critic_gradient) = loss_and_gradient(loss, both, part, self.micro_batches)
        if demonstrations is not None:
            likelihood = partial(joint, self.config, MAXIMUM_LIKELIHOOD, None, 1.0, None)
            more, _, (extra, _) = loss_and_gradient(likelihood, (state.params, None), demonstrations, 1)
            gradient = jax.tree.map(jnp.add, gradient, extra)
            metrics |= {"demonstrations/loss": Mean(more, jnp.float32(1.0))}
        params, opt_state, more_metrics = apply_gradient(self.optimizer, state.params, state.opt_state, gradient)
        metrics |= more_metrics | {"loss": Mean(value, jnp.float32(1.0))}
        if critic is not None:
            critic, more_metrics = self._update_critic(critic, critic_gradient)
            metrics |= more_metrics
        return replace(state, step=state.step + 1, params=params, opt_state=opt_state, critic=critic), metrics

    def critic_step(
        self, state: TrainState, batch: Batch, update: jax.Array, frozen: dict | None = None
    ) -> tuple[TrainState, Metrics]:
        """Update the critic alone."""
        critic = self.critic
        assert critic is not None

        def loss(params: dict, part: Batch) -> tuple[jax.Array, Metrics]:
            hidden = None
            if critic.shared:
                policy = join_params(state.params, frozen)
                hidden = response_hidden(self.config, policy, part.prompts, part.tokens)
            value, metrics = value_loss(self.config, self.algorithm, critic, params, part, hidden)
            return value, jax.lax.stop_gradient(metrics)

        part = self.mini_batch(batch, update)
        value, metrics, gradient = loss_and_gradient(loss, state.critic.params, part, self.micro_batches)
        updated, more = self._update_critic(state.critic, gradient)
        return replace(state, critic=updated), metrics | more | {"loss": Mean(value, jnp.float32(1.0))}

    def _update_critic(self, critic: CriticState, gradient: dict) -> tuple[CriticState, Metrics]:
        optimizer = self.critic_optimizer
        assert optimizer is not None
        params, opt_state, metrics = apply_gradient(optimizer, critic.params, critic.opt_state, gradient, "critic")
        return CriticState(params, opt_state), metrics


def compile_train_step(learner: Learner, mesh: Mesh, spec: StateSpec = PARAMS_ONLY) -> Update:
    """Compile `Learner.train_step`: (state, batch, update, temperature, demonstrations) -> (state, metrics)."""
    inputs = (ROWS, SAME, SAME, ROWS)
    return compile_update(Learner.train_step, learner, learner.config, learner.optimizer, mesh, spec, inputs)


def compile_critic_step(learner: Learner, mesh: Mesh, spec: StateSpec) -> Update:
    """Compile `Learner.critic_step`: (state, batch, update) -> (state, metrics)."""
    return compile_update(Learner.critic_step, learner, learner.config, learner.optimizer, mesh, spec, (ROWS, SAME))
