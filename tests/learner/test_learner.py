"""The learner: its log-probabilities are the sampler's, and an update is the same however its rows are arranged."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from rl_llm import prng
from rl_llm.algorithms import LITE_PPO, SequenceMean
from rl_llm.learner.gradient import loss_and_gradient, split
from rl_llm.learner.logprobs import HEAD_POSITIONS, token_logps
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import Draw, Update, init_state
from rl_llm.learner.train_step import Learner, compile_train_step, joint_loss, make_batch
from rl_llm.model import ModelConfig, forward, weight_table
from rl_llm.parallel.mesh import MeshShape, make_mesh, weight_shardings
from rl_llm.prng import Purpose
from rl_llm.sampler import Sampling, compile_sampler
from rl_llm.types import Batch, Prompts, Rollout, TrainState

N, K, P, T, V = 8, 2, 5, 8, 16
TEMPERATURE = 0.7
# One layer, because a gradient is slow to compile; deeper models are read in test_model.py and test_sampler.py.
CONFIG = ModelConfig(vocabulary=V, width=16, layers=1, heads=4, kv_heads=2, head_width=4, feed_forward=24)
DRAW = np.random.default_rng(0)
PROMPTS = Prompts(
    tokens=DRAW.integers(0, V, (N, P), np.int32),
    lengths=np.array([2, 5, 1, 4, 3, 5, 2, 1], np.int32),
    ids=np.arange(N, dtype=np.int32),
)
REWARD = DRAW.normal(size=N * K).astype(np.float32)
ONE_DEVICE = make_mesh(devices=jax.devices()[:1])

# The first moment after one update is then half the gradient, to the bit.
OPTIMIZER = AdamW(learning_rate=1e-2, beta1=0.5, max_gradient_norm=1e6).build(10)


def random_params(config: ModelConfig) -> dict:
    draw = np.random.default_rng(0)
    flat = {
        path: ((weight.std or 0.3) * draw.normal(size=weight.shape) + (weight.std == 0)).astype(np.float32)
        for path, weight in weight_table(config).items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


PARAMS = random_params(CONFIG)


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    """A ragged rollout of the sampler, as NumPy arrays."""
    values = Sampling(temperature=TEMPERATURE).values((3, 5, 11))
    sample = compile_sampler(CONFIG, ONE_DEVICE, K, T)
    rollout = jax.device_get(sample(PARAMS, PROMPTS, prng.key(0, Purpose.ROLLOUT), values))
    assert len(set(rollout.mask.sum(axis=1))) > T // 2
    return rollout  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def batch(rollout: Rollout) -> Batch:
    """A batch sampled by an earlier policy, so that clipping acts."""
    batch = jax.device_get(jax.jit(make_batch, static_argnums=0)(LITE_PPO, replace(rollout, reward=REWARD))[0])
    moved = np.random.default_rng(1).normal(scale=0.2, size=batch.mask.shape) * batch.mask
    return batch.replace(old_logp=batch.old_logp + moved.astype(np.float32))  # type: ignore[no-any-return]


@partial(jax.jit, static_argnums=2)
def compiled_loss(params: dict, batch: Batch, micro_batches: int) -> tuple[jax.Array, dict, dict]:
    loss = partial(joint_loss, CONFIG, LITE_PPO, None, TEMPERATURE, None)
    value, metrics, (gradient, _) = loss_and_gradient(loss, (params, None), batch, micro_batches)
    return value, metrics, gradient


def loss_of(batch: Batch, micro_batches: int = 1) -> tuple[float, dict[str, float], dict]:
    """Loss, metrics and gradient at PARAMS."""
    loss, metrics, gradient = jax.device_get(compiled_loss(PARAMS, batch, micro_batches))
    return float(loss), results(metrics), gradient


def results(metrics: dict) -> dict[str, float]:
    return {name: float(metric.result()) for name, metric in metrics.items()}


def gradient_of(batch: Batch, micro_batches: int = 1) -> dict:
    return loss_of(batch, micro_batches)[2]


def distance(found: Any, expected: Any) -> float:
    """|found - expected| / |expected| over the whole tree."""
    squares = jax.tree.map(lambda x, y: np.square(np.asarray(x, np.float64) - y).sum(), found, expected)
    norm = sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(expected))
    return float(np.sqrt(sum(jax.tree.leaves(squares)) / norm))


def take_rows(batch: Batch, groups: np.ndarray, samples: np.ndarray) -> Batch:
    """The batch with its groups, and each group's responses, in another order."""
    rows = (groups[:, None] * K + samples).reshape(-1)
    return jax.tree.map(lambda x: x[groups if len(x) == N else rows], batch)  # type: ignore[no-any-return]


