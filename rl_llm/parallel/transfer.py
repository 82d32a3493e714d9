"""Transfer between meshes: parameters to a sampler with its own devices, rollouts back.

In one process this is a single transfer. With several, arrays can only be copied within a process: each array is
gathered on its source devices, and every process copies from there the shards of its own target devices. Arrays go one
after the other, and stacked weights a few layers at a time, to bound the memory.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_llm.parallel.programs import PROGRAMS

AT_ONCE = 2**28  # bytes of an array that are gathered at a time


def move(tree: Any, shardings: Any, at_once: int = AT_ONCE) -> Any:
    """Move arrays from one mesh to the shardings of another; every process passes the same arrays."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def in_parts(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        count = entries_at_once(array, sharding, at_once)
        if count is None:
            return _through_whole(array, sharding, 0, None)
        moved = jnp.zeros(array.shape, array.dtype, device=sharding)
        for start in range(0, len(array), count):
            first = min(start, len(array) - count)  # parts are equally long, so the last one repeats some entries
            moved = _insert(sharding)(moved, _through_whole(array, sharding, first, count), first)
        return jax.block_until_ready(moved)

    return jax.tree.map(in_parts, tree, shardings)


def entries_at_once(array: Any, sharding: NamedSharding, at_once: int = AT_ONCE) -> int | None:
    """Number of entries of the first axis (layers of stacked weights) that `move` gathers at a time, at least one.

    None means the whole array: it is small, or that axis is split on either mesh.
    """
    size = bytes_of(array)
    if size <= at_once or not array.ndim:
        return None
    entries = array.shape[0]
    if any(place.shard_shape(array.shape)[0] < entries for place in (array.sharding, sharding)):
        return None
    return max(1, at_once * entries // size)


def bytes_of(array: Any) -> int:
    """Bytes of an array, or of its shape and dtype."""
    return int(array.size * jnp.dtype(array.dtype).itemsize)


def _through_whole(array: jax.Array, sharding: NamedSharding, first: int, count: int | None) -> jax.Array:
    assert isinstance(array.sharding, NamedSharding)
    everywhere = _gather(array.sharding.mesh, count)(array, first)
    whole = everywhere.addressable_data(0)
    places = sharding.addressable_devices_indices_map(whole.shape)
    # Finish each copy before slicing the next, so only one is in memory beside the whole array.
    parts = [jax.block_until_ready(jax.device_put(whole[index], device)) for device, index in places.items()]
    moved: jax.Array = jax.make_array_from_single_device_arrays(whole.shape, sharding, parts)
    return jax.block_until_ready(moved)


@lru_cache(maxsize=PROGRAMS)
def _gather(mesh: Mesh, count: int | None) -> Callable[[jax.Array, int], jax.Array]:
    """Compile: gather `count` entries of an array, from `first` on, on all devices of its mesh."""

    def gather(array: jax.Array, first: int) -> jax.Array:
        return array if count is None else jax.lax.dynamic_slice_in_dim(array, first, count)

    return jax.jit(gather, out_shardings=NamedSharding(mesh, PartitionSpec()))


@lru_cache(maxsize=PROGRAMS)
def _insert(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """Compile: write entries into an array, from `first` on."""
    insert = partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)
