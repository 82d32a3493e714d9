"""Placement and types of a train state: moments like their weights, a reference in host memory."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import Draw, StateSpec, abstract_state, init_state
from rl_llm.model import Initialization, ModelConfig, weight_table
from rl_llm.parallel.mesh import HOST, MeshShape, make_mesh, on_devices, weight_shardings
from rl_llm.runs.checkpoint import Checkpoints, state_sha256
from rl_llm.types import TrainState

CONFIG = ModelConfig(vocabulary=16, width=16, layers=1, heads=4, kv_heads=2, head_width=4, feed_forward=24)
OPTIMIZER = AdamW(1e-2, beta2=0.95, moments_dtype="bfloat16").build(10)
CARRIED = StateSpec(reference=True, offload=True)
MESH = make_mesh(MeshShape(2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def state() -> TrainState:
    return init_state(CONFIG, OPTIMIZER, MESH, Draw(jax.random.key(0)), CARRIED)


def test_parameters_follow_the_initialization(state: TrainState):
    double = init_state(CONFIG, OPTIMIZER, MESH, Draw(jax.random.key(0), Initialization(scale=2.0)), CARRIED)
    np.testing.assert_array_equal(double.params["embedding"], 2.0 * state.params["embedding"])


def test_bfloat16_moments_are_sharded_like_their_weights(state: TrainState):
    shardings = weight_shardings(MESH, weight_table(CONFIG))
    for name in ("mu", "nu"):
        moments = optax.tree_utils.tree_get(state.opt_state, name)
        assert {x.dtype for x in jax.tree.leaves(moments)} == {jnp.dtype(jnp.bfloat16)}
        assert jax.tree.map(lambda x: x.sharding, moments) == shardings


def test_an_offloaded_reference_is_in_host_memory_sharded_like_its_weights(state: TrainState):
    for ours, params in zip(*map(jax.tree.leaves, (state.reference, state.params)), strict=True):
        assert ours.sharding == params.sharding.with_memory_kind(HOST)
    back = on_devices(state.reference)
    jax.tree.map(np.testing.assert_array_equal, back, state.params)
    assert jax.tree.map(lambda x: x.sharding, back) == weight_shardings(MESH, weight_table(CONFIG))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [MeshShape(2, fsdp=2, tensor=2), MeshShape(8)])
def test_both_are_restored_bit_for_bit_on_any_mesh(state: TrainState, shape: MeshShape, tmp_path: Path):
    Checkpoints(tmp_path).save(1, state, {})
    template = abstract_state(CONFIG, OPTIMIZER, make_mesh(shape), CARRIED)
    restored = Checkpoints(tmp_path).restore_newest(lambda _: template)
    assert restored is not None
    assert state_sha256(restored.state) == state_sha256(state)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(restored.state.reference)} == {HOST}
    assert jax.tree.map(lambda x: x.sharding, restored.state) == jax.tree.map(lambda x: x.sharding, template)