def test_sampler_and_learner_agree_on_the_log_probabilities(rollout: Rollout):
    read = jax.jit(partial(token_logps, CONFIG))
    logp, _ = read(PARAMS, rollout.prompts, rollout.tokens, TEMPERATURE)
    assert np.abs((logp - rollout.policy_logp) * rollout.mask).max() <= 2e-5


def test_the_agreement_is_reported_over_the_sampled_tokens(rollout: Rollout, batch: Batch):
    """The old log-probabilities of `batch` are off by a known amount, those of the rollout are exact."""
    metrics, gap = loss_of(batch)[1], np.abs(batch.old_logp - rollout.policy_logp)
    assert metrics["agreement/max"] == pytest.approx(gap.max(), abs=2e-5)
    assert metrics["agreement/mean"] == pytest.approx(gap.sum() / batch.mask.sum(), abs=2e-5)
    metrics = loss_of(batch.replace(old_logp=rollout.policy_logp))[1]
    assert metrics["agreement/max"] <= 2e-5
    assert metrics["agreement/kl"] == pytest.approx(0.0, abs=1e-7)


def whole_rows(prompts: Prompts, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each response after its own copy of the prompt, and the position [B, T] that predicts each response token."""
    lengths = np.repeat(prompts.lengths, len(tokens) // len(prompts.lengths))
    rows = np.repeat(
        np.pad(prompts.tokens, ((0, 0), (0, tokens.shape[1]))), len(tokens) // len(prompts.lengths), axis=0
    )
    for row, length, response in zip(rows, lengths, tokens, strict=True):
        row[length : length + len(response)] = response
    return rows, (lengths - 1)[:, None] + np.arange(tokens.shape[1])


@pytest.fixture(scope="module")
def readings() -> dict[str, tuple[jax.Array, jax.Array, dict]]:
    """(logp, entropy, gradient of a function of both) by the learner, and by a plain pass over whole rows; several
    chunks.
    """
    draw, long = np.random.default_rng(2), HEAD_POSITIONS + 8
    prompts = jax.tree.map(lambda x: x[:3], PROMPTS)
    tokens = draw.integers(0, V, (3 * K, long), np.int32)
    weights = draw.normal(size=(2, *tokens.shape)).astype(np.float32)
    rows, positions = whole_rows(prompts, tokens)

    def plain(params: dict, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.take_along_axis(forward(CONFIG, params, rows), positions[:, :, None], axis=1)
        logps = jax.nn.log_softmax(logits / TEMPERATURE)
        return jnp.take_along_axis(logps, tokens[:, :, None], axis=2)[:, :, 0], -jnp.sum(jnp.exp(logps) * logps, axis=2)

    def chunked(params: dict, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return token_logps(CONFIG, params, prompts, tokens, TEMPERATURE)

    def with_gradient(read: Callable, tokens: np.ndarray) -> tuple[jax.Array, jax.Array, dict]:
        def loss(params: dict, tokens: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            found = read(params, tokens)
            return jnp.sum(weights * jnp.stack(found)), found

        (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS, tokens)
        return *jax.device_get(found), jax.device_get(gradient)

    return {"learner": with_gradient(chunked, tokens), "plain": with_gradient(plain, rows)}


def test_log_probabilities_and_entropy_are_those_of_a_plain_forward_pass(readings: dict):
    for found, expected in zip(readings["learner"][:2], readings["plain"][:2], strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_gradient_is_that_of_a_plain_forward_pass(readings: dict):
    assert distance(readings["learner"][2], readings["plain"][2]) < 3e-6


def shapes_in(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Yield the shape of every float array of a program, including loops and nested functions."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating))
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


@pytest.mark.parametrize(("read", "everything"), [("learner", False), ("plain", True)])
def test_the_logits_of_all_tokens_never_exist_at_once(read: str, everything: bool):
    """A plain pass has such an array, which shows that it would be found."""
    config = replace(CONFIG, vocabulary=1000)
    params, prompts = random_params(config), jax.tree.map(lambda x: x[:2], PROMPTS)
    tokens = np.zeros((4, 2 * HEAD_POSITIONS), np.int32)
    rows, _ = whole_rows(prompts, tokens)

    def loss(params: dict) -> jax.Array:
        if read == "plain":
            return jnp.sum(jax.nn.log_softmax(forward(config, params, rows)))
        return sum(jnp.sum(x) for x in token_logps(config, params, prompts, tokens))

    shapes = list(shapes_in(jax.make_jaxpr(jax.value_and_grad(loss))(params).jaxpr))
    assert (4, HEAD_POSITIONS, 1000) in shapes or everything
    assert any(np.prod(shape) >= tokens.size * 1000 for shape in shapes) == everything


def test_the_gradient_does_not_depend_on_the_number_of_micro_batches(batch: Batch):
    assert distance(gradient_of(batch, 8), gradient_of(batch)) < 1e-6


def test_loss_and_metrics_do_not_depend_on_the_number_of_micro_batches(batch: Batch):
    (loss, metrics, _), (expected_loss, expected, _) = loss_of(batch, 8), loss_of(batch)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert min(expected["policy/clip_high"], expected["policy/clip_low"]) > 0


def test_the_gradient_does_not_depend_on_the_order_of_the_groups(batch: Batch):
    shuffled = take_rows(batch, np.random.default_rng(3).permutation(N), np.arange(K)[None])
    assert distance(gradient_of(shuffled), gradient_of(batch)) < 1e-6


def test_the_gradient_does_not_depend_on_the_order_of_a_groups_responses(batch: Batch):
    shuffled = take_rows(batch, np.arange(N), np.arange(K)[None, ::-1])
    assert distance(gradient_of(shuffled), gradient_of(batch)) < 1e-6


def test_the_gradient_does_not_depend_on_the_padding(batch: Batch):
    """Wider prompts and responses, with arbitrary tokens in the padding."""

    def widen(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, 3)), constant_values=0 if x.dtype == np.float32 else 9) if x.ndim == 2 else x

    assert distance(gradient_of(jax.tree.map(widen, batch)), gradient_of(batch)) < 1e-6


def test_tokens_after_the_end_change_nothing(batch: Batch):
    garbage = np.where(batch.mask > 0, batch.tokens, 9)
    assert distance(gradient_of(batch.replace(tokens=garbage)), gradient_of(batch)) == 0.0


def test_a_batch_uses_the_log_probabilities_of_the_sampled_policy(rollout: Rollout):
    """Neither those of the truncated distribution nor those of temperature 1: the ratio is of the policy that is
    trained.
    """
    marked = rollout.replace(logp=rollout.mask * 7, model_logp=rollout.mask * 8)
    algorithm = replace(LITE_PPO, aggregate=SequenceMean())
    batch = jax.jit(make_batch, static_argnums=0)(algorithm, replace(marked, reward=REWARD))[0]
    np.testing.assert_array_equal(batch.old_logp, rollout.policy_logp)
    np.testing.assert_array_equal(batch.reward, REWARD)
    assert np.asarray(batch.kept).all()
    np.testing.assert_allclose(np.asarray(batch.weight).sum(axis=1), 1 / (N * K), rtol=1e-5)


def test_mini_batches_have_whole_groups(batch: Batch):
    marked = batch.replace(reward=np.arange(N * K, dtype=np.float32))
    parts = jax.device_get(jax.jit(split, static_argnums=1)(marked, 4))
    assert parts.tokens.shape == (4, N * K // 4, T)
    for prompts, reward in zip(parts.prompts.ids, parts.reward, strict=True):
        np.testing.assert_array_equal(reward.reshape(-1, K), prompts[:, None] * K + np.arange(K))
    np.testing.assert_array_equal(np.sort(parts.prompts.ids.ravel()), np.arange(N))


def compiled_step(mesh: jax.sharding.Mesh) -> Update:
    """Two updates per rollout, each in two micro-batches."""
    return compile_train_step(Learner(CONFIG, LITE_PPO, OPTIMIZER, updates_per_rollout=2, micro_batches=2), mesh)


@pytest.fixture(scope="module")
def step() -> Update:
    return compiled_step(ONE_DEVICE)


def start(mesh: jax.sharding.Mesh = ONE_DEVICE) -> TrainState:
    return init_state(CONFIG, OPTIMIZER, mesh, PARAMS)


def updated(step: Update, state: TrainState, batch: Batch, update: int = 0) -> tuple[TrainState, dict]:
    return step(state, batch, jnp.int32(update), jnp.float32(TEMPERATURE), None)


def gradient_in(state: TrainState) -> dict:
    """The gradient of the first update, from the optimizer's first moment."""
    return jax.tree.map(lambda x: 2 * np.asarray(x), optax.tree_utils.tree_get(state.opt_state, "mu"))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_mean_of_the_updates_gradients_is_the_whole_batchs(step: Update, batch: Batch):
    parts = [gradient_in(updated(step, start(), batch, update)[0]) for update in range(2)]
    mean = jax.tree.map(lambda x, y: (x + y) / 2, *parts)
    assert distance(mean, gradient_of(batch)) < 1e-6
    assert distance(parts[0], parts[1]) > 0.1


def test_an_update_is_counted_and_reports_its_gradient(step: Update, batch: Batch):
    state, metrics = updated(step, start(), batch)
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(gradient_in(state))))
    assert results(metrics)["update/gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert results(metrics)["update/skipped"] == 0
    assert int(state.step) == 1
    assert int(updated(step, state, batch)[0].step) == 2


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(step: Update, batch: Batch):
    poisoned = batch.replace(old_logp=np.where(np.arange(N * K)[:, None] == 3, np.nan, batch.old_logp))
    for update, skipped in ((0, 1), (1, 0)):  # row 3 belongs to prompt 1, which is dealt to the second update
        state, metrics = updated(step, start(), poisoned, 1 - update)
        assert results(metrics)["update/skipped"] == skipped
        assert int(state.step) == 1
        assert (distance(state.params, PARAMS) == 0) == bool(skipped)


def test_the_state_is_donated_and_the_callers_parameters_survive(step: Update, batch: Batch):
    params = jax.device_put(PARAMS, weight_shardings(ONE_DEVICE, weight_table(CONFIG)))
    state = init_state(CONFIG, OPTIMIZER, ONE_DEVICE, params)
    updated(step, state, batch)
    moments = [optax.tree_utils.tree_get(state.opt_state, name) for name in ("mu", "nu")]
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, moments)))
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))


