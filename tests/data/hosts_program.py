"""Use rl_llm/parallel/hosts.py in one of several processes and print the result, for tests/parallel/test_hosts.py.

Arguments: a shared folder, and `save` or `restore`. There are two devices in all.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rl_llm.parallel import hosts
from rl_llm.parallel.mesh import MeshShape, make_mesh, over_batch, put_on_batch
from rl_llm.runs.checkpoint import Checkpoints, state_sha256


def main(folder: Path, action: str) -> dict:
    mesh = make_mesh(MeshShape(data=2))
    on_host = {"rows": np.arange(12, dtype=np.float32).reshape(4, 3), "flag": np.array([True, False, True, True])}
    placed = put_on_batch(mesh, on_host)
    checkpoints = Checkpoints(folder / "checkpoints")
    found: dict = {"process": jax.process_index(), "several": hosts.several(), "writes": hosts.writes()}
    if action == "save":
        checkpoints.save(3, placed, {"seen": jax.process_index()})
        state, progress = placed, None
    else:
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=over_batch(mesh)), placed)
        restored = checkpoints.restore_newest(lambda progress: template)
        assert restored is not None
        state, progress = restored.state, restored.progress

    def fails() -> None:
        if jax.process_index() == jax.process_count() - 1:
            raise KeyError("only here")

    try:
        hosts.together(fails)
    except KeyError as error:
        found["raised"] = error.args[0]
    own, rows = hosts.own_rows(state["rows"])
    mixed = put_on_batch(mesh, jnp.roll(state["rows"], 1, axis=0))
    return found | {
        "progress": progress,
        "sha256": state_sha256(state, "and this"),
        "whole": hosts.to_host(state)["rows"].tolist(),
        "moved": hosts.to_host(mixed)[:, 0].tolist(),
        "own": [own.tolist(), rows[:, 0].tolist()],
        "gathered": hosts.gather("x" * (5 * jax.process_index() + 1)),
        "from_writer": hosts.on_writer(lambda: jax.process_index()),
    }


if __name__ == "__main__":
    hosts.join()
    print("found", json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
