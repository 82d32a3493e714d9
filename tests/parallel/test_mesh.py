"""The mesh: sizes are resolved or refused by name, and weights and rows are placed as the table says."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rl_llm.model import ModelConfig, weight_table
from rl_llm.parallel.mesh import (
    AXES,
    MeshShape,
    data_parallel_size,
    make_mesh,
    make_meshes,
    over_batch,
    put_on_batch,
    replicated,
    weight_shardings,
)


@dataclass(frozen=True)
class Weight:
    """A weight of the table."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


@dataclass(frozen=True)
class Chip:
    """A stand-in for a device that does not exist here."""

    id: int
    process_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    platform: str = "cpu"
    device_kind: str = "none"
    core_on_chip: int = 0


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (MeshShape(), (8, 1, 1)),
        (MeshShape(fsdp=2), (4, 2, 1)),
        (MeshShape(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
        (MeshShape(data=1, fsdp=4, tensor=-1), (1, 4, 2)),
        (MeshShape(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_minus_one_takes_the_remaining_devices(shape: MeshShape, sizes: tuple[int, int, int]):
    mesh = make_mesh(shape)
    assert mesh.axis_names == AXES
    assert tuple(mesh.shape[axis] for axis in AXES) == sizes
    assert set(mesh.devices.flat) == set(jax.devices())
    assert data_parallel_size(mesh) == sizes[0] * sizes[1]


def test_a_mesh_can_take_some_of_the_devices():
    assert list(make_mesh(devices=jax.devices()[2:4]).devices.flat) == jax.devices()[2:4]


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (1, -2, 1)])
def test_invalid_sizes_are_refused(sizes: tuple[int, int, int]):
    with pytest.raises(ValueError, match=rf"MeshShape sizes .* got \({sizes[0]}, {sizes[1]}, {sizes[2]}\)"):
        MeshShape(*sizes)


@pytest.mark.parametrize(
    ("shape", "product"),
    [
        (MeshShape(2, 2, 1), "2 x 2 x 1"),
        (MeshShape(-1, 3, 1), "2 x 3 x 1"),
        (MeshShape(1, 16, -1), "1 x 16 x 1"),
    ],
)
def test_sizes_that_do_not_match_the_devices_are_refused(shape: MeshShape, product: str):
    with pytest.raises(ValueError, match=f"{product} .*there are 8"):
        make_mesh(shape)


@pytest.mark.parametrize(
    ("learner", "sampler", "learning"),
    [(MeshShape(2, 2), MeshShape(1, tensor=4), 4), (MeshShape(), MeshShape(2), 6), (MeshShape(5), MeshShape(), 5)],
)
def test_the_first_devices_learn_and_the_others_sample(learner: MeshShape, sampler: MeshShape, learning: int):
    meshes = make_meshes(learner, sampler)
    assert meshes.apart
    assert list(meshes.learner.devices.flat) == jax.devices()[:learning]
    assert list(meshes.sampler.devices.flat) == jax.devices()[learning:]


def test_without_its_own_mesh_the_sampler_uses_the_learners():
    meshes = make_meshes(MeshShape(2, 2, 2), None)
    assert meshes.sampler is meshes.learner
    assert not meshes.apart


@pytest.mark.parametrize(
    ("learner", "sampler", "message"),
    [
        (MeshShape(), MeshShape(), "both have an open size"),
        (MeshShape(8), MeshShape(1), r"need 8 \+ 1 devices.*there are 8"),
        (MeshShape(), MeshShape(8), r"need 0 \+ 8 devices"),
        (MeshShape(-1, 3), MeshShape(4), "1 x 3 x 1 needs that many devices; there are 4"),
    ],
)
def test_meshes_that_do_not_match_the_devices_are_refused(learner: MeshShape, sampler: MeshShape, message: str):
    with pytest.raises(ValueError, match=message):
        make_meshes(learner, sampler)


def test_every_process_has_devices_of_both_meshes():
    """Devices of other processes are stand-ins here, and are refused before a mesh is made."""
    devices: list = [Chip(index, index // 4) for index in range(8)]
    with pytest.raises(
        ValueError, match=r"take 3 \+ 5 devices, which do not divide over the 2 processes; .* multiples of 2"
    ):
        make_meshes(MeshShape(3), MeshShape(5), devices)


@pytest.mark.parametrize(
    ("platform", "sizes", "learning"),
    [("tpu", (2, 2), {1, 2}), ("tpu", (3, 1), {0, 1, 2}), ("tpu", (1, 3), {0}), ("gpu", (2, 2), {0, 1})],
)
def test_the_larger_part_is_in_the_middle_of_a_tpu_slice(platform: str, sizes: tuple[int, int], learning: set[int]):
    """GPUs have coordinates as well, but these do not say where they are."""
    devices: list = [Chip(index, 0, (index, 0, 0), platform) for index in range(4)]
    meshes = make_meshes(*map(MeshShape, sizes), devices)
    assert {chip.id for chip in meshes.learner.devices.flat} == learning


def test_logical_axes_of_weights_become_mesh_axes():
    table = {
        "a/b": Weight((8, 4, 2), (None, "width", "heads")),
        "a/norm": Weight((3,), (None,)),
        "embedding": Weight((6, 4), ("vocabulary", "width")),
        "up": Weight((2, 4, 10), (None, "width", "feed_forward")),
    }
    shardings = weight_shardings(make_mesh(MeshShape(2, 2, 2)), table)
    assert shardings["a"]["b"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert shardings["a"]["norm"].is_fully_replicated
    assert shardings["embedding"].shard_shape((6, 4)) == (3, 2)
    assert shardings["up"].shard_shape((2, 4, 10)) == (2, 2, 5)


def test_every_matrix_of_the_model_is_split_over_both_weight_axes():
    config = ModelConfig(
        vocabulary=6, width=8, layers=1, heads=4, kv_heads=2, head_width=4, feed_forward=10, tied_embeddings=False
    )
    mesh = make_mesh(MeshShape(2, 2, 2))
    shardings = weight_shardings(mesh, weight_table(config))
    for path, weight in weight_table(config).items():
        sharding = shardings
        for name in path.split("/"):
            sharding = sharding[name]
        part = np.prod(sharding.shard_shape(weight.shape))
        assert part == np.prod(weight.shape) / (1 if path.endswith("norm") else 4), path


def test_an_indivisible_weight_is_refused_by_name_with_a_remedy():
    table = {"layers/key": Weight((2, 4, 3), (None, "width", "kv_heads"))}
    with pytest.raises(ValueError, match=r"layers/key \(2, 4, 3\): 3 does not divide over the 2 .*'tensor'"):
        weight_shardings(make_mesh(MeshShape(2, 2, 2)), table)


def test_rows_are_spread_over_both_data_parallel_axes():
    mesh = make_mesh(MeshShape(2, 2, 2))
    host = {"tokens": np.arange(24).reshape(8, 3), "reward": np.arange(8.0, dtype=np.float32)}
    placed = put_on_batch(mesh, host)
    for name, array in placed.items():
        assert array.sharding == over_batch(mesh)
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {2}
        np.testing.assert_array_equal(array, host[name])


def test_replicated_values_are_whole_on_every_device():
    array = jax.device_put(np.arange(3), replicated(make_mesh()))
    assert [shard.data.shape for shard in array.addressable_shards] == [(3,)] * 8
