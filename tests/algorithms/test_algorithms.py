"""The components of an algorithm against plain NumPy, and the refusal of knobs that cannot act."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_llm.algorithms import (
    CISPO_SCALE_RL,
    GRPO,
    LITE_PPO,
    REJECTION_SAMPLING,
    Advantage,
    Algorithm,
    Clip,
    Normalize,
    PolicyGradient,
    RewardAtLeast,
    RunShape,
    TokenMean,
)
from rl_llm.learner.train_step import make_batch
from rl_llm.types import Batch, Prompts, Rollout

N, K, T = 3, 8, 4
LENGTHS = np.random.default_rng(0).integers(1, T + 1, N * K)

# Components hash by value, so equal ones share a program.
build = jax.jit(make_batch, static_argnums=0)


def batch_of(algorithm: Algorithm, rollout: Rollout, reward: np.ndarray) -> Batch:
    return build(algorithm, replace(rollout, reward=reward))[0]


def rollout(lengths: np.ndarray = LENGTHS, responses: int = K, old_logp: np.ndarray | None = None) -> Rollout:
    """Rollout of responses with these lengths, `responses` per prompt, T tokens wide."""
    mask = (np.arange(T) < lengths[:, None]).astype(np.float32)
    logp = (np.full(mask.shape, -1.0, np.float32) if old_logp is None else old_logp) * mask
    prompts = len(lengths) // responses
    ids = np.arange(prompts, dtype=np.int32)
    return Rollout(
        prompts=Prompts(tokens=ids[:, None], lengths=np.ones(prompts, np.int32), ids=ids),
        tokens=mask.astype(np.int32),
        mask=mask,
        truncated=lengths == T,
        logp=logp,
        policy_logp=logp,
        model_logp=logp,
    )


def rejection_batch(reward: np.ndarray) -> Batch:
    return batch_of(REJECTION_SAMPLING, rollout(), reward.reshape(-1))


def test_a_dropped_row_has_no_weight_but_counts_in_statistics():
    reward = (np.arange(N * K) % 3 == 0).astype(np.float32).reshape(N, K)
    filtered = batch_of(replace(LITE_PPO, filters=(RewardAtLeast(0.5),)), rollout(), reward.reshape(-1))
    plain = batch_of(LITE_PPO, rollout(), reward.reshape(-1))
    kept = reward.reshape(-1) > 0
    np.testing.assert_array_equal(filtered.kept, kept)
    np.testing.assert_array_equal(np.asarray(filtered.weight).sum(axis=1) > 0, kept)
    assert np.asarray(filtered.weight).sum() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_array_equal(filtered.advantage, plain.advantage)


def test_filters_are_applied_together():
    reward = np.linspace(0, 1, N * K, dtype=np.float32)
    algorithm = replace(LITE_PPO, filters=(RewardAtLeast(0.2), RewardAtLeast(0.6)))
    np.testing.assert_array_equal(batch_of(algorithm, rollout(), reward).kept, reward >= np.float32(0.6))


def test_scale_rl_divides_by_the_std_of_all_advantages_of_the_batch():
    reward = np.repeat([[0.0], [1.0], [0.0]], K, axis=1).astype(np.float32)  # groups that differ, and one that is mixed
    reward[2, :4] = 1.0
    centred = reward - reward.mean(axis=1, keepdims=True)
    found = np.asarray(batch_of(CISPO_SCALE_RL, rollout(), reward.reshape(-1)).advantage)
    expected = (centred / (centred.std(ddof=1) + 1e-6)).reshape(-1, 1) * rollout().mask
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rejection_sampling_is_maximum_likelihood_on_the_accepted_responses():
    reward = np.random.default_rng(2).integers(0, 2, (N, K)).astype(np.float32)
    batch = rejection_batch(reward)
    logp = np.random.default_rng(3).normal(size=(N * K, T)).astype(np.float32)
    slope = jax.jit(jax.grad(lambda logp: jnp.sum(batch.weight * PolicyGradient()(logp, batch)[0])))(logp)
    accepted = rollout().mask * reward.reshape(-1, 1)
    np.testing.assert_allclose(slope, -accepted / accepted.sum(), rtol=1e-5)


def test_no_accepted_response_gives_no_gradient():
    assert not np.asarray(rejection_batch(np.zeros((N, K), np.float32)).weight).any()


@pytest.mark.parametrize(
    ("algorithm", "run", "message"),
    [
        (
            replace(LITE_PPO, objective=Clip(high=0.28)),
            RunShape(8, 8, 1),
            r"Clip.high=0.28 cannot act with one on-policy",
        ),
        (replace(LITE_PPO, objective=Clip(0.3, 0.3)), RunShape(8, 8, 1), r"Clip.low=0.3 cannot act with one on-policy"),
        (GRPO, RunShape(8, 1, 1), r"Normalize.mean='group' with responses_per_prompt=1"),
        (
            replace(GRPO, advantage=Normalize(mean="batch", std="group")),
            RunShape(8, 1, 1),
            r"Normalize.std='group' with responses_per_prompt=1",
        ),
        (replace(GRPO, advantage=Normalize(mean="batch", std="batch")), RunShape(1, 1, 1), "a batch of one response"),
    ],
)
def test_a_knob_that_cannot_act_in_the_run_is_refused(algorithm: Algorithm, run: RunShape, message: str):
    with pytest.raises(ValueError, match=message):
        algorithm.check(run)


@pytest.mark.parametrize(
    ("algorithm", "run"),
    [
        (GRPO, RunShape(8, 8, 1)),
        (LITE_PPO, RunShape(8, 2, 4)),
        (REJECTION_SAMPLING, RunShape(8, 1, 1)),
        (replace(LITE_PPO, objective=Clip(0.2, 0.28)), RunShape(8, 8, 2)),
        (replace(LITE_PPO, advantage=Normalize(mean="batch", std="batch")), RunShape(8, 1, 1)),
    ],
)
def test_recipes_are_accepted_where_their_knobs_act(algorithm: Algorithm, run: RunShape):
    algorithm.check(run)


def test_a_component_must_inherit_its_role():
    def centre(batch: Batch) -> jax.Array:
        return batch.mask

    with pytest.raises(ValueError, match=r"centre.* is not a component of an Algorithm; let its class inherit"):
        replace(LITE_PPO, advantage=centre)


def test_equal_algorithms_share_one_program():
    count = jax.jit(lambda algorithm, x: x + 1, static_argnums=0)
    for algorithm in (LITE_PPO, replace(GRPO, advantage=Normalize("group", "batch"), aggregate=TokenMean())):
        count(algorithm, 1.0)
    assert count._cache_size() == 1


def test_a_field_named_like_a_trait_is_refused():
    with pytest.raises(TypeError, match=r"Mine\.statistics is a trait; override it without an annotation"):
        type("Mine", (Advantage,), {"__annotations__": {"statistics": int}})
