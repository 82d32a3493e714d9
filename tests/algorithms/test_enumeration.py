"""Estimators: the expected gradient, exact by enumeration, is that of the documented objective."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from toy import LENGTHS, POLICY, REF, REWARD, RIGHT, SAMPLER, expected_ascent, expected_reward, gradient

import rl_llm.algorithms as a
from rl_llm.algorithms import Moments, Normalize, PassAtK, PolicyGradient, SequenceMean, SequenceSum
from rl_llm.types import Batch

PLAIN = a.Algorithm(Normalize("none", "none"), PolicyGradient(), SequenceSum())
K = 3  # responses per group, unless a case says otherwise
STATE_VALUES = np.random.default_rng(1).normal(size=(toy.T, toy.V)).astype(np.float32)
ANY_VALUE = np.asarray(toy.values_of(STATE_VALUES))  # of what stands before a token, and wrong
TRUE_VALUE = toy.values_at(POLICY, REWARD)
MEAN, RATE, MEAN_LENGTH = (float(expected_reward(POLICY, x)) for x in (REWARD, RIGHT, LENGTHS))
SAMPLED = np.asarray(toy.probability(SAMPLER))
Objective = Callable[[Any], jax.Array]


def reward_times(factor: Any) -> Objective:
    """E[R factor], with a constant factor per response."""
    return lambda table: expected_reward(table, REWARD * np.asarray(factor))


def right_times(slope: Callable[[float], float]) -> Objective:
    """A function of P(right), given by its slope."""
    return lambda table: slope(RATE) * expected_reward(table, RIGHT)


def in_groups(plus: Callable[[int], float], minus: Callable[[int], float], k: int = K) -> Objective:
    """Objective of advantages that depend on the number of right responses in the group.

    The slope is the mean, over the others, of a response's gain from being right.
    """

    def slope(p: float) -> float:
        return sum(comb(k - 1, m) * p**m * (1 - p) ** (k - 1 - m) * (plus(m + 1) - minus(m)) for m in range(k))

    return right_times(slope)


def grpo(right: int, mine: float) -> float:
    rewards = np.arange(K) < right
    return 0.0 if rewards.std() == 0 else float((mine - rewards.mean()) / (rewards.std(ddof=1) + 1e-6))


def kl_of_responses(table: Any) -> jax.Array:
    away = jnp.sum(toy.logps(table) - toy.logps(REF), axis=1)
    return jnp.sum(toy.probability(table) * away)


def kl_at(table: Any, first: str = "policy") -> Callable[[tuple[int, ...]], jax.Array]:
    """KL between the policy's and the reference's next token at a state."""

    def of(state: tuple[int, ...]) -> jax.Array:
        p, q = (jax.nn.log_softmax(toy.at_state(x, state)) for x in (table, REF))
        p, q = (p, q) if first == "policy" else (q, p)
        return jnp.sum(jnp.exp(p) * (p - q))

    return of


def entropy_at(table: Any) -> Callable[[tuple[int, ...]], jax.Array]:
    def of(state: tuple[int, ...]) -> jax.Array:
        p = jax.nn.log_softmax(toy.at_state(table, state))
        return -jnp.sum(jnp.exp(p) * p)

    return of


def surrogate(table: Any) -> jax.Array:
    """sum_s P_mu(s) sum_a pi(a | s) Q_mu(s, a): states and continuations from the sampler (TRPO, arXiv 1502.05477)."""

    def of(state: tuple[int, ...]) -> jax.Array:
        ahead = [SAMPLED * toy.begins((*state, token)) for token in range(toy.V)]
        q = jnp.array([(part * REWARD).sum() / part.sum() for part in ahead])
        return jnp.sum(jax.nn.softmax(toy.at_state(table, state)) * q)

    return toy.over_states(of, SAMPLER)


def ratio(table: Any) -> jax.Array:
    return toy.probability(table) / SAMPLED


def under_sampler(f: Callable[[jax.Array], jax.Array]) -> Objective:
    """E_mu[R f(ratio of the response)]."""
    return lambda table: jnp.sum(SAMPLED * REWARD * f(ratio(table)))


def tapered(w: jax.Array) -> jax.Array:
    """TOPR, arXiv 2503.14286: log w for right answers; for others w, and 1 + log w above 1."""
    return jnp.where(REWARD > 0, jnp.log(w), jnp.where(w < 1, w, 1 + jnp.log(jnp.maximum(w, 1.0))))


def share_of_tokens() -> np.ndarray:
    """E[1 / (l + tokens of the K - 1 others)] for each response, from the distribution of lengths alone."""
    chance = np.bincount(LENGTHS, np.asarray(toy.probability(POLICY)))
    others = np.convolve(chance, chance)
    return (others / (LENGTHS[:, None] + np.maximum(np.arange(len(others)), 1))).sum(1)


def rewarded(advantage: Any, **changes: Any) -> a.Algorithm:
    return replace(PLAIN, advantage=advantage, **changes)


def seen(objective: Any, *corrections: Any, **changes: Any) -> a.Algorithm:
    return replace(PLAIN, objective=objective, corrections=corrections, **changes)


@dataclass(frozen=True)
class Undivided(a.advantage.ResponseAdvantage):  # type: ignore[name-defined]
    """PassAtK before division by the std of its group's sets."""

    inner: PassAtK

    def per_response(self, batch: Batch) -> jax.Array:
        wrong = jnp.sum(batch.reward <= 0)
        fail = a.advantage._chance(wrong, jnp.float32(batch.reward.shape[0]), self.inner.k)  # type: ignore[attr-defined]
        return self.inner.per_response(batch) * jnp.sqrt(fail * (1 - fail))


