"""Move arrays between meshes of several processes and print the result as JSON, for tests/parallel/test_hosts.py.

Two processes with four devices each: two learn and two sample.
"""

import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rl_llm.parallel import hosts
from rl_llm.parallel.mesh import MeshShape, make_meshes
from rl_llm.parallel.transfer import bytes_of, entries_at_once, move

# Name: shape, sharding on each mesh.
ARRAYS = {
    "stacked": ((5, 4, 6), PartitionSpec(None, "fsdp"), PartitionSpec(None, None, "tensor")),
    "split": ((8, 6), PartitionSpec("fsdp"), PartitionSpec(None, "tensor")),
    "rows": ((8, 2), PartitionSpec(("data", "fsdp")), PartitionSpec(("data", "fsdp"))),
    "number": ((), PartitionSpec(), PartitionSpec()),
}


def main() -> dict:
    both = make_meshes(MeshShape(2, 2), MeshShape(2, tensor=2))
    found = {}
    for name, (shape, before, after) in ARRAYS.items():
        values = jnp.arange(jnp.prod(jnp.array(shape, int)), dtype=jnp.float32).reshape(shape)
        here = NamedSharding(both.learner, before)
        array = jax.make_array_from_callback(shape, here, lambda index, values=values: values[index])
        there = NamedSharding(both.sampler, after)
        at_once = bytes_of(array) // 2
        moved = move({name: array}, {name: there}, at_once)[name]
        found[name] = {
            "same": bool((hosts.to_host(moved) == values).all()),
            "placed": moved.sharding == there,
            "at_once": entries_at_once(array, there, at_once),
        }
    return found


if __name__ == "__main__":
    hosts.join()
    print("found", json.dumps(main()))
