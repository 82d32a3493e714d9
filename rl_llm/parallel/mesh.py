"""The device mesh, and the one table that says which mesh axis each logical axis of a weight or a batch lies on."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_llm.parallel.population import Program, program

AXES = ("data", "fsdp", "tensor")

# Logical axis of a weight -> mesh axis. "width" over fsdp is ZeRO-3; the rest over tensor is Megatron's split.
RULES = {
    "vocabulary": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "feed_forward": "tensor",
    "experts": "tensor",  # each device has some experts whole
    "width": "fsdp",
}

# Rows (or prompts: a group's rows stay together) are spread over both data-parallel axes.
BATCH = PartitionSpec(("data", "fsdp"))


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; -1 (at most once) takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        if sum(size == -1 for size in sizes) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"MeshShape sizes must be at least 1, one of them may be -1; got {sizes}")

    @property
    def fixed(self) -> int | None:
        """How many devices it takes, where it says so."""
        sizes = (self.data, self.fsdp, self.tensor)
        return None if -1 in sizes else int(np.prod(sizes))


def make_mesh(shape: MeshShape = MeshShape(), devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of AXES over `devices` (default: all); on TPUs, neighbours along an axis lie as near in the slice as may
    be. Raises ValueError unless the sizes multiply to the number of devices.
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
    except AssertionError:  # it knows of boxes of chips only, which a `sampler_mesh` need not leave: as they come
        placed = np.asarray(devices).reshape(sizes)
    return Mesh(placed, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


@dataclass(frozen=True)
class Meshes:
    """Where the learner works, and where the sampler does: on the same mesh, or on devices of its own."""

    learner: Mesh
    sampler: Mesh

    @property
    def apart(self) -> bool:
        return self.sampler is not self.learner


def make_meshes(learner: MeshShape, sampler: MeshShape | None, devices: list[jax.Device] | None = None) -> Meshes:
    """Both meshes over `devices` (default: all), which they share where no `sampler` is given; else the first ones of
    every process learn and its other ones sample (on TPUs the larger part are those in the middle of the slice), and
    one of the shapes may leave a size open. Raises ValueError unless they make up all devices, and every process has
    as many of either as the others (`move` needs that).
    """
    if sampler is None:
        return Meshes(mesh := make_mesh(learner, devices), mesh)
    devices = jax.devices() if devices is None else devices
    learning, sampling = learner.fixed, sampler.fixed
    if learning is None and sampling is None:
        raise ValueError(f"mesh={learner} and sampler_mesh={sampler} both take the devices that are left: fix one")
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
            f"mesh={learner} and sampler_mesh={sampler} take {learning} + {sampling} devices, and each of the "
            f"{processes} processes is to have as many of either as the others: choose multiples of {processes}"
        )
    middle, inwards = _distance_from_the_middle(devices), learning >= sampling
    ordered = sorted(devices, key=lambda device: (device.process_index, middle(device) * (1 if inwards else -1)))
    by_process = np.asarray(ordered).reshape(processes, -1)
    learners, samplers = np.split(by_process, [learning // processes], axis=1)
    return Meshes(make_mesh(learner, list(learners.flat)), make_mesh(sampler, list(samplers.flat)))


def _distance_from_the_middle(devices: list[jax.Device]) -> Callable[[jax.Device], int]:
    """How far a TPU chip lies from the middle of the slice: along its first axis, then along all. 0 for other devices.

    The chips of every host that are nearest make one block on slices of 4 x 4 chips, whose hosts have 2 x 2: libtpu
    compiles for that, for what lies around it, and not for every second row or column.
    """
    if devices[0].platform != "tpu":  # a GPU has coordinates, too: its number on the host
        return lambda device: 0
    last = np.max([device.coords for device in devices], axis=0)

    def distance(device: jax.Device) -> int:
        along = abs(2 * np.asarray(device.coords) - last)
        return int(along[0] * (1 + last.sum()) + along.sum())

    return distance


class Placeable(Protocol):
    """A weight's shape and the logical axis of each dimension (None: not split)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def axes(self) -> tuple[str | None, ...]: ...


