"""A critic: its inputs, its gradient, and the parameters it leaves alone."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_learner import CONFIG, OPTIMIZER, PARAMS, PROMPTS, REWARD, TEMPERATURE, K, N, T, V, distance

from rl_llm import algorithms as a
from rl_llm.learner.critic import Critic
from rl_llm.learner.logprobs import response_hidden
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import StateSpec, init_state
from rl_llm.learner.train_step import Learner, compile_critic_step, compile_train_step, make_batch
from rl_llm.parallel.mesh import make_mesh
from rl_llm.types import Batch, Rollout, TrainState

MESH = make_mesh(devices=jax.devices()[:1])
DRAW = np.random.default_rng(3)
TOKENS = DRAW.integers(0, V, (N * K, T), np.int32)
MASK = (np.arange(T) < DRAW.integers(1, T + 1, N * K)[:, None]).astype(np.float32)
LOGP = -MASK
OWN, SHARED = Critic(AdamW(1e-2)), Critic(AdamW(1e-2), shared=True)


def batch_of(value: Any) -> Batch:
    rollout = Rollout(PROMPTS, TOKENS, MASK, MASK[:, -1] > 0, LOGP, LOGP, LOGP, jnp.asarray(REWARD))
    return make_batch(a.PPO, rollout, {"value": value})[0]


def learner_and_state(critic: Critic) -> tuple[Learner, StateSpec, TrainState]:
    optimizer = critic.optimizer.build(4)
    learner = Learner(CONFIG, a.PPO, OPTIMIZER, critic=critic, critic_optimizer=optimizer)
    spec = StateSpec(critic=critic, critic_optimizer=optimizer)
    return learner, spec, init_state(CONFIG, OPTIMIZER, MESH, PARAMS, spec)


def values(critic: Critic, params: dict, critic_params: dict, tokens: np.ndarray = TOKENS) -> np.ndarray:
    hidden = response_hidden(CONFIG, params, PROMPTS, tokens) if critic.shared else None
    return np.asarray(critic.values(CONFIG, critic_params, PROMPTS, tokens, hidden))


@pytest.mark.slow
@pytest.mark.parametrize("critic", [OWN, SHARED], ids=["own", "shared"])
def test_a_critic_starts_at_zero_and_learns_the_returns(critic: Critic):
    """Trained alone on the returns of one batch, its error falls and the policy does not change."""
    learner, spec, state = learner_and_state(critic)
    assert not values(critic, PARAMS, jax.device_get(state.critic.params)).any()
    step = compile_critic_step(learner, MESH, spec)
    batch, errors = batch_of(jnp.zeros((N * K, T))), []
    for _ in range(8):
        state, metrics = step(state, batch, jnp.int32(0))
        errors.append(float(metrics["critic/error"].result()))
    assert errors[-1] < (0.9 if critic.shared else 0.7) * errors[0]  # a head alone has few parameters
    assert distance(jax.device_get(state.params), PARAMS) == 0
    assert int(state.step) == 0


def test_a_reward_models_score_depends_on_the_last_token():
    params = OWN.first_params(CONFIG, PARAMS) | {"value_head": jnp.ones(CONFIG.width)}
    other = TOKENS.copy()
    other[:, -1] = (other[:, -1] + 1) % V
    before, after = (np.asarray(OWN.values(CONFIG, params, PROMPTS, tokens, None, True)) for tokens in (TOKENS, other))
    np.testing.assert_allclose(before[:, :-1], after[:, :-1], atol=1e-5)
    assert np.abs(before[:, -1] - after[:, -1]).min() > 1e-4


@pytest.mark.parametrize("critic", [OWN, SHARED], ids=["own", "shared"])
def test_the_value_of_a_state_ignores_later_tokens(critic: Critic):
    params = critic.first_params(CONFIG, PARAMS) | {"value_head": jnp.ones(CONFIG.width)}
    other = TOKENS.copy()
    other[:, 3:] = (other[:, 3:] + 1) % V
    before, after = values(critic, PARAMS, params), values(critic, PARAMS, params, other)
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-2


@pytest.mark.slow
def test_a_shared_critic_moves_the_policy_and_a_separate_one_does_not():
    """At the first update heads are 0 and move no hidden state. At the second update a shared one does."""

    def after_two(critic: Critic | None) -> dict:
        learner, spec, state = learner_and_state(critic or OWN)
        if critic is None:
            learner = Learner(CONFIG, replace(a.PPO, value_loss=None), OPTIMIZER)
            spec, state = StateSpec(), init_state(CONFIG, OPTIMIZER, MESH, PARAMS)
        step = compile_train_step(learner, MESH, spec)
        for _ in range(2):
            state, _ = step(state, batch_of(jnp.zeros((N * K, T))), jnp.int32(0), jnp.float32(TEMPERATURE), None)
        found: dict = jax.device_get(state.params)
        return found

    alone = after_two(None)
    assert distance(after_two(OWN), alone) < 1e-5
    assert distance(after_two(SHARED), alone) > 1e-4


def test_a_critic_learns_in_the_units_of_the_rewards():
    """PPO whitens advantages, not returns. With gamma = 1, lambda = 0.95 and V = 0 the return decays backwards."""
    batch = batch_of(jnp.zeros((N * K, T)))
    from_end = np.maximum(MASK.sum(axis=1, keepdims=True) - 1 - np.arange(T), 0)
    np.testing.assert_allclose(batch.returns, REWARD[:, None] * 0.95**from_end * MASK, rtol=1e-5)
    np.testing.assert_allclose(np.sum(batch.value_weight), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Critic(AdamW(1e-3), coefficient=0.5), "coefficient=0.5 cannot act on a network of the critic's own"),
        (
            lambda: Critic(AdamW(1e-3), shared=True, coefficient=0.0),
            "coefficient=0.0 is out of range; expected > 0",
        ),
        (lambda: Critic(AdamW(1e-3), pretraining_steps=-1), "pretraining_steps=-1 is out of range; expected >= 0"),
    ],
)
def test_invalid_values_are_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()
