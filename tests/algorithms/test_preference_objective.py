"""Preference objectives: total and gradient against explicit sums over pairs, at any length."""

from dataclasses import replace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from peers.case import batch

from rl_llm.algorithms import DPO, IPO, KTO, BradleyTerry, Pairwise, RunShape, SequenceSum, Unpaired
from rl_llm.learner.train_step import split
from rl_llm.types import Batch, merge_metrics

N, K, T = 4, 3, 5
LOSSES = [Pairwise(DPO(0.5, 0.1)), Pairwise(IPO(0.3)), Unpaired(KTO(0.5, 1.0, 2.0)), BradleyTerry()]
seeds = st.integers(0, 1000)


def rows(seed: int, dropped: bool = False) -> tuple[jax.Array, Batch]:
    """Random rewards of three values, lengths, and log-probabilities (or values) that are not 0 at padding."""
    draw = np.random.default_rng(seed)
    mask = (np.arange(T) < draw.integers(1, T + 1, (N * K, 1))).astype(np.float32)
    logp, ref_logp = draw.normal(size=(2, N * K, T)).astype(np.float32)
    kept = draw.uniform(size=N * K) > (0.3 if dropped else -1)
    made = batch(
        mask,
        K,
        reward=draw.integers(0, 3, N * K) / 2,
        ref_logp=ref_logp,
        kl_baseline=np.full(N * K, 0.2, np.float32),
        kept=kept,
    )
    return jnp.asarray(logp), replace(made, weight=SequenceSum()(made.mask * made.kept[:, None], made))


def total(loss, logp: jax.Array, made: Batch) -> jax.Array:
    return jnp.sum(made.weight * loss(logp, made)[0])


def loss_of_pair(loss, logp: jax.Array, made: Batch, i: int, j: int) -> jax.Array:
    tokens = [int(n) for n in jnp.sum(made.mask, axis=1)]
    if isinstance(loss, BradleyTerry):
        return -jax.nn.log_sigmoid(logp[i, tokens[i] - 1] - logp[j, tokens[j] - 1])
    return loss.loss(*(jnp.sum(values[x, : tokens[x]]) for values in (logp, made.ref_logp) for x in (i, j)))


def written_out(loss, logp: jax.Array, made: Batch) -> jax.Array:
    """Mean over kept rows of their group's loss, pair by pair; or of their own loss."""
    kept = [b for b in range(N * K) if made.kept[b]]
    if isinstance(loss, Unpaired):
        gains = [
            loss.loss.beta * (jnp.sum((logp[b] - made.ref_logp[b]) * made.mask[b]) - made.kl_baseline[b]) for b in kept
        ]
        signs = [1.0 if made.reward[b] >= loss.threshold else -1.0 for b in kept]
        worth = {1.0: loss.loss.desirable_weight, -1.0: loss.loss.undesirable_weight}
        return sum(worth[s] * jax.nn.sigmoid(-s * gain) for s, gain in zip(signs, gains, strict=True)) / len(kept)
    found = jnp.zeros(())
    for b in kept:
        group = [g for g in kept if g // K == b // K]
        pairs = [(i, j) for i in group for j in group if made.reward[i] > made.reward[j]]
        found += sum(loss_of_pair(loss, logp, made, i, j) for i, j in pairs) / max(len(pairs), 1)
    return found / max(len(kept), 1)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("dropped", [False, True])
def test_total_and_gradient_match_explicit_sums(loss, dropped: bool):
    for seed in range(3):
        logp, made = rows(seed, dropped)
        ours = jax.value_and_grad(lambda x, made=made: total(loss, x, made))(logp)
        theirs = jax.value_and_grad(lambda x, made=made: written_out(loss, x, made))(logp)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@given(seed=seeds)
def test_parts_of_the_batch_add_up(loss, seed: int):
    logp, made = rows(seed, dropped=True)
    whole, parts = loss(logp, made)[1], split(replace(made, value=logp), 2)
    halves = [jax.tree.map(lambda x, m=m: x[m], parts) for m in range(2)]
    np.testing.assert_allclose(
        sum(total(loss, half.value, half) for half in halves), total(loss, logp, made), atol=1e-5
    )
    merged = merge_metrics(*(loss(half.value, half)[1] for half in halves))
    for name, metric in whole.items():
        np.testing.assert_allclose(merged[name].result(), metric.result(), atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@given(seed=seeds)
def test_neither_padding_nor_a_dropped_row_is_read(loss, seed: int):
    logp, made = rows(seed, dropped=True)
    read = (made.mask > 0) & made.kept[:, None]
    other = jnp.where(read, logp, 7.0)
    changed = replace(
        made, ref_logp=jnp.where(read, made.ref_logp, -3.0), reward=jnp.where(made.kept, made.reward, 9.0)
    )
    np.testing.assert_array_equal(total(loss, other, changed), total(loss, logp, made))


@pytest.mark.parametrize("loss", [Pairwise(DPO()), BradleyTerry()], ids=repr)
def test_two_rows_with_the_rewards_1_and_0_are_one_pair_in_either_order(loss):
    """Lengths 1 and 3, scores 2 and -1 (for a critic, at the last token)."""
    mask = np.array([[1, 0, 0], [1, 1, 1]], np.float32)
    logp = jnp.array([[2.0, 0, 0], [5.0, -5.0, -1.0]])
    for order in ([0, 1], [1, 0]):
        made = batch(mask[order], 2, reward=np.array([1.0, 0.0], np.float32)[order], ref_logp=0 * mask)
        made = replace(made, weight=SequenceSum()(made.mask, made))
        scale = 0.1 if isinstance(loss, Pairwise) else 1.0
        assert total(loss, logp[jnp.array(order)], made) == pytest.approx(np.log1p(np.exp(-scale * 3.0)), rel=1e-5)
        metrics = loss(logp[jnp.array(order)], made)[1]
        assert next(value for name, value in metrics.items() if name.endswith("accuracy")).result() == 1
        if isinstance(loss, Pairwise):
            assert metrics["preference/margin"].result() == pytest.approx(0.3)


@pytest.mark.parametrize("loss", [Pairwise(IPO()), BradleyTerry()], ids=repr)
def test_equal_rewards_give_no_loss(loss):
    logp, made = rows(0)
    value, gradient = jax.value_and_grad(lambda x: total(loss, x, replace(made, reward=jnp.ones(N * K))))(logp)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0.0)


def test_unpaired_reports_the_implicit_reward_of_either_kind():
    mask = np.ones((3, 2), np.float32)
    made = batch(mask, 1, reward=np.array([1.0, 0.0, 0.0]), ref_logp=0 * mask, kl_baseline=np.zeros(3, np.float32))
    metrics = Unpaired(KTO(0.5))(jnp.array([[1.0, 1.0], [-1.0, -2.0], [-1.0, 0.0]]), made)[1]
    assert metrics["preference/desirable"].result() == 1.0
    assert metrics["preference/undesirable"].result() == -1.0


@pytest.mark.parametrize("loss", [Pairwise(DPO()), BradleyTerry()], ids=repr)
def test_groups_of_one_are_refused(loss):
    with pytest.raises(ValueError, match=f"{type(loss).__name__} with responses_per_prompt=1"):
        loss.check(RunShape(8, 1, 1))
    loss.check(RunShape(8, 2, 1))


@pytest.mark.parametrize("name", ["ref_logp", "kl_baseline"])
def test_a_missing_field_is_named(name: str):
    logp, made = rows(0)
    with pytest.raises(ValueError, match=f"Unpaired needs batch.{name}"):
        Unpaired(KTO())(logp, replace(made, **{name: None}))
