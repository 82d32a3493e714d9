"""Reward-to-go and generalised advantage estimation against loops in plain NumPy, and their laws."""

from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from peers.case import batch

from rl_llm.algorithms import RunShape
from rl_llm.algorithms.advantage import RLOO, Normalize
from rl_llm.algorithms.returns import GAE, LengthAdaptive, RewardToGo
from rl_llm.algorithms.whitening import ClipAdvantage, Whiten
from rl_llm.types import Batch

B, K, T = 6, 3, 8
LENGTHS = np.array([8, 1, 3, 5, 8, 2])
MASK = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)

apply = jax.jit(lambda component, batch: component(batch), static_argnums=0)
returns_of = jax.jit(lambda component, batch: component.returns(batch), static_argnums=0)


def of(seed: int = 0, mask: np.ndarray = MASK, **fields: Any) -> Batch:
    """Random rewards of responses, and values everywhere (at padding too, where they must not matter)."""
    rng = np.random.default_rng(seed)
    standing = {"reward": rng.normal(size=B), "value": rng.normal(size=(B, mask.shape[1]))}
    return batch(mask, K, **{name: np.float32(value) for name, value in (standing | fields).items()})


def estimates(source: Batch, rewards: np.ndarray, gamma: float, lam: np.ndarray) -> np.ndarray:
    """GAE of each row's own tokens by the definition: sum_l (gamma lam)^l delta_{t+l}."""
    mask, value = np.asarray(source.mask), np.asarray(source.value, np.float64)
    found = np.zeros(mask.shape)
    for b in range(B):
        places = np.flatnonzero(mask[b])
        r, v = rewards[b, places], np.append(value[b, places], 0.0)
        delta = r + gamma * v[1:] - v[:-1]
        for t, place in enumerate(places):
            found[b, place] = sum((gamma * lam[b]) ** i * d for i, d in enumerate(delta[t:]))
    return found


def at_last(source: Batch) -> np.ndarray:
    mask = np.asarray(source.mask)
    rewards = np.zeros(mask.shape)
    for b in range(B):
        rewards[b, np.flatnonzero(mask[b])[-1]] = source.reward[b]
    return rewards


HOLES = MASK.copy()
HOLES[0, 2:5] = HOLES[3, 1] = HOLES[4, 0] = 0


@pytest.mark.parametrize("mask", [MASK, HOLES], ids=["prefix", "holes"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.7), (1.0, 0.0)])
def test_gae_by_its_definition(mask, gamma: float, lam: float):
    dense = np.random.default_rng(1).normal(size=mask.shape)
    component = GAE(gamma, lam)
    for source, rewards in (
        (of(mask=mask), at_last(of(mask=mask))),
        (of(mask=mask, token_reward=dense), dense),
    ):
        expected = estimates(source, rewards, gamma, np.full(B, lam))
        np.testing.assert_allclose(apply(component, source), expected, atol=3e-6)
        np.testing.assert_allclose(returns_of(component, source), expected + np.asarray(source.value) * mask, atol=3e-6)


@given(st.integers(0, 2**31))
def test_gae_with_gamma_and_lambda_1_is_the_return_minus_the_value(seed: int):
    source = of(seed)
    expected = (np.asarray(source.reward)[:, None] - np.asarray(source.value)) * MASK
    np.testing.assert_allclose(apply(GAE(1.0, 1.0), source), expected, atol=3e-6)


@given(st.integers(0, 2**31))
def test_values_at_padding_do_not_matter(seed: int):
    source = of(seed)
    other = of(seed, value=np.where(MASK > 0, source.value, 99.0))
    for component in (GAE(0.9, 0.7), Whiten(GAE(0.9, 0.7))):
        np.testing.assert_array_equal(apply(component, source), apply(component, other))
        np.testing.assert_array_equal(apply(component, other)[MASK == 0], 0.0)


