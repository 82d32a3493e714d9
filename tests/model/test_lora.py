"""Adapters: their output is exact, only they are trained, and merging gives the same model."""

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_learner import ONE_DEVICE, PROMPTS, REWARD, TEMPERATURE, K, T, V, random_params

from rl_llm import prng
from rl_llm.algorithms import LITE_PPO
from rl_llm.export import save
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.packing import compile_packed_step, packed_loss
from rl_llm.learner.state import Draw, init_state
from rl_llm.learner.train_step import Learner, compile_train_step, joint_loss, make_batch
from rl_llm.model import (
    Experts,
    Lora,
    ModelConfig,
    add_adapters,
    forward,
    init,
    join_params,
    load,
    merge_adapters,
    split_params,
    weight_table,
)
from rl_llm.parallel.mesh import MeshShape, make_mesh, put_on_batch
from rl_llm.prng import Purpose
from rl_llm.sampler import Sampling, compile_sampler
from rl_llm.types import Batch, Packed, TrainState

CONFIG = ModelConfig(
    vocabulary=V, width=16, layers=1, heads=4, kv_heads=2, head_width=4, feed_forward=24, lora=Lora(rank=2, alpha=4.0)
)
PARAMS = random_params(CONFIG)
PARAMS["layers"] |= {name: 0.1 * (w - 1) / 0.3 for name, w in PARAMS["layers"].items() if name.endswith("_lora_b")}
TRAINED, FROZEN = split_params(CONFIG, PARAMS)
BASE = {**PARAMS, "layers": {name: w for name, w in PARAMS["layers"].items() if "_lora_" not in name}}
TOKENS = np.random.default_rng(1).integers(0, V, (3, 7), np.int32)
OPTIMIZER = AdamW(learning_rate=1e-2).build(10)


@pytest.fixture(scope="module")
def batch() -> Batch:
    sample = compile_sampler(CONFIG, ONE_DEVICE, K, T)
    values = Sampling(temperature=TEMPERATURE).values((3, 5, 11))
    rollout = sample(PARAMS, PROMPTS, prng.key(0, Purpose.ROLLOUT), values)
    batch: Batch = jax.device_get(jax.jit(make_batch, static_argnums=0)(LITE_PPO, replace(rollout, reward=REWARD))[0])
    return batch


def loss(trained: Any, config: ModelConfig, frozen: Any, batch: Batch) -> jax.Array:
    return joint_loss(config, LITE_PPO, None, TEMPERATURE, None, (trained, None), batch, frozen)[0]


def test_untrained_adapters_change_nothing():
    fresh = {name: w * ("_lora_b" not in name) for name, w in TRAINED["layers"].items()}
    found = forward(CONFIG, join_params({"layers": fresh}, FROZEN), TOKENS)
    np.testing.assert_array_equal(found, forward(CONFIG.base, BASE, TOKENS))
    assert np.abs(found - forward(CONFIG, PARAMS, TOKENS)).max() > 0.01


@pytest.mark.slow
def test_initial_adapters_have_rank_r_and_add_nothing():
    state = init_state(CONFIG, OPTIMIZER, ONE_DEVICE, Draw(jax.random.key(0)))
    layers = state.params["layers"]
    assert {name.rpartition("_lora_")[0] for name in layers} == set(CONFIG.lora.targets)  # type: ignore[union-attr]
    assert layers["query_lora_a"].shape == (1, 16, 2)
    assert layers["query_lora_b"].shape == (1, 2, 4, 4)
    assert layers["output_lora_a"].shape == (1, 4, 4, 2)
    assert all((np.abs(w).max() == 0) == name.endswith("_b") for name, w in layers.items())


def test_adapters_start_alike_beside_a_loaded_and_a_random_model():
    key = jax.random.key(3)
    found = add_adapters(CONFIG, init(CONFIG.base, key), key)
    jax.tree.map(np.testing.assert_array_equal, found, init(CONFIG, key))


def test_merging_gives_the_same_model():
    config, params = merge_adapters(CONFIG, PARAMS)
    assert config == CONFIG.base
    np.testing.assert_allclose(forward(config, params, TOKENS), forward(CONFIG, PARAMS, TOKENS), atol=1e-5)


@pytest.mark.slow
def test_an_exported_folder_is_the_adapted_model(tmp_path: Path):
    on_device = jax.tree.map(jnp.asarray, PARAMS)
    save(CONFIG, on_device, tmp_path / "model", dtype="float32")
    config, params = load(tmp_path / "model")
    assert config.lora is None
    np.testing.assert_allclose(forward(config, params, TOKENS), forward(CONFIG, PARAMS, TOKENS), atol=1e-5)


@pytest.mark.slow
def test_the_gradient_equals_that_of_the_merged_model(batch: Batch):
    def merged_loss(trained: Any) -> jax.Array:
        config, params = merge_adapters(CONFIG, join_params(trained, FROZEN))
        return loss(params, config, None, batch)

    found = jax.jit(jax.grad(loss), static_argnums=1)(TRAINED, CONFIG, FROZEN, batch)
    assert jax.tree.structure(found) == jax.tree.structure(TRAINED)
    expected = jax.jit(jax.grad(merged_loss))(TRAINED)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max()), found, expected)