BINARY = {"reward": RIGHT}
OFF = {"sampler": SAMPLER}  # the updates begin at POLICY, the samples are those of another
MOVED = {"sampler": SAMPLER, "old": SAMPLER}  # POLICY has moved since
WIDE = 1e6
ON_POLICY = [PolicyGradient(), a.Clip(), a.GPPO(), a.SAPO(), a.DPPO(), a.CISPO(), a.AIPO(), a.TOPR(), a.VESPO()]
ON_POLICY += [a.KLCov(share=0.3), a.ClipCov(floor=1e3, ceiling=1e4)]
WITHIN = (np.asarray(ratio(POLICY)) > 0.5) & (np.asarray(ratio(POLICY)) < 2)
CAPPED = np.minimum(1.5 / np.asarray(ratio(POLICY)), 1)
fixed = lambda f: lambda table: toy.over_states(f(table), POLICY)  # noqa: E731  (states as they are visited now)

Row = tuple[a.Algorithm, Objective, dict[str, Any]]
ADVANTAGES: dict[str, Row] = {
    "REINFORCE": (PLAIN, expected_reward, {}),
    "baseline of the batch": (a.REINFORCE, reward_times(3 / 4), {"k": 2, "groups": 2}),
    "baseline of the group": (rewarded(Normalize("group", "none")), reward_times(2 / 3), {}),
    "baseline of all so far": (
        rewarded(Normalize("running", "running")),
        reward_times(1 / 2),
        {"moments": Moments(jnp.float32(1e9), jnp.float32(0.3), jnp.float32(4e9))},
    ),
    "leave one out": (a.LEAVE_ONE_OUT, expected_reward, {}),
    "leave one out of two": (a.LEAVE_ONE_OUT, expected_reward, {"k": 2}),
    "greedy baseline": (rewarded(a.ReMax()), expected_reward, {}),
    "a bound that does not act": (rewarded(a.ClipAdvantage(a.RLOO(), 100.0)), expected_reward, {}),
    "reward to go": (rewarded(a.RewardToGo()), expected_reward, {}),
    "reward to go of an outcome": (rewarded(a.RewardToGo(outcome=a.RLOO())), expected_reward, {}),
    "GAE(1, 1) of any value": (rewarded(a.GAE(lam=1.0)), expected_reward, {"value": ANY_VALUE}),
    "GAE of the true value": (rewarded(a.GAE(lam=0.3)), expected_reward, {"value": TRUE_VALUE}),
    "best of the group": (
        rewarded(a.BestOfGroup(std="none")),
        lambda table: jnp.sum(_pairs(table) * np.maximum(REWARD[:, None], REWARD)) / 2,
        {"k": 2},
    ),
    # Of right or wrong: every advantage of the count follows a function of P(right), and nothing else.
    "GRPO": (rewarded(Normalize()), in_groups(lambda m: grpo(m, 1), lambda m: grpo(m, 0)), BINARY),
    "Lite PPO, one group": (
        rewarded(Normalize("group", "batch")),
        in_groups(lambda m: grpo(m, 1), lambda m: grpo(m, 0)),
        BINARY,
    ),
    "MaxRL": (rewarded(a.MaxRL()), right_times(lambda p: sum((1 - p) ** j for j in range(K - 1))), BINARY),
    "rejection sampling": (
        replace(a.REJECTION_SAMPLING, aggregate=SequenceSum()),
        right_times(lambda p: sum((1 - p) ** j for j in range(K))),
        BINARY,
    ),
    "rejection sampling, all rows counted": (
        replace(a.REJECTION_SAMPLING, aggregate=SequenceSum("counted")),
        right_times(lambda p: 1.0),
        BINARY,
    ),
    "pass@2 without a std": (rewarded(Undivided(PassAtK(2))), right_times(lambda p: (1 - p) * (1 - 2 / K)), BINARY),
    "pass@2": (  # right: fail / std, where two of three are wrong; wrong: fail less (W - 1) / 2
        rewarded(PassAtK(2)),
        in_groups(lambda m: 2**-0.5 if m == 1 else 0.0, lambda m: -(2**-0.5) / 2 if m == 1 else 0.0),
        BINARY,
    ),
    "GPG": (rewarded(a.GPG()), reward_times(2 / 3), {}),
    "GPG, two groups": (  # doubled where the other group has nothing to compare
        rewarded(a.GPG()),
        right_times(lambda p: (2 - 2 * p * (1 - p)) / 2),
        BINARY | {"k": 2, "groups": 2},
    ),
}
AGGREGATES: dict[str, Row] = {
    "a fixed length": (replace(PLAIN, aggregate=a.FixedLength(5)), reward_times(1 / 5), {}),
    "a fixed length, summed": (replace(PLAIN, aggregate=a.FixedLength(5, rows="sum")), reward_times(K / 5), {}),
    "the mean of sequences": (replace(PLAIN, aggregate=SequenceMean()), reward_times(1 / LENGTHS), {}),
    "the mean of sequences, a baseline": (
        rewarded(a.RLOO(), aggregate=SequenceMean()),
        lambda table: expected_reward(table, (REWARD - MEAN) / LENGTHS),
        {},
    ),
    "the mean of tokens": (replace(PLAIN, aggregate=a.TokenMean()), reward_times(K * share_of_tokens()), {}),
    "the mean of tokens of a group": (
        replace(PLAIN, aggregate=a.TokenMean("group")),
        reward_times(K * share_of_tokens()),
        {},
    ),
    "VL Norm, alpha 0": (replace(PLAIN, aggregate=a.VLNorm(5, 0.0)), reward_times(1 / 5), {}),
    "rows cut off and counted": (
        replace(PLAIN, filters=(a.Overlong(),), aggregate=SequenceSum("counted")),
        reward_times(~toy.TRUNCATED),
        {},
    ),
}
IMPORTANCE: dict[str, Row] = {
    "weights of responses": (
        seen(PolicyGradient(), a.ImportanceWeight("sequence", upper=float("inf"))),
        expected_reward,
        OFF,
    ),
    "weights of responses, RLOO": (
        replace(a.LEAVE_ONE_OUT, corrections=(a.ImportanceWeight("sequence", upper=None),)),
        expected_reward,
        OFF,
    ),
    "weights of responses, capped": (
        seen(PolicyGradient(), a.ImportanceWeight("sequence", upper=1.5)),
        reward_times(CAPPED),
        OFF,
    ),
    "weights of responses, masked": (
        seen(PolicyGradient(), a.ImportanceWeight("sequence", upper=None), a.RatioMask(0.5, 2.0, "sequence")),
        reward_times(WITHIN),
        OFF,
    ),
    "weights of tokens": (seen(PolicyGradient(), a.ImportanceWeight("token", upper=None)), surrogate, OFF),
    "AIPO": (seen(a.AIPO(cap=WIDE)), surrogate, OFF),
    "DPPO": (seen(a.DPPO(0.999, 0.999)), surrogate, OFF),
    "PPO": (seen(a.Clip(1.0, WIDE)), surrogate, MOVED),
    "GPPO": (seen(a.GPPO(1.0, WIDE)), surrogate, MOVED),
    "CISPO": (seen(a.CISPO(1.0, WIDE)), surrogate, MOVED),
    "the ratio of responses": (seen(a.SequenceClip(1.0, WIDE), aggregate=SequenceMean()), expected_reward, MOVED),
    "GSPO": (
        seen(a.GSPO(1.0, WIDE), aggregate=SequenceMean()),
        under_sampler(lambda w: w ** (1 / LENGTHS)),
        MOVED,
    ),
    "GSPO of tokens": (
        seen(a.GSPO(1.0, WIDE, "token"), aggregate=SequenceMean()),
        under_sampler(lambda w: w ** (1 / LENGTHS)),
        MOVED,
    ),
    "GMPO": (seen(a.GMPO(WIDE, WIDE), aggregate=SequenceMean()), under_sampler(lambda w: w ** (1 / LENGTHS)), MOVED),
    "TOPR": (seen(a.TOPR()), under_sampler(tapered), OFF),
    "VESPO": (seen(a.VESPO(1.0, 2.0, 1.0, 2.0)), under_sampler(lambda w: -jnp.exp(2 * (1 - w)) / 2), OFF),
}
DIVERGENCES: dict[str, Row] = {
    "the KL in the reward of tokens": (
        rewarded(a.RewardToGo(), shaping=(a.KLInReward(0.3),)),
        lambda table: expected_reward(table) - 0.3 * kl_of_responses(table),
        {},
    ),
    "the KL in the reward of responses": (
        rewarded(a.RLOO(), shaping=(a.KLInReward(0.3, "response"),)),
        lambda table: expected_reward(table) - 0.3 * kl_of_responses(table),
        {},
    ),
    # In the loss a token answers for itself only: the states are as they come, and no part of the gradient.
    "k2 in the loss": (
        replace(PLAIN, regularizers=(a.KLPenalty(0.3, a.Divergence("k2")),)),
        lambda table: expected_reward(table) - 0.3 * fixed(kl_at)(table),
        {},
    ),
    "k3 in the loss": (
        replace(PLAIN, regularizers=(a.KLPenalty(0.3),)),
        lambda table: expected_reward(table) - 0.3 * fixed(lambda table: kl_at(table, "reference"))(table),
        {},
    ),
    "k1 corrected, off-policy": (
        replace(PLAIN, objective=a.AIPO(WIDE), regularizers=(a.KLPenalty(0.3, a.Divergence("k1"), corrected=True),)),
        lambda table: surrogate(table) - 0.3 * toy.over_states(kl_at(table), SAMPLER),
        MOVED,
    ),
    "k3 corrected, off-policy": (
        replace(PLAIN, objective=a.AIPO(WIDE), regularizers=(a.KLPenalty(0.3, corrected=True),)),
        lambda table: surrogate(table) - 0.3 * toy.over_states(kl_at(table), SAMPLER),
        MOVED,
    ),
    "entropy": (
        replace(PLAIN, regularizers=(a.EntropyBonus(0.3),)),
        lambda table: expected_reward(table) + 0.3 * fixed(entropy_at)(table),
        {},
    ),
    "drift": (  # beside no reward: E_mu of log(pi / mu)^2, response by response
        replace(PLAIN, regularizers=(a.DriftPenalty(0.3),)),
        lambda table: (
            jnp.sum(SAMPLED * REWARD * jnp.log(ratio(table)))
            - 0.3 * jnp.sum(SAMPLED[:, None] * (toy.logps(table) - toy.logps(SAMPLER)) ** 2)
        ),
        OFF,
    ),
    "a teacher": (seen(a.ReverseKL(1.0)), lambda table: -fixed(kl_at)(table), {}),
    "a teacher, off-policy": (seen(a.ReverseKL(1.0)), lambda table: -toy.over_states(kl_at(table), SAMPLER), OFF),
}


