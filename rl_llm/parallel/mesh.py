"""The device mesh, and the table that maps logical axes of weights and batches to mesh axes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# Logical axis of a weight -> mesh axis. "width" over fsdp is ZeRO-3; the rest over tensor is Megatron's split.
RULES = {
    "vocabulary": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "feed_forward": "tensor",
    "experts": "tensor",  # each device holds whole experts
    "width": "fsdp",
}

# Rows (or prompts: a group's rows stay together) are spread over both data-parallel axes.
BATCH = PartitionSpec(("data", "fsdp"))


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; -1 (at most once) takes the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        if sum(size == -1 for size in sizes) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"MeshShape sizes must be at least 1, one of them may be -1; got {sizes}")

    @property
    def fixed(self) -> int | None:
        """Number of devices, or None if a size is open."""
        sizes = (self.data, self.fsdp, self.tensor)
        return None if -1 in sizes else int(np.prod(sizes))


def make_mesh(shape: MeshShape = MeshShape(), devices: list[jax.Device] | None = None) -> Mesh:
    """Make a mesh of AXES over `devices` (default: all).

    TPU neighbours along an axis lie close together. Raises ValueError unless the sizes multiply to the device count.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [shape.data, shape.fsdp, shape.tensor]
    if -1 in sizes:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = max(1, len(devices) // known)
    if int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"a mesh of data x fsdp x tensor = {' x '.join(map(str, sizes))} needs that many devices; "
            f"there are {len(devices)}"
        )
    try:
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except AssertionError:  # it knows only boxes of chips, and a `sampler_mesh` may leave another shape
        placed = np.asarray(devices).reshape(sizes)
    return Mesh(placed, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


@dataclass(frozen=True)
class Meshes:
    """Meshes of the learner and the sampler: the same one, or one each."""

    learner: Mesh
    sampler: Mesh

    @property
    def apart(self) -> bool:
        return self.sampler is not self.learner


def make_meshes(learner: MeshShape, sampler: MeshShape | None, devices: list[jax.Device] | None = None) -> Meshes:
    """Make both meshes over `devices` (default: all); without a `sampler` shape they share one mesh.

    Otherwise the first devices of every process learn and its other devices sample; on TPUs the larger part lies in the
    middle of the slice. One of the shapes may leave a size open. Raises ValueError unless the two use all devices, and
    every process has equally many of each (`move` needs that).
    """
    if sampler is None:
        return Meshes(mesh := make_mesh(learner, devices), mesh)
    devices = jax.devices() if devices is None else devices
    learning, sampling = learner.fixed, sampler.fixed
    if learning is None and sampling is None:
        raise ValueError(f"mesh={learner} and sampler_mesh={sampler} both have an open size (-1); fix one")
    learning = len(devices) - sampling if learning is None else learning  # type: ignore[operator]
    sampling = len(devices) - learning if sampling is None else sampling
    if learning + sampling != len(devices) or min(learning, sampling) < 1:
        raise ValueError(
            f"mesh={learner} and sampler_mesh={sampler} need {learning} + {sampling} devices, at least one each; "
            f"there are {len(devices)}"
        )
    processes = len({device.process_index for device in devices})
    if learning % processes or sampling % processes:
        raise ValueError(
            f"mesh={learner} and sampler_mesh={sampler} take {learning} + {sampling} devices, which do not divide over "
            f"the {processes} processes; choose multiples of {processes} for both"
        )
    middle, inwards = _distance_from_the_middle(devices), learning >= sampling
    ordered = sorted(devices, key=lambda device: (device.process_index, middle(device) * (1 if inwards else -1)))
    by_process = np.asarray(ordered).reshape(processes, -1)
    learners, samplers = np.split(by_process, [learning // processes], axis=1)
    return Meshes(make_mesh(learner, list(learners.flat)), make_mesh(sampler, list(samplers.flat)))


def _distance_from_the_middle(devices: list[jax.Device]) -> Callable[[jax.Device], int]:
    """Distance of a TPU chip from the middle of the slice, along the first axis and then along all; 0 elsewhere.

    On slices of 4 x 4 chips, whose hosts have 2 x 2, the nearest chips of every host form one block. libtpu compiles
    for that block and for the ring around it, but not for every second row or column.
    """
    if devices[0].platform != "tpu":  # a GPU has coordinates too: its number on the host
        return lambda device: 0
    last = np.max([device.coords for device in devices], axis=0)

    def distance(device: jax.Device) -> int:
        along = abs(2 * np.asarray(device.coords) - last)
        return int(along[0] * (1 + last.sum()) + along.sum())

    return distance


class Placeable(Protocol):
    """Shape of a weight and the logical axis of each dimension (None: not split)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def axes(self) -> tuple[str | None, ...]: ...


def weight_shardings(mesh: Mesh, table: Mapping[str, Placeable]) -> dict:
    """Pytree of NamedShardings of a weight table; raises ValueError naming a weight that does not divide."""

    def place(path: str, weight: Placeable) -> NamedSharding:
        spec = [RULES[name] if name else None for name in weight.axes]
        for size, axis in zip(weight.shape, spec, strict=True):
            if axis and size % mesh.shape[axis]:
                raise ValueError(
                    f"weight {path} {weight.shape}: {size} does not divide over the {mesh.shape[axis]} devices of "
                    f"mesh axis '{axis}'; choose a smaller '{axis}' in the mesh"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return traverse_util.unflatten_dict({path: place(path, weight) for path, weight in table.items()}, sep="/")


HOST = "pinned_host"  # JAX's name of host memory on every platform


def on_host(tree: Any) -> Any:
    """Move arrays to host memory; for shardings, return those of host memory."""
    return _in_memory(HOST, tree)


def on_devices(tree: Any) -> Any:
    """Move arrays from host memory back to their devices."""
    return _in_memory("device", tree)


def _in_memory(kind: str, tree: Any) -> Any:
    def move(x: Any) -> Any:
        if isinstance(x, NamedSharding):
            return x.with_memory_kind(kind)
        return jax.device_put(x, x.sharding.with_memory_kind(kind))

    return jax.tree.map(move, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with the same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Sharding with the leading axis spread over the data-parallel devices."""
    return NamedSharding(mesh, BATCH)


def data_parallel_size(mesh: Mesh) -> int:
    """Number of data-parallel devices."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def pin_gathered(x: jax.Array, weight: Placeable) -> jax.Array:
    """Gather a weight that a program traced for a mesh reads often along `fsdp`, once; it stays split over `tensor`."""
    axes = [RULES[name] if name else None for name in weight.axes]
    return _pin(x, PartitionSpec(*(None if axis == "fsdp" else axis for axis in axes)))


def pin_rows(x: jax.Array) -> jax.Array:
    """Pin x's leading axis to the data-parallel devices, and nothing else, while a program is traced for a mesh.

    Otherwise XLA may split hidden states along their width, like the embedding they come from, and then all-reduce over
    `fsdp` after every product instead of gathering the weights.
    """
    return _pin(x, BATCH)


def pin_tokens(x: jax.Array) -> jax.Array:
    """Pin hidden states [B, T, D] as `pin_rows` does, and T over `tensor` if it divides.

    Activations kept for the backward pass are then split over all devices (sequence parallelism, arXiv 2205.05198).
    """
    if x.shape[1] % ways("tensor"):
        return pin_rows(x)
    return _pin(x, PartitionSpec(*BATCH, "tensor"))


def ways(axis: str) -> int:
    """Number of devices along a mesh axis while a program is traced for a mesh; 1 otherwise."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else int(mesh.shape[axis])


def _pin(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)


def put_on_batch(mesh: Mesh, tree: Any) -> Any:
    """Put arrays on the mesh, split over the data-parallel devices; host arrays must be the same in every process."""
    rows = over_batch(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, rows)

    def put(array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.jit(_same, out_shardings=rows)(array)
        on_host = np.asarray(array)
        return jax.make_array_from_callback(on_host.shape, rows, lambda index: on_host[index])

    return jax.tree.map(put, tree)


def _same(array: jax.Array) -> jax.Array:
    return array


def one_cpu(mesh: Mesh) -> bool:
    """Whether the mesh is a single CPU device, whose programs overlap only if another thread dispatches them.

    XLA runs the CPU programs of one thread one after the other. On other meshes only the main thread should dispatch:
    devices that communicate need their programs in one order, and an accelerator has a queue anyway.
    """
    return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def one_at_a_time(mesh: Mesh) -> bool:
    """Whether a program on the mesh must end before the next one is dispatched: on several CPU devices.

    Their collectives wait in threads of one pool. Two programs under way can each hold threads that the other waits
    for, and XLA aborts the process after 40 seconds (seen once, on a busy machine).
    """
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
