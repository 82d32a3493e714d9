"""Arrays on their way from one mesh to another: parameters to a sampler on devices of its own, rollouts back.

Where there is one process, that is one transfer. Between several, arrays can only be copied within a process. So each
array is made whole on the devices that it comes from, and every process takes from there what its own devices of the
other mesh are to hold. They go one after the other, and stacked weights some layers at a time, as there may be no room
for more.
"""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_llm.parallel.programs import PROGRAMS

AT_ONCE = 2**28  # bytes of an array that are whole at a time


def move(tree: Any, shardings: Any, at_once: int = AT_ONCE) -> Any:
    """Arrays on one mesh, as NamedShardings of another one have them: in every process the same arrays."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def in_parts(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        count = entries_at_once(array, sharding, at_once)
        if count is None:
            return _through_whole(array, sharding, 0, None)
        moved = jnp.zeros(array.shape, array.dtype, device=sharding)
        for start in range(0, len(array), count):
            first = min(start, len(array) - count)  # the last part has as many as the others: some go a second time
            moved = _insert(sharding)(moved, _through_whole(array, sharding, first, count), first)
        return jax.block_until_ready(moved)

    return jax.tree.map(in_parts, tree, shardings)


def entries_at_once(array: Any, sharding: NamedSharding, at_once: int = AT_ONCE) -> int | None:
    """How many entries of an array's first axis (of stacked weights: layers) `move` has whole at a time, at least one;
    None for the array as it is: it is small, or that axis is split on either mesh.
    """
    size = bytes_of(array)
    if size <= at_once or not array.ndim:
        return None
    entries = array.shape[0]
    if any(place.shard_shape(array.shape)[0] < entries for place in (array.sharding, sharding)):
        return None
    return max(1, at_once * entries // size)


def bytes_at_once(tree: Any, shardings: Any) -> int:
    """The most that `move` takes of a device that arrays come from, in several processes: a part of one of them whole,
    and once more what a device of the other mesh is to have of it.
    """

    def of_part(array: Any, sharding: NamedSharding) -> int:
        count = entries_at_once(array, sharding)
        whole = bytes_of(array) if count is None else bytes_of(array) // array.shape[0] * count
        return whole + whole * prod(sharding.shard_shape(array.shape)) // max(1, array.size)

    return max(jax.tree.leaves(jax.tree.map(of_part, tree, shardings)))


def bytes_of(array: Any) -> int:
    """Of an array, or of its shape and type."""
    return int(array.size * jnp.dtype(array.dtype).itemsize)


def _through_whole(array: jax.Array, sharding: NamedSharding, first: int, count: int | None) -> jax.Array:
    assert isinstance(array.sharding, NamedSharding)
    everywhere = _gather(array.sharding.mesh, count)(array, first)
    whole = everywhere.addressable_data(0)
    places = sharding.addressable_devices_indices_map(whole.shape)
    # Each has gone before the next one is cut out, or all of them would be beside the whole.
    parts = [jax.block_until_ready(jax.device_put(whole[index], device)) for device, index in places.items()]
    moved: jax.Array = jax.make_array_from_single_device_arrays(whole.shape, sharding, parts)
    return jax.block_until_ready(moved)


@lru_cache(maxsize=PROGRAMS)
def _gather(mesh: Mesh, count: int | None) -> Callable[[jax.Array, int], jax.Array]:
    """So many entries of an array from the first one on, whole on all devices of its mesh."""

    def gather(array: jax.Array, first: int) -> jax.Array:
        return array if count is None else jax.lax.dynamic_slice_in_dim(array, first, count)

    return jax.jit(gather, out_shardings=NamedSharding(mesh, PartitionSpec()))


@lru_cache(maxsize=PROGRAMS)
def _insert(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """An array with entries put in place, from the first one on."""

    def insert(array: jax.Array, entries: jax.Array, first: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(array, entries, first, axis=0)

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)
