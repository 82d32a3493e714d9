"""Advantages of whole responses, whitening and running moments: laws, and plain NumPy."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import assume, given
from peers.case import batch

from rl_llm.algorithms import RunShape
from rl_llm.algorithms.advantage import GPG, OPO, RLOO, BestOfGroup, MaxRL, Normalize, PassAtK, ReMax
from rl_llm.algorithms.moments import no_moments, update
from rl_llm.algorithms.returns import RewardToGo
from rl_llm.algorithms.whitening import GDPO, ClipAdvantage, Whiten
from rl_llm.types import Batch

N, K, T = 3, 8, 4
LENGTHS = np.random.default_rng(0).integers(1, T + 1, N * K)

# Components hash by value, so equal ones share a program.
apply = jax.jit(lambda component, batch: component(batch), static_argnums=0)
including = jax.jit(update)


def of(reward: Any, lengths: np.ndarray = LENGTHS, width: int = T, **fields: Any) -> Batch:
    """Batch with rewards [N, K] and responses of these lengths."""
    reward = np.asarray(reward, np.float32)
    mask = (np.arange(width) < lengths[: reward.size, None]).astype(np.float32)
    moments = fields.pop("moments", None)
    return replace(batch(mask, reward.shape[1], reward=reward.reshape(-1), **fields), moments=moments)


def advantages(component: Any, reward: Any, **fields: Any) -> np.ndarray:
    """Advantage [N, K] of each response, after checking that it is equal at its tokens and 0 elsewhere."""
    source = of(reward, **fields)
    table = np.asarray(apply(component, source))
    np.testing.assert_array_equal(table, table[:, :1] * np.asarray(source.mask))
    return table[:, 0].reshape(np.shape(reward))


def tables(values: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return st.lists(values, min_size=N * K, max_size=N * K).map(lambda x: np.array(x, np.float32).reshape(N, K))


binary_rewards = tables(st.sampled_from([0.0, 1.0]))
rewards_of_any_kind = tables(st.sampled_from([0.0, 1.0]) | st.floats(-2, 2, width=32))

CENTRED = [
    Normalize(),
    Normalize(std="batch"),
    Normalize(std="batch", std_of="centred"),
    Normalize(std="none"),
    RLOO(),
    OPO(),
    GPG(),
    MaxRL(),
    BestOfGroup(),
    PassAtK(3),
]
IN_THE_BATCH = [Normalize(mean="batch", std="batch"), Whiten(Normalize(std="none")), Whiten(RLOO(), over="responses")]
ids = {"ids": str}


@pytest.mark.parametrize(
    ("ddof", "right", "plus", "minus"),
    [
        (1, 1, 2.475, -0.354),
        (1, 2, 1.620, -0.540),
        (1, 3, 1.208, -0.725),
        (1, 4, 0.935, -0.935),
        (1, 7, 0.354, -2.475),
        (0, 1, 2.646, -0.378),
        (0, 2, 1.732, -0.577),
        (0, 4, 1.0, -1.0),
    ],
)
def test_group_normalisation_of_eight_binary_rewards(ddof, right: int, plus: float, minus: float):
    reward = np.zeros((1, 8))
    reward[0, :right] = 1.0
    expected = np.where(reward > 0, plus, minus)
    np.testing.assert_allclose(advantages(Normalize(ddof=ddof), reward), expected, atol=6e-4)


@pytest.mark.parametrize("mean", ["none", "group", "batch"])
@pytest.mark.parametrize("std", ["none", "group", "batch"])
def test_every_mean_and_std_against_numpy(mean, std):
    reward = np.random.default_rng(1).normal(size=(N, K)).astype(np.float32)
    axis = {"group": 1, "batch": None}
    expected = reward - (0 if mean == "none" else reward.mean(axis[mean], keepdims=True))
    component = Normalize(mean=mean, std="none")
    if std != "none":
        component = Normalize(mean=mean, std=std, ddof=0, eps=0.1)
        expected = expected / (reward.std(axis[std], keepdims=True) + 0.1)
    np.testing.assert_allclose(advantages(component, reward), expected, rtol=2e-5, atol=1e-6)


def test_lite_ppo_centres_in_the_group_and_divides_by_the_std_of_the_raw_rewards():
    reward = np.repeat([[0.0], [1.0], [1.0]], K, axis=1)
    reward[2, :4] = 0.0
    centred = reward - reward.mean(axis=1, keepdims=True)
    found = advantages(Normalize(mean="group", std="batch"), reward)
    np.testing.assert_allclose(found, centred / (reward.std(ddof=1) + 1e-6), rtol=1e-5)
    other_reading = centred / centred.std(ddof=1)
    assert np.abs(found - other_reading)[2].min() > 0.5
    other = advantages(Normalize(mean="group", std="batch", std_of="centred"), reward)
    np.testing.assert_allclose(other, other_reading, rtol=1e-5)


def test_without_a_std_the_scale_of_the_rewards_does_matter():
    reward = np.arange(8.0).reshape(1, 8) % 2
    component = Normalize(mean="group", std="none")
    np.testing.assert_allclose(advantages(component, 2 * reward - 1), 2 * advantages(component, reward))


def test_eps_bounds_the_advantage_of_a_nearly_constant_group():
    reward = np.zeros((1, 8))
    reward[0, 0] = 1e-4
    small, large = (np.abs(advantages(Normalize(eps=eps), reward)).max() for eps in (1e-6, 1e-2))
    assert small > 2
    assert large < 0.01


@pytest.mark.parametrize("component", CENTRED + IN_THE_BATCH + [ClipAdvantage(RLOO(), 0.5)], **ids)
def test_the_order_of_groups_and_of_responses_in_them_does_not_matter(component):
    rng = np.random.default_rng(1)
    reward = rng.normal(size=(N, K)).round(1)
    groups, rows = rng.permutation(N), np.argsort(rng.random((N, K)), axis=1)

    def shuffled(x: np.ndarray) -> np.ndarray:
        return np.take_along_axis(x.reshape(N, K)[groups], rows, axis=1)

    expected = shuffled(advantages(component, reward))
    found = advantages(component, shuffled(reward), lengths=shuffled(LENGTHS).reshape(-1))
    np.testing.assert_allclose(found, expected, atol=3e-6)


@pytest.mark.parametrize("component", CENTRED + IN_THE_BATCH, **ids)
def test_padding_does_not_matter(component):
    reward = np.random.default_rng(2).normal(size=(N, K))
    expected = advantages(component, reward)
    np.testing.assert_allclose(advantages(component, reward, width=T + 3), expected, atol=1e-6)


@given(rewards_of_any_kind, st.floats(-2, 2, width=32))
@pytest.mark.parametrize("component", CENTRED, **ids)
def test_a_group_of_equal_rewards_has_exactly_zero_advantage(component, reward: np.ndarray, value: float):
    """Exactly 0: a rounding error of the mean, divided by a small eps, would be noise with a sign."""
    reward[1] = value
    np.testing.assert_array_equal(advantages(component, reward)[1], 0.0)


@given(st.floats(-2, 2, width=32))
@pytest.mark.parametrize("component", IN_THE_BATCH, **ids)
def test_a_batch_of_equal_rewards_has_exactly_zero_advantage(component, value: float):
    np.testing.assert_array_equal(advantages(component, np.full((N, K), value)), 0.0)


@given(rewards_of_any_kind)
@pytest.mark.parametrize("component", [Normalize(), Normalize(std="batch"), PassAtK(3)], **ids)
def test_rewards_of_minus_one_and_one_equal_zero_and_one(component, reward: np.ndarray):
    """The null arm: an affine change of rewards, invisible to a normalized advantage."""
    assume(reward.std(axis=1).min() > 1e-2)
    if isinstance(component, PassAtK):
        reward = (reward > 0.5).astype(np.float32)
    np.testing.assert_allclose(advantages(component, reward), advantages(component, 2 * reward - 1), atol=2e-3)


@given(binary_rewards)
@pytest.mark.parametrize("component", IN_THE_BATCH, **ids)
def test_rewards_of_minus_one_and_one_equal_zero_and_one_for_batch_levels(component, reward: np.ndarray):
    assume((reward.min(axis=1) < reward.max(axis=1)).any())
    np.testing.assert_allclose(advantages(component, reward), advantages(component, 2 * reward - 1), atol=1e-4)


def test_a_small_spread_on_a_large_mean_survives_float32():
    steps = np.arange(N * K).reshape(N, K) % K
    expected = (steps - steps.mean(1, keepdims=True)) / steps.std(1, ddof=1, keepdims=True)
    found = advantages(Normalize(eps=1e-9), 1000 + steps / 1024)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@given(rewards_of_any_kind)
def test_rloo_is_k_over_k_minus_1_times_the_distance_to_the_mean(reward: np.ndarray):
    others = (reward.sum(1, keepdims=True, dtype=np.float64) - reward) / (K - 1)
    found = advantages(RLOO(), reward)
    np.testing.assert_allclose(found, reward - others, atol=3e-6)
    np.testing.assert_allclose(found, K / (K - 1) * advantages(Normalize(std="none"), reward), atol=1e-6)


def test_opo_weights_the_baseline_by_length():
    reward, lengths = np.array([[1.0, 0.0]]), np.array([3, 1])
    np.testing.assert_allclose(advantages(OPO(), reward, lengths=lengths), [[0.25, -0.75]])
    same = np.full(N * K, 2)
    reward = np.random.default_rng(3).normal(size=(N, K))
    expected = advantages(Normalize(std="none"), reward)
    np.testing.assert_allclose(advantages(OPO(), reward, lengths=same), expected, atol=1e-6)


def test_remax_subtracts_the_greedy_reward():
    greedy = np.array([0.0, 0.0, 1.0, 1.0])
    found = advantages(ReMax(), [[1.0, 0.0], [1.0, 0.0]], greedy_reward=greedy)
    np.testing.assert_array_equal(found, [[1.0, 0.0], [0.0, -1.0]])
    with pytest.raises(ValueError, match=r"ReMax needs batch\.greedy_reward"):
        ReMax()(of([[1.0, 0.0]]))


def test_gpg_scales_up_for_groups_of_equal_rewards():
    reward = [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    expected = 3 * advantages(Normalize(std="none"), reward)
    np.testing.assert_allclose(advantages(GPG(), reward), expected)
    np.testing.assert_array_equal(advantages(GPG(), reward[::2]), 0.0)


def test_maxrl_divides_by_the_rate_of_right_answers():
    reward = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    expected = [[3, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0, 0, 0, 0]]
    np.testing.assert_allclose(advantages(MaxRL(), reward), expected, rtol=1e-6)


@given(rewards_of_any_kind)
def test_best_of_group_credits_the_lead_of_the_best_response(reward: np.ndarray):
    without_me = [[np.delete(group, i).max() for i in range(K)] for group in reward]
    lead = reward.max(axis=1, keepdims=True) - without_me
    np.testing.assert_allclose(advantages(BestOfGroup(std="none"), reward), lead, atol=1e-6)
    eps = 0.1
    expected = lead / (reward.std(axis=1, ddof=1, keepdims=True) + eps)
    np.testing.assert_allclose(advantages(BestOfGroup(eps=eps), reward), expected, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("right", range(K + 1))
def test_pass_at_k_compares_the_sets_with_a_response_to_all_sets(k: int, right: int):
    reward = (np.arange(K) < right).astype(float)
    sets = list(combinations(range(K), k))
    best = np.array([reward[list(members)].max() for members in sets])
    mine = np.array([np.mean([r for r, members in zip(best, sets, strict=True) if i in members]) for i in range(K)])
    std = best.std()
    expected = (mine - best.mean()) / std if std > 0 else np.zeros(K)
    found = advantages(PassAtK(k), reward[None])[0]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    if k == 1:
        np.testing.assert_allclose(found, advantages(Normalize(ddof=0), reward[None])[0], atol=1e-5)


def test_several_rewards_do_not_hide_each_other():
    rng = np.random.default_rng(4)
    rewards = rng.normal(size=(N, K, 2))
    each = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    total = each @ [1.0, 0.5]
    expected = (total - total.mean()) / (total.std(ddof=1) + 1e-4)
    component = GDPO(weights=(1.0, 0.5))
    for scale in (1.0, 100.0):
        scaled = (rewards * [1.0, scale]).reshape(N * K, 2)
        found = advantages(component, np.zeros((N, K)), rewards=scaled)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"GDPO.weights=\(1.0, 0.5\) for 3 rewards"):
        component.check(RunShape(8, 8, 1, components=3))


@pytest.mark.parametrize("component", [c for c in CENTRED + IN_THE_BATCH if not isinstance(c, PassAtK)], **ids)
def test_an_uncounted_reward_acts_as_if_never_sampled(component):
    rng = np.random.default_rng(5)
    reward = rng.random((N, K))
    counted = np.ones((N, K), bool)
    counted[:, 1::2] = False
    lengths = LENGTHS.reshape(N, K)
    few = advantages(component, reward[counted].reshape(N, -1), lengths=lengths[counted])
    reward[~counted] += 5
    found = advantages(component, reward, counted=counted.reshape(-1))
    np.testing.assert_allclose(found[counted].reshape(N, -1), few, atol=2e-6)


@pytest.mark.parametrize("component", CENTRED + IN_THE_BATCH, **ids)
@pytest.mark.parametrize("left", [0, 1])
def test_advantages_of_a_group_without_comparisons_are_finite(component, left: int):
    counted = np.arange(N * K) < left
    reward = np.random.default_rng(6).normal(size=(N, K))
    found = advantages(component, reward, counted=counted)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found.reshape(-1)[counted], 0.0)


@given(st.lists(tables(st.floats(-100, 100, width=32)), min_size=1, max_size=3), st.booleans())
def test_running_moments_are_those_of_all_rewards_together(batches: list[np.ndarray], every: bool):
    counted = np.arange(N * K) % 3 > 0 if not every else np.ones(N * K, bool)
    moments = no_moments()
    for rewards in batches:
        moments = including(moments, rewards.reshape(-1), counted)
    together = np.concatenate([rewards.reshape(-1)[counted] for rewards in batches]).astype(np.float64)
    assert moments.count == together.size
    np.testing.assert_allclose(moments.mean, together.mean(), atol=2e-4)
    for ddof in (0, 1):
        np.testing.assert_allclose(moments.std(ddof), together.std(ddof=ddof), rtol=1e-4, atol=1e-5)


def test_running_levels_read_the_moments():
    rng = np.random.default_rng(7)
    before, reward = rng.normal(3, 2, size=(2, N, K))
    moments = including(including(no_moments(), before.reshape(-1)), reward.reshape(-1))
    both = np.stack([before, reward])
    centred = reward - reward.mean(1, keepdims=True)
    for component, expected in (
        (Normalize(mean="running", std="running"), (reward - both.mean()) / both.std(ddof=1)),
        (Normalize(mean="group", std="running", ddof=0), centred / both.std()),
        (Normalize(mean="running", std="none"), reward - both.mean()),
    ):
        np.testing.assert_allclose(advantages(component, reward, moments=moments), expected, atol=1e-5)
        assert component.needs == ("moments",)
    with pytest.raises(ValueError, match=r"Normalize needs batch\.moments"):
        Normalize(std="running")(of(reward))


@given(rewards_of_any_kind)
def test_moments_stay_without_new_rewards(reward: np.ndarray):
    moments = including(no_moments(), reward.reshape(-1))
    after = including(moments, reward.reshape(-1) + 9, np.zeros(N * K, bool))
    np.testing.assert_array_equal(jax.tree.leaves(after), jax.tree.leaves(moments))


@pytest.mark.parametrize(("eps", "eps_on"), [(1e-8, "variance"), (0.3, "variance"), (0.3, "std")])
@pytest.mark.parametrize("over", ["tokens", "responses"])
def test_whitening_against_numpy(over, eps: float, eps_on):
    reward = np.random.default_rng(8).normal(1, 3, size=(N, K)).astype(np.float32)
    values = reward.reshape(-1)
    seen = np.repeat(values, LENGTHS) if over == "tokens" else values
    std = np.sqrt(seen.var(ddof=1) + eps) if eps_on == "variance" else seen.std(ddof=1) + eps
    component = Whiten(Normalize(mean="none", std="none"), over=over, eps=eps, eps_on=eps_on)
    found = advantages(component, reward).reshape(-1)
    np.testing.assert_allclose(found, (values - seen.mean()) / std, atol=2e-6)


def test_whitening_over_responses_counts_each_response_once():
    """If the tokens of a response differ, each has its share of the response."""
    rewards = np.random.default_rng(9).normal(size=(N * K, T)).astype(np.float32)
    source = of(np.zeros((N, K)), token_reward=rewards)
    values, mask = np.asarray(apply(RewardToGo(), source)), np.asarray(source.mask)
    share = mask / mask.sum(1, keepdims=True) / (N * K)
    mean = (share * values).sum()
    std = np.sqrt((share * (values - mean) ** 2).sum() + 1e-8)
    found = apply(Whiten(RewardToGo(), over="responses", ddof=0), source)
    np.testing.assert_allclose(found, (values - mean) / std * mask, atol=2e-6)


def test_clip_advantage_only_bounds_the_advantage():
    reward = np.random.default_rng(10).normal(0, 5, size=(N, K))
    free = advantages(Normalize(std="none"), reward)
    found = advantages(ClipAdvantage(Normalize(std="none"), 2.0), reward)
    np.testing.assert_array_equal(found, np.clip(free, -2, 2))
    assert np.abs(free).max() > 2


GROUP_OF_ONE = RunShape(8, 1, 1)


@pytest.mark.parametrize(
    ("component", "run", "message"),
    [
        *(
            (c, GROUP_OF_ONE, "responses_per_prompt=1")
            for c in [*CENTRED, GDPO((1.0, 1.0)), Whiten(RLOO()), ClipAdvantage(OPO())]
        ),
        (RewardToGo(outcome=RLOO()), GROUP_OF_ONE, "RLOO compares the responses to one prompt"),
        (PassAtK(8), RunShape(8, 8, 1), r"PassAtK.k=8 with responses_per_prompt=8: all sets of a group are the same"),
        (Whiten(ReMax(), over="responses"), RunShape(1, 1, 1), "Whiten.over='responses' with a batch of one"),
        (Whiten(Normalize(std="batch")), RunShape(8, 8, 1), r"Whiten around Normalize\(.*: its std .* cannot act"),
        (Normalize(std="batch", std_of="centred"), RunShape(1, 8, 1), r"std_of='centred' cannot act with prompts_per"),
        (Whiten(Whiten(RLOO()), over="responses"), RunShape(8, 8, 1), r"Whiten around Whiten\(.* cannot act"),
        (Whiten(GPG()), RunShape(8, 8, 1), r"Whiten around GPG\(\): .* cannot act"),
        (Whiten(Normalize("batch", "none")), RunShape(8, 8, 1), r"Whiten around Normalize\(.*: its mean .* cannot act"),
    ],
    ids=str,
)
def test_knobs_that_cannot_act_in_the_run_are_refused(component, run: RunShape, message: str):
    with pytest.raises(ValueError, match=message):
        component.check(run)


@pytest.mark.parametrize(
    "component",
    [ReMax(), Whiten(ReMax()), Normalize(mean="running", std="running"), RewardToGo(), Whiten(RewardToGo())],
    ids=str,
)
def test_one_response_per_prompt_is_accepted_without_comparisons(component):
    component.check(GROUP_OF_ONE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Normalize(std="group", std_of="centred"),
            r"Normalize.std_of='centred' cannot act unless mean='group'",
        ),
        (lambda: Normalize(mean="batch", std="batch", std_of="centred"), r"std_of='centred' cannot act unless"),
        (lambda: BestOfGroup(std="none", ddof=0), r"BestOfGroup.ddof=0 cannot act without a std"),
        (lambda: BestOfGroup(eps=0.0), "BestOfGroup.eps=0.0 is out of range; expected > 0"),
        (lambda: PassAtK(0), "PassAtK.k=0 is out of range; expected >= 1"),
        (lambda: GDPO(weights=(1.0,)), "a single reward needs no GDPO"),
        (lambda: GDPO((1.0, 1.0), eps=-1.0), "GDPO.eps=-1.0 is out of range; expected > 0"),
        (lambda: Whiten(RLOO(), eps=0.0), "Whiten.eps=0.0 is out of range; expected > 0"),
        (lambda: ClipAdvantage(ClipAdvantage(RLOO()), 1.0), r"the wider of two bounds cannot act"),
        (lambda: ClipAdvantage(RLOO(), 0.0), "ClipAdvantage.bound=0.0 is out of range; expected > 0"),
    ],
)
def test_impossible_values_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("name", "value"), [("ddof", 0), ("eps", 1e-4)])
def test_the_fields_of_a_std_need_one(name: str, value: float):
    with pytest.raises(ValueError, match=rf"Normalize.{name}={value!r} cannot act without a std"):
        Normalize(std="none", **{name: value})


@pytest.mark.parametrize("eps", [0.0, -0.1])
def test_an_eps_that_allows_division_by_zero_is_refused(eps: float):
    with pytest.raises(ValueError, match=rf"Normalize.eps={eps} is out of range; expected > 0"):
        Normalize(eps=eps)


def test_wrappers_pass_on_the_needs_of_their_advantage():
    assert Whiten(ClipAdvantage(ReMax())).needs == ("greedy_reward",)
    assert RewardToGo(outcome=GDPO((1.0, 1.0))).needs == ("rewards",)
    assert Whiten(RLOO()).needs == ()
    assert Whiten(ClipAdvantage(RewardToGo())).reads_token_reward
    assert not Whiten(RLOO()).reads_token_reward