def weight_shardings(mesh: Mesh, table: Mapping[str, Placeable]) -> dict:
    """The pytree of NamedShardings of a weight table; raises ValueError naming a weight that does not divide."""

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


HOST = "pinned_host"  # the name of its memory to JAX, on every platform


def on_host(tree: Any) -> Any:
    """Arrays, moved to the memory of the hosts of their devices; or shardings, of that memory."""
    return _in_memory(HOST, tree)


def on_devices(tree: Any) -> Any:
    """Arrays that `on_host` moved away, on their devices again."""
    return _in_memory("device", tree)


def _in_memory(kind: str, tree: Any) -> Any:
    def move(x: Any) -> Any:
        if isinstance(x, NamedSharding):
            return x.with_memory_kind(kind)
        return jax.device_put(x, x.sharding.with_memory_kind(kind))

    return jax.tree.map(move, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis spread over the data-parallel devices."""
    return NamedSharding(mesh, BATCH)


def data_parallel_size(mesh: Mesh) -> int:
    """How many ways the rows are spread."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def pin_gathered(x: jax.Array, weight: Placeable) -> jax.Array:
    """A weight whole along `fsdp`, split over `tensor` as ever, while a program is traced for a mesh (`compile`): for
    what is read so often that gathering it each time would take longer than anything else.
    """
    axes = [RULES[name] if name else None for name in weight.axes]
    return _pin(x, PartitionSpec(*(None if axis == "fsdp" else axis for axis in axes)))


def pin_rows(x: jax.Array) -> jax.Array:
    """x with its leading axis spread over the data-parallel devices, and over nothing else, while a program is traced
    for a mesh.

    Without it a compiler may split hidden states along their width, as the embedding that they are taken from is split
    over `fsdp`, and then add them up over `fsdp` after every product instead of gathering the weights.
    """
    return _pin(x, BATCH)


def pin_tokens(x: jax.Array) -> jax.Array:
    """Hidden states [B, T, D] with their rows as in `pin_rows`, and T over `tensor` where it divides: what a layer
    keeps for the backward pass is then split over all devices (sequence parallelism, arXiv 2205.05198).
    """
    if x.shape[1] % ways("tensor"):
        return pin_rows(x)
    return _pin(x, PartitionSpec(*BATCH, "tensor"))


def ways(axis: str) -> int:
    """Devices along a mesh axis while a program is traced for a mesh; 1 elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else int(mesh.shape[axis])


def _pin(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)


def put_on_batch(mesh: Mesh, tree: Any) -> Any:
    """Arrays on the host (the same in every process) or on devices -> on the mesh, with the leading axis spread over
    the data-parallel devices.
    """
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
    """Whether programs on the mesh may be dispatched by another thread than the main one, and should be where they are
    to run beside others: XLA runs what a thread dispatches to CPU devices one after the other.

    Elsewhere they should not. Devices that speak to each other must be given their programs in one order, which is that
    of the main thread; an accelerator has a queue of its own, whoever fills it.
    """
    return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def one_at_a_time(mesh: Mesh) -> bool:
    """Whether a program on the mesh must have ended before the next one is dispatched. Several CPU devices wait for
    each other in threads of one pool: of two programs under way, each can hold the threads that the other waits for,
    and XLA ends the process after 40 seconds (seen once, on a busy machine).
    """
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """XLA options for the mesh's platform.

    On CPU, products and reductions are kept out of YNNPACK fusions, which make the small shapes that a CPU trains
    slower: experiments/benchmarks/rl_step.py with and without tells by how much.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if on_cpu else {}


def compile(function: Callable, mesh: Mesh, **options: Any) -> Program:
    """`population.program` of a function for a mesh, with the options of `jax.jit`. While it is traced, JAX knows the
    mesh: the parts that a compiler cannot split by itself (fused attention, experts) look it up there.
    """

    @functools.wraps(function)
    def on_mesh(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return program(on_mesh, compiler_options=compiler_options(mesh), **options)