def test_the_critic_can_have_its_own_lambda():
    """VC-PPO: the return itself for the critic, a shorter horizon for the policy."""
    source = of()
    decoupled = GAE(1.0, 0.5, critic_lam=1.0)
    np.testing.assert_array_equal(apply(decoupled, source), apply(GAE(1.0, 0.5), source))
    np.testing.assert_allclose(returns_of(decoupled, source), np.asarray(source.reward)[:, None] * MASK, atol=3e-6)
    assert np.abs(returns_of(GAE(1.0, 0.5), source) - returns_of(decoupled, source)).max() > 0.1


def test_lambda_grows_with_the_response():
    source, alpha = of(), 0.5
    lam = np.maximum(1 - 1 / (alpha * LENGTHS), 0)
    assert lam[1] == lam[5] == 0
    component = GAE(1.0, LengthAdaptive(alpha))
    np.testing.assert_allclose(apply(component, source), estimates(source, at_last(source), 1.0, lam), atol=3e-6)
    with pytest.raises(ValueError, match=r"LengthAdaptive.alpha=0.1 cannot act on responses of 8 tokens"):
        GAE(lam=LengthAdaptive(0.1)).check(RunShape(8, 8, 1, max_tokens=8))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reward_to_go_sums_future_rewards(gamma: float):
    dense = np.random.default_rng(2).normal(size=HOLES.shape)
    source = of(mask=HOLES, token_reward=dense, value=np.zeros(HOLES.shape))
    expected = estimates(source, dense, gamma, np.ones(B))
    np.testing.assert_allclose(apply(RewardToGo(gamma), source), expected, atol=3e-6)
    np.testing.assert_array_equal(returns_of(RewardToGo(gamma), source), apply(RewardToGo(gamma), source))


def test_a_reward_at_the_end_is_discounted_by_the_tokens_between():
    source = of()
    to_come = np.cumsum(MASK[:, ::-1], axis=1)[:, ::-1] - 1
    expected = 0.9**to_come * np.asarray(source.reward)[:, None] * MASK
    np.testing.assert_allclose(apply(RewardToGo(0.9), source), expected, atol=1e-6)


def test_an_outcome_replaces_the_reward_of_the_response_and_leaves_that_of_tokens():
    source = of()
    fine = np.random.default_rng(3).normal(size=MASK.shape) * MASK
    fined = of(token_reward=at_last(source) - fine)
    to_come = np.cumsum(fine[:, ::-1], axis=1)[:, ::-1]
    for outcome in (RLOO(), Normalize()):
        plain = np.asarray(apply(outcome, source))
        np.testing.assert_allclose(apply(RewardToGo(outcome=outcome), source), plain, atol=1e-6)
        np.testing.assert_allclose(apply(RewardToGo(outcome=outcome), fined), (plain - to_come) * MASK, atol=3e-6)


def test_returns_are_neither_whitened_nor_clipped():
    source, inner = of(), GAE(1.0, 0.9)
    for around in (Whiten(inner), ClipAdvantage(Whiten(inner), 0.1)):
        np.testing.assert_array_equal(returns_of(around, source), returns_of(inner, source))
        assert around.needs == ("value",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GAE(gamma=0.0), "GAE.gamma=0.0 is out of range; expected > 0 and <= 1"),
        (lambda: GAE(lam=1.1), "GAE.lam=1.1 is out of range; expected >= 0 and <= 1"),
        (lambda: GAE(critic_lam=-0.1), "GAE.critic_lam=-0.1 is out of range; expected >= 0 and <= 1"),
        (lambda: RewardToGo(gamma=1.5), "RewardToGo.gamma=1.5 is out of range; expected > 0 and <= 1"),
        (lambda: LengthAdaptive(0.0), "LengthAdaptive.alpha=0.0 is out of range; expected > 0"),
    ],
)
def test_impossible_values_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_gae_needs_a_critic():
    GAE().check(RunShape(8, 1, 1))
    with pytest.raises(ValueError, match=r"GAE needs batch\.value"):
        GAE()(batch(MASK, K))
