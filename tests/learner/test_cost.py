"""An unused technique costs nothing: Lite PPO has no more operations than Lite PPO written by hand."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_learner import CONFIG, OPTIMIZER, PARAMS, PROMPTS, REWARD, TEMPERATURE, K, N, T

from rl_llm import algorithms as a
from rl_llm.algorithms.moments import deviations, variance
from rl_llm.learner.critic import Critic
from rl_llm.learner.gradient import apply_gradient
from rl_llm.learner.logprobs import token_logps
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import StateSpec, init_state
from rl_llm.learner.train_step import Learner, joint_loss, make_batch
from rl_llm.parallel.mesh import make_mesh
from rl_llm.types import Batch, Max, Mean, Metrics, Rollout, TrainState, masked_mean

pytestmark = pytest.mark.slow  # most is tracing of whole updates

OPTIONAL = [name for name, field in Batch.__dataclass_fields__.items() if field.default is None]
MASK = np.ones((N * K, T), np.float32)
LOGP = -np.ones((N * K, T), np.float32)
ROLLOUT = Rollout(PROMPTS, MASK.astype(np.int32), MASK, MASK[:, 0] > 1, LOGP, LOGP, LOGP)


def operations(jaxpr: Any) -> Iterator[str]:
    """Yield the primitive of every equation, including those in loops and nested functions."""
    for equation in jaxpr.eqns:
        inner = [
            getattr(value, "jaxpr", value)
            for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
        ]
        inner = [program for program in inner if hasattr(program, "eqns")]
        if not inner:
            yield equation.primitive.name
        for program in inner:
            yield from operations(program)


def program(function: Any, *args: Any) -> Counter[str]:
    return Counter(operations(jax.make_jaxpr(function)(*args).jaxpr))


def lite_ppo_batch(rollout: Rollout, reward: jax.Array) -> Batch:
    """Group mean, batch std, the mean over tokens."""
    kept, zeros = jnp.ones(reward.shape, bool), jnp.zeros_like(rollout.mask)
    table = reward.reshape(N, K)
    counted = jnp.ones_like(reward).reshape(N, K)
    std = jnp.sqrt(variance(table, counted, None, 1))
    advantage = (deviations(table, counted, 1) / (std + 1e-6)).reshape(-1)[:, None] * rollout.mask
    mask = rollout.mask * kept[:, None]
    tokens = jnp.sum(mask)
    share = 1.0 / (jnp.maximum(tokens, 1.0) * jnp.maximum(jnp.sum(tokens > 0), 1))
    batch = Batch(
        rollout.prompts, rollout.tokens, rollout.mask, rollout.truncated, rollout.policy_logp, rollout.logp,
        reward, kept, advantage, zeros,
    )  # fmt: skip
    return replace(batch, weight=mask * share)


def lite_ppo_loss(params: dict, batch: Batch) -> tuple[jax.Array, Metrics]:
    """The clipped surrogate with its metrics, and the metrics of any policy."""
    logp, entropy = token_logps(CONFIG, params, batch.prompts, batch.tokens, TEMPERATURE)
    logp, entropy = (jnp.where(batch.mask > 0, x, 0.0) for x in (logp, entropy))
    ratio = jnp.exp(jnp.clip(logp - batch.old_logp, -20.0, 20.0))
    losses = -jnp.minimum(ratio * batch.advantage, jnp.clip(ratio, 0.8, 1.2) * batch.advantage)
    seen = (batch.weight > 0).astype(jnp.float32)
    gap = jax.lax.stop_gradient(logp) - batch.old_logp
    metrics: Metrics = {
        "policy/ratio": masked_mean(ratio, seen),
        "policy/ratio_max": Max(jnp.max(ratio * seen)),
        "policy/clip_high": masked_mean(((ratio > 1.2) & (batch.advantage > 0)).astype(jnp.float32), seen),
        "policy/clip_low": masked_mean(((ratio < 0.8) & (batch.advantage < 0)).astype(jnp.float32), seen),
        "policy/entropy": masked_mean(entropy, batch.mask),
        "agreement/mean": masked_mean(jnp.abs(gap), batch.mask),
        "agreement/max": Max(jnp.max(jnp.abs(gap) * batch.mask)),
        "agreement/kl": masked_mean(jnp.expm1(gap) - gap, batch.mask),
    }
    return jnp.sum(batch.weight * losses), jax.lax.stop_gradient(metrics)


def lite_ppo_step(state: TrainState, batch: Batch, update: jax.Array) -> tuple[TrainState, Metrics]:
    """One update on its share of the batch."""
    share = LEARNER.mini_batch(batch, update)
    (loss, metrics), gradient = jax.value_and_grad(lite_ppo_loss, has_aux=True)(state.params, share)
    params, opt_state, more = apply_gradient(OPTIMIZER, state.params, state.opt_state, gradient)
    metrics |= more | {"loss": Mean(loss, jnp.float32(1.0))}
    return replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics


ONE_DEVICE = make_mesh(devices=jax.devices()[:1])
CRITIC = {"critic": Critic(AdamW(1e-3)), "critic_optimizer": AdamW(1e-3).build(10)}
LEARNER = Learner(CONFIG, a.LITE_PPO, OPTIMIZER)


def batch_of(algorithm: a.Algorithm, **made: Any) -> Batch:
    return jax.eval_shape(lambda: make_batch(algorithm, replace(ROLLOUT, reward=jnp.asarray(REWARD)), made)[0])


def state_of(**spec: Any) -> TrainState:
    return jax.eval_shape(lambda: init_state(CONFIG, OPTIMIZER, ONE_DEVICE, PARAMS, StateSpec(**spec)))


BATCH, STATE = batch_of(a.LITE_PPO), state_of()
# Whose metric is told of any policy, and whose log-probabilities are predicted with those of the tokens.
FIELDS_READ = {"ref_logp": BATCH.mask, "teacher_tokens": jax.ShapeDtypeStruct((N * K, T, 2), jnp.int32)}


def loss_program(algorithm: a.Algorithm, batch: Any = BATCH) -> Counter[str]:
    loss = partial(joint_loss, CONFIG, algorithm, None, TEMPERATURE, None)
    return program(jax.value_and_grad(loss, has_aux=True), (PARAMS, None), batch)


def step_program(learner: Learner, state: TrainState = STATE, batch: Batch = BATCH, *more: Any) -> Counter[str]:
    return program(learner.train_step, state, batch, jnp.int32(0), jnp.float32(TEMPERATURE), *more)


def batch_program(algorithm: a.Algorithm) -> Counter[str]:
    return program(lambda rollout: make_batch(algorithm, rollout)[0], replace(ROLLOUT, reward=REWARD))


def test_the_loss_of_lite_ppo_is_no_more_than_written_by_hand():
    by_hand = program(jax.value_and_grad(lite_ppo_loss, has_aux=True), PARAMS, BATCH)
    assert loss_program(a.LITE_PPO) - by_hand == Counter()


def test_an_update_of_lite_ppo_is_no_more_than_written_by_hand():
    """It has no operations of critics, demonstrations, references or replay."""
    assert step_program(LEARNER) - program(lite_ppo_step, STATE, BATCH, jnp.int32(0)) == Counter()


def test_the_batch_of_lite_ppo_adds_only_reshapes():
    """The extra operations are the scopes of the token mean: they move numbers and compute none."""
    more = batch_program(a.LITE_PPO) - program(lite_ppo_batch, ROLLOUT, REWARD)
    assert set(more) <= {"reshape", "broadcast_in_dim", "tile"}, more


USED = {
    "a cap": replace(a.LITE_PPO, objective=a.Clip(cap=3.0)),
    "an entropy bonus": replace(a.LITE_PPO, regularizers=(a.EntropyBonus(0.1),)),
    "drift": replace(a.LITE_PPO, regularizers=(a.DriftPenalty(0.1),)),
}


@pytest.mark.parametrize("name", list(USED))
def test_a_used_technique_adds_operations(name: str):
    assert loss_program(USED[name]).total() > loss_program(a.LITE_PPO).total()


def test_a_filter_or_a_correction_changes_only_the_batch():
    for more in (replace(a.LITE_PPO, filters=(a.ZeroVariance(),)), replace(a.LITE_PPO, corrections=(a.RatioMask(),))):
        assert batch_program(more).total() > batch_program(a.LITE_PPO).total()
        assert loss_program(more) == loss_program(a.LITE_PPO)


def test_unneeded_fields_are_not_part_of_the_program():
    """None is no input. A field that is given anyway adds an input but no operation."""
    assert {"value_weight", "kl_baseline", "teacher_tokens", "teacher_logp", "student_logp"} < set(OPTIONAL)
    assert all(getattr(BATCH, name) is None for name in OPTIONAL)
    made = jax.make_jaxpr(LEARNER.train_step)(STATE, BATCH, jnp.int32(0), jnp.float32(TEMPERATURE))
    standing = len(Batch.__dataclass_fields__) - len(OPTIONAL) - 1 + 3  # prompts are three arrays
    assert len(made.in_avals) == len(jax.tree.leaves(STATE)) + standing + 2
    assert len(jax.tree.leaves(STATE)) == len(jax.tree.leaves((STATE.step, STATE.params, STATE.opt_state)))
    given = replace(BATCH, **{name: BATCH.mask for name in OPTIONAL if name not in ("moments", *FIELDS_READ)})
    assert loss_program(a.LITE_PPO, given) == loss_program(a.LITE_PPO)


@pytest.mark.parametrize("name", list(FIELDS_READ))
def test_a_field_that_every_loss_reads_adds_operations(name: str):
    """So it must be None where no component needs it."""
    given = replace(BATCH, **{name: FIELDS_READ[name]})
    assert loss_program(a.LITE_PPO, given).total() > loss_program(a.LITE_PPO).total()


def test_a_critic_adds_operations_only_where_there_is_one():
    """Its inputs are its parameters, its optimizer state, and the three fields it learns from."""
    learner = replace(LEARNER, algorithm=a.PPO, **CRITIC)
    batch, state = batch_of(a.PPO, value=MASK), state_of(**CRITIC)
    made = [x for x in OPTIONAL if getattr(batch, x) is not None]
    assert made == ["value", "returns", "value_weight"]
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves((STATE, state.critic)))
    assert step_program(learner, state, batch).total() > 1.5 * step_program(LEARNER).total()


def test_demonstrations_add_operations_only_where_there_are_some():
    without, given = step_program(LEARNER), step_program(LEARNER, STATE, BATCH, BATCH)
    assert step_program(LEARNER, STATE, BATCH, None) == without
    assert given.total() > 1.5 * without.total()