def updated(mesh: Any, batch: Batch, updates: int) -> tuple[TrainState, TrainState, list[dict]]:
    """The state before and after some updates on one batch, and their metrics."""
    first = init_state(CONFIG, OPTIMIZER, mesh, PARAMS)
    step = compile_train_step(Learner(CONFIG, LITE_PPO, OPTIMIZER), mesh)
    before, state, lines = jax.device_get(first), first, []
    for _ in range(updates):
        state, metrics = step(state, put_on_batch(mesh, batch), jnp.int32(0), jnp.float32(TEMPERATURE), None)
        lines.append({name: float(metric.result()) for name, metric in metrics.items()})
    return before, state, lines


@pytest.fixture(scope="module")
def on_one(batch: Batch) -> tuple[TrainState, TrainState, list[dict]]:
    return updated(ONE_DEVICE, batch, 4)


def test_only_adapters_learn_and_have_moments(on_one: tuple[TrainState, TrainState, list[dict]]):
    before, after, lines = on_one
    jax.tree.map(np.testing.assert_array_equal, before.frozen, after.frozen)
    assert all(
        np.abs(x - y).max() > 0 for x, y in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True)
    )
    for name in ("mu", "nu"):
        moments = optax.tree_utils.tree_get(after.opt_state, name)
        assert jax.tree.structure(moments) == jax.tree.structure(TRAINED)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["agreement/max"] < 1e-5


def test_frozen_parameters_are_not_donated(batch: Batch):
    state = init_state(CONFIG, OPTIMIZER, ONE_DEVICE, PARAMS)
    step = compile_train_step(Learner(CONFIG, LITE_PPO, OPTIMIZER), ONE_DEVICE)
    after, _ = step(state, put_on_batch(ONE_DEVICE, batch), jnp.int32(0), jnp.float32(TEMPERATURE), None)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    same = zip(*map(jax.tree.leaves, (state.frozen, after.frozen)), strict=True)
    assert all(old is new and not old.is_deleted() for old, new in same)


@pytest.mark.slow
def test_only_adapters_learn_from_packed_conversations():
    segments = np.array([[1, 1, 1, 2, 2, 2, 0]] * 3, np.int32)
    rows = Packed(tokens=TOKENS, segments=segments, weight=(segments > 0) / np.float32(18))
    state = init_state(CONFIG, OPTIMIZER, ONE_DEVICE, PARAMS)
    step = compile_packed_step(CONFIG, OPTIMIZER, ONE_DEVICE)
    for _ in range(3):
        state, metrics = step(state, put_on_batch(ONE_DEVICE, rows))
    before = packed_loss(CONFIG, PARAMS, rows)[0]
    assert float(metrics["loss"].result()) < before
    jax.tree.map(np.testing.assert_array_equal, state.frozen, FROZEN)


@pytest.mark.slow
def test_adapters_learn_the_same_on_eight_devices(batch: Batch, on_one: tuple[TrainState, TrainState, list[dict]]):
    _, expected, _ = on_one
    _, found, _ = updated(make_mesh(MeshShape(2, fsdp=2, tensor=2)), batch, 4)
    specs = {name: tuple(w.sharding.spec) for name, w in found.params["layers"].items()}
    assert specs["query_lora_a"] == (None, "fsdp", None)
    assert specs["query_lora_b"] == (None, None, "tensor", None)
    assert specs["down_lora_a"] == (None, "tensor", None)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found.params, expected.params)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rank": 0}, "Lora.rank=0 is out of range; expected >= 1"),
        ({"alpha": float("inf")}, "Lora.alpha=inf is out of range; expected > 0"),
        (
            {"targets": ("query", "router")},
            "Lora.targets is .* with unknown router; expected one or more of query, key",
        ),
        ({"targets": ()}, "each once"),
        ({"targets": ("query", "query")}, "each once"),
    ],
)
def test_meaningless_adapters_are_refused(values: dict, words: str):
    with pytest.raises(ValueError, match=words):
        Lora(**{"rank": 2, "alpha": 1.0, **values})


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        *(("query", "16 x 12"), ("key", "16 x 6"), ("value", "16 x 6"), ("output", "12 x 16")),
        *(("gate", "16 x 10"), ("up", "16 x 10"), ("down", "10 x 16")),
    ],
)
def test_a_rank_above_a_target_is_refused(target: str, shape: str):
    narrow = replace(CONFIG, heads=2, kv_heads=1, head_width=6, feed_forward=10)
    most = min(int(side) for side in shape.split(" x "))
    adapted = replace(narrow, lora=Lora(most, 1.0, (target,)))
    table = weight_table(adapted)
    first, second = (table[f"layers/{target}_lora_{half}"].shape for half in "ab")
    assert f"{prod(first[1:-1])} x {prod(second[2:])}" == shape
    with pytest.raises(ValueError, match=rf"lora.rank={most + 1} .* {target}, {shape}: choose at most"):
        replace(adapted, lora=Lora(most + 1, 1.0, (target,)))


def test_adapters_of_experts_are_refused():
    with pytest.raises(
        ValueError, match=r"targets has gate, up, down, but experts have no adapters: choose targets=\('query'"
    ):
        replace(CONFIG, experts=Experts(4, 2))
    replace(CONFIG, experts=Experts(4, 2), lora=Lora(2, 1.0, ("query", "output")))
