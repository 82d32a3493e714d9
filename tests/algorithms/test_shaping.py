"""Shaping of rewards on hand-made cases."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers.case import batch

from rl_llm.algorithms import RunShape
from rl_llm.algorithms.returns import token_rewards
from rl_llm.algorithms.shaping import FullKLInReward, KLInReward, RepetitionPenalty, SoftOverlong, WhitenRewards
from rl_llm.types import Batch

apply = jax.jit(lambda component, batch: component(batch), static_argnums=0)


def of(lengths: list[int], width: int, **fields: Any) -> Batch:
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.float32)
    return batch(mask, 1, **fields)


@pytest.mark.parametrize(
    ("component", "fines"),
    [
        (SoftOverlong(10, 4), [0, 0, -0.25, -1, -1, -1]),
        (SoftOverlong(10, 4, factor=0.5), [0, 0, -0.125, -0.5, -0.5, -0.5]),
        (SoftOverlong(10, 4, capped=False), [0, 0, -0.25, -1, -1.25, -1.5]),
        (SoftOverlong(10, 10), [-0.1, -0.6, -0.7, -1, -1, -1]),
    ],
    ids=str,
)
def test_the_penalty_grows_over_the_buffer(component, fines: list[float]):
    source = of([1, 6, 7, 10, 11, 12], 12, reward=np.ones(6, np.float32))
    np.testing.assert_allclose(apply(component, source).reward, 1 + np.array(fines), atol=1e-6)


def test_a_response_penalty_lands_on_the_last_token_if_tokens_have_rewards():
    rewards = np.arange(8, dtype=np.float32).reshape(2, 4)
    shaped = apply(SoftOverlong(4, 2), of([4, 3], 4, token_reward=rewards, reward=np.zeros(2, np.float32)))
    np.testing.assert_allclose(shaped.reward, [-1, -0.5])
    np.testing.assert_allclose(shaped.token_reward - rewards, [[0, 0, 0, -1], [0, 0, -0.5, 0]])


@pytest.mark.parametrize(
    ("n", "tokens", "share"),
    [
        (1, [5, 5, 5, 5], 3 / 4),
        (2, [5, 5, 5, 5], 2 / 3),
        (2, [1, 2, 1, 2], 1 / 3),
        (2, [1, 2, 3, 4], 0),
        (2, [1, 2, 2, 1], 0),  # order counts
        (3, [1, 1, 1, 1], 1 / 2),
        (2, [7], 0),  # no bigram
        (2, [1, 2, 1, 2, 1, 2], 3 / 5),
    ],
)
def test_the_share_of_repeated_n_grams(n: int, tokens: list[int], share: float):
    """Padding (here with the last tokens) repeats nothing."""
    width = 8
    padded = np.array([tokens + tokens[-1:] * (width - len(tokens))], np.int32)
    shaped = apply(RepetitionPenalty(0.5, n), of([len(tokens)], width, tokens=padded))
    np.testing.assert_allclose(shaped.reward, [-0.5 * share], atol=1e-6)


def test_repetition_ignores_n_grams_across_a_masked_gap():
    mask = np.array([[1, 1, 0, 1, 1, 0, 1, 1]], np.float32)
    tokens = np.array([[1, 2, 9, 1, 2, 9, 2, 1]], np.int32)
    assert apply(RepetitionPenalty(1.0, 2), batch(mask, 1, tokens=tokens)).reward[0] == pytest.approx(-1 / 3)


def test_the_kl_penalty_per_token_or_per_response():
    old, ref = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    source = of([4, 2, 1], 4, old_logp=old, ref_logp=ref, reward=np.array([1, 2, 3], np.float32))
    mask, fine = np.asarray(source.mask), 0.1 * (old - ref)
    by_token = apply(KLInReward(0.1), source)
    np.testing.assert_array_equal(by_token.reward, source.reward)
    np.testing.assert_allclose(by_token.token_reward, token_rewards(source) - fine * mask, atol=1e-6)
    by_response = apply(KLInReward(0.1, level="response"), source)
    assert by_response.token_reward is None
    np.testing.assert_allclose(by_response.reward, source.reward - (fine * mask).sum(1), atol=1e-6)
    np.testing.assert_allclose(by_response.reward, token_rewards(by_token).sum(1), atol=1e-6)


def test_a_policy_equal_to_its_reference_has_no_penalty():
    logp = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    source = of([4, 2, 1], 4, old_logp=logp, ref_logp=logp, reward=np.ones(3, np.float32))
    np.testing.assert_array_equal(apply(KLInReward(), source).token_reward, token_rewards(source))


@pytest.mark.parametrize("keep_mean", [False, True])
@pytest.mark.parametrize("ddof", [0, 1])
def test_rewards_are_whitened_over_counted_tokens(keep_mean, ddof):
    rewards = np.random.default_rng(2).normal(2, 3, size=(3, 4)).astype(np.float32)
    counted = np.array([True, True, False])
    source = of([4, 2, 3], 4, token_reward=rewards, counted=counted)
    mask = np.asarray(source.mask)
    seen = rewards[(mask * counted[:, None]) > 0]
    expected = (rewards - seen.mean()) / np.sqrt(seen.var(ddof=ddof) + 0.1) + keep_mean * seen.mean()
    found = apply(WhitenRewards(keep_mean, ddof, eps=0.1), source)
    np.testing.assert_allclose(found.token_reward, expected * mask, atol=3e-6)


def test_gives_token_reward_is_declared_correctly():
    given = {
        component: getattr(component, "gives_token_reward", False)
        for component in (
            SoftOverlong(4, 2),
            RepetitionPenalty(),
            KLInReward(),
            KLInReward(level="response"),
            WhitenRewards(),
        )
    }
    source = of([8, 8], 8, ref_logp=jnp.zeros((2, 8)))
    assert given == {c: apply(c, source).token_reward is not None for c in given}


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (SoftOverlong(40, 8), r"SoftOverlong.max_length=40 with buffer=8 cannot act on responses of at most 32 tokens"),
        (SoftOverlong(32, 8, capped=False), r"SoftOverlong.capped=False cannot act on responses of at most 32 tokens"),
        (RepetitionPenalty(n=32), r"RepetitionPenalty.n=32 cannot act on responses of at most 32 tokens"),
    ],
    ids=str,
)
def test_shaping_that_cannot_act_on_the_response_length_is_refused(component, message: str):
    with pytest.raises(ValueError, match=message):
        component.check(RunShape(8, 8, 1, max_tokens=32))


def test_the_full_kl_is_the_expectation_of_the_token_estimates():
    """All tokens of a vocabulary, weighted by the policy's probability."""
    draw, V = np.random.default_rng(0), 5
    policy, reference = (jax.nn.log_softmax(jnp.asarray(draw.normal(size=V), jnp.float32)) for _ in range(2))
    everything = jnp.tile(policy, (V, 1, 1)), jnp.tile(reference, (V, 1, 1))
    rows = of([1] * V, 1, old_logp=policy[:, None], ref_logp=reference[:, None], old_top_logp=everything[0])
    rows = replace(rows, teacher_logp=everything[1], teacher_tokens=jnp.tile(jnp.arange(V), (V, 1, 1)))
    estimates = apply(KLInReward(0.5), rows).token_reward[:, 0]
    full = apply(FullKLInReward(0.5), rows).token_reward[:, 0]
    np.testing.assert_allclose(full, jnp.sum(jnp.exp(policy) * estimates), rtol=1e-5)
    assert np.ptp(estimates) > 0.1


def test_a_divergence_in_the_reward_needs_a_reference():
    with pytest.raises(ValueError, match=r"KLInReward needs batch\.ref_logp"):
        KLInReward()(of([32], 32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftOverlong(10, 11), r"buffer <= max_length, not buffer=11, max_length=10"),
        (lambda: SoftOverlong(10, 0), "SoftOverlong.buffer=0 is out of range; expected >= 1"),
        (lambda: SoftOverlong(10, 4, factor=-1.0), "SoftOverlong.factor=-1.0 is out of range; expected > 0"),
        (lambda: RepetitionPenalty(0.0), "RepetitionPenalty.coefficient=0.0 is out of range; expected > 0"),
        (lambda: RepetitionPenalty(1.0, 0), "RepetitionPenalty.n=0 is out of range; expected >= 1"),
        (lambda: KLInReward(0.0), "KLInReward.coefficient=0.0 is out of range; expected > 0"),
        (lambda: WhitenRewards(eps=0.0), "WhitenRewards.eps=0.0 is out of range; expected > 0"),
    ],
)
def test_impossible_values_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