ROWS = ADVANTAGES | AGGREGATES | IMPORTANCE | DIVERGENCES
ROWS |= {f"{objective}": (seen(objective), expected_reward, {"k": 2}) for objective in ON_POLICY}


def _pairs(table: Any) -> jax.Array:
    one = toy.probability(table)
    return one[:, None] * one[None, :]


def test_the_enumerated_responses_are_complete():
    assert float(jnp.sum(toy.probability(POLICY))) == pytest.approx(1.0)
    assert set(LENGTHS) == {1, 2, 3}
    assert 0.1 < RATE < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ROWS))
def test_the_expected_gradient_is_that_of_the_objective(name: str):
    algorithm, objective, how = ROWS[name]
    np.testing.assert_allclose(expected_ascent(algorithm, **({"k": K} | how)), gradient(objective), atol=2e-6)


# These follow no objective exactly: the nearest objective, and the largest relative error.
BIASED: dict[str, tuple[a.Algorithm, Objective, dict[str, Any], float]] = {
    # The own reward is in the baseline, and weighs by its length (arXiv 2505.23585 takes the limit of many).
    "OPO": (rewarded(a.OPO()), reward_times(2 / 3), {}, 0.1),
    # lam is known only when the response has ended.
    "GAE, lam by the length": (rewarded(a.GAE(lam=a.LengthAdaptive(0.8))), expected_reward, {"value": TRUE_VALUE}, 0.1),
    "GAE of a wrong value": (rewarded(a.GAE(lam=0.9)), expected_reward, {"value": ANY_VALUE}, 0.9),
    # A std is one of the group's own rewards: a response shrinks its own advantage.
    "std of the group": (rewarded(Normalize()), expected_reward, {}, 0.9),
    "std of the batch": (rewarded(Normalize("group", "batch")), expected_reward, {"k": 2, "groups": 2}, 0.9),
    "whitened": (rewarded(a.Whiten(a.RLOO())), expected_reward, {}, 0.9),
    "two rewards": (
        rewarded(a.GDPO((1.0, 1.0))),
        lambda table: expected_reward(table) + expected_reward(table, RIGHT),
        {},
        0.9,
    ),
    "reward to go, discounted": (rewarded(a.RewardToGo(0.5)), expected_reward, {}, 0.9),
    # Unbiased only if a response's gradient does not depend on its length (arXiv 2509.07558).
    "VL Norm": (replace(PLAIN, aggregate=a.VLNorm(1)), expected_reward, {}, 0.9),
    "balanced": (rewarded(a.RLOO(), aggregate=a.Balanced()), reward_times(1 / MEAN_LENGTH), {}, 0.9),
    "weights of geometric means": (
        seen(PolicyGradient(), a.ImportanceWeight("geometric", upper=None)),
        expected_reward,
        OFF,
        0.9,
    ),
    "self-normalised": (
        seen(PolicyGradient(), a.ImportanceWeight("sequence", upper=None, batch_normalize=True)),
        expected_reward,
        OFF,
        0.9,
    ),
    "weights of tokens": (
        seen(PolicyGradient(), a.ImportanceWeight("token", upper=None)),
        expected_reward,
        OFF,
        0.9,
    ),
    "k2 in the loss, of responses": (
        replace(PLAIN, regularizers=(a.KLPenalty(0.3, a.Divergence("k2")),)),
        lambda table: expected_reward(table) - 0.3 * kl_of_responses(table),
        {},
        0.9,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BIASED))