def test_one_program_serves_every_update_and_temperature(step: Update, batch: Batch):
    updated(step, start(), batch)
    compiled = step.program.program.compilations()
    state, _ = updated(step, start(), batch, 1)
    step(state, batch, jnp.int32(0), jnp.float32(1.3), None)
    assert step.program.program.compilations() == compiled


@pytest.mark.parametrize(
    "shape", [(2, 2, 2), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((8, 1, 1), (1, 4, 2)))]
)
def test_an_update_on_eight_devices_is_that_of_one(step: Update, batch: Batch, shape: tuple[int, int, int]):
    mesh = make_mesh(MeshShape(*shape))
    state, metrics = updated(compiled_step(mesh), start(mesh), batch)
    alone, expected = updated(step, start(), batch)
    assert distance(gradient_in(state), gradient_in(alone)) < 1e-6
    assert results(metrics) == pytest.approx(results(expected), rel=1e-5, abs=2e-6)
    shardings = weight_shardings(mesh, weight_table(CONFIG))
    for moment in (state.params, *(optax.tree_utils.tree_get(state.opt_state, name) for name in ("mu", "nu"))):
        assert jax.tree.map(lambda x: x.sharding, moment) == shardings
    assert state.step.sharding.is_fully_replicated


def test_a_state_starts_from_the_same_noise_on_every_mesh():
    config = ModelConfig(vocabulary=16, width=16, layers=1, heads=4, kv_heads=4, head_width=4, feed_forward=16)
    states = [
        jax.device_get(init_state(config, OPTIMIZER, mesh, Draw(prng.key(0, Purpose.PARAMETERS))))
        for mesh in (ONE_DEVICE, make_mesh(MeshShape(2, 2, 2)))
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *states)
    assert states[0].step == 0