def test_known_biases_are_within_bounds_and_still_ascend(name: str):
    algorithm, objective, how, most = BIASED[name]
    found, target = expected_ascent(algorithm, **({"k": K} | how)), gradient(objective)
    away = np.linalg.norm(found - target) / np.linalg.norm(target)
    assert 0.01 < away < most, away
    assert (found * target).sum() > 0


def test_the_bias_of_opo_is_of_the_order_of_one_over_k():
    true = gradient(expected_reward)

    def away(k: int) -> float:
        return float(np.linalg.norm(expected_ascent(rewarded(a.OPO()), k=k) * k / (k - 1) - true))

    few, more = away(2), away(4)
    assert 0.4 < more / few < 0.6


def test_the_bias_of_token_weights_is_of_first_order_in_the_sampler_distance():
    """First order: half the distance, half the error. Without weights the error is larger."""
    true = gradient(expected_reward)

    def away(share: float, *corrections: Any) -> float:
        sampler = POLICY + share * (SAMPLER - POLICY)
        return float(np.linalg.norm(expected_ascent(seen(PolicyGradient(), *corrections), k=1, sampler=sampler) - true))

    tokens = a.ImportanceWeight("token", upper=None)
    assert 0.4 < away(0.05, tokens) / away(0.1, tokens) < 0.6
    assert away(0.1, tokens) < away(0.1)
    assert away(0.1, a.ImportanceWeight("sequence", upper=None)) < 1e-6
