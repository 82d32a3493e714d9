"""One run in several processes with their own devices: the same command everywhere, on one host or on many.

Every process holds the same host values and takes the same decisions from them, so a run's code reads as if there were
one process. The functions here share what only one process knows: the grades of its rows, a signal, the folder it
writes. All processes must call them in the same order, from the main thread.
"""

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rl_llm.config.terminal import show

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
Result = TypeVar("Result")
SHUTDOWN_SECONDS = 60  # a process that ends waits this long for the others


class HostsError(Exception):
    """The processes of a run could not connect. The message says what is missing."""


def join() -> None:
    """Connect this process with the others of the run, if the environment names any.

    They are named by JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or found
    by JAX under Slurm, Open MPI and on TPU slices. JAX_NUM_PROCESSES=1 forces a run in one process.

    Call it before any device is used. A process that dies ends the others: at once on CPU and GPU, where the connection
    breaks, and within JAX's heartbeat (100 s) on TPU. Raises HostsError if the processes cannot connect.
    """
    given = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
    if given.get(COUNT) == "1" or not (given or _in_cluster()):
        return
    import jax

    if jax.distributed.is_initialized():  # by an earlier run of this process
        return
    if given and len(given) < 3:
        missing = " and ".join(name for name in (ADDRESS, COUNT, INDEX) if name not in given)
        raise HostsError(f"{' and '.join(given)} without {missing}: set all three, or none for a run in one process")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler would take SIGTERM, which tells a run to save and exit (runs/preemption.py).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        named: dict[str, Any] = {}
        if given:
            named = {"num_processes": int(given[COUNT]), "process_id": int(given[INDEX])}
            named |= {"coordinator_address": given[ADDRESS], "cluster_detection_method": "deactivate"}
        jax.distributed.initialize(**named, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
    except (ValueError, RuntimeError) as error:
        shown = ", ".join(f"{name}={value}" for name, value in given.items()) or "the environment of a cluster"
        raise HostsError(f"the processes of the run cannot connect through {shown}: {error}") from error


def _in_cluster() -> bool:
    """Whether this is one of several tasks of a scheduler, or a TPU host, which may be one of many."""
    if any(int(os.environ.get(name, 1)) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return len(workers) > 1 or any(any(Path("/dev").glob(name)) for name in ("accel*", "vfio/[0-9]*"))


def several() -> bool:
    """Whether the run has other processes."""
    import jax

    return bool(jax.process_count() > 1)


def writes() -> bool:
    """Whether this process writes the run folder; the first one does."""
    import jax

    return bool(jax.process_index() == 0)


def gather(value: Any) -> list[Any]:
    """Gather a picklable value from every process, in their order."""
    if not several():
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    content = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.ravel(process_allgather(np.int32(content.size)))
    room = 1 << int(sizes.max() - 1).bit_length()  # powers of two: a new size is a new program
    padded = np.zeros(room, np.uint8)
    padded[: content.size] = content
    found = process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(found, sizes, strict=True)]


def together(action: Callable[[], Result]) -> list[Result]:
    """Run an action in every process and gather the results; an error in one is raised in all."""
    if not several():
        return [action()]
    value, error = None, None
    try:
        value = action()
    except Exception as caught:
        error = caught
    outcomes = gather((value, error and _portable(error)))
    failed = [(index, raised) for index, (_, raised) in enumerate(outcomes) if raised is not None]
    if error is not None:
        raise error
    if failed:
        index, raised = failed[0]
        raised.add_note(f"(raised in process {index} of {len(outcomes)})")
        raise raised
    return [value for value, _ in outcomes]


def on_writer(action: Callable[[], Result]) -> Result:
    """Run an action in the writing process only and return its result everywhere; an error is raised in all."""
    return together(action if writes() else lambda: None)[0]  # type: ignore[return-value]


def to_host(tree: Any) -> Any:
    """Fetch the whole arrays of a pytree to the host, wherever their shards lie."""
    import jax

    if not several():
        return jax.device_get(tree)
    from jax.experimental.multihost_utils import process_allgather

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(whole, tree)


def own_rows(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values of this process's rows, each with one owner. Dispatches nothing, so any thread may call it."""
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    shards.sort(key=lambda shard: shard.index[0].start or 0)
    indices = [np.arange(array.shape[0])[shard.index[0]] for shard in shards]
    rows = [np.asarray(shard.data) for shard in shards]
    nothing = np.zeros((0, *array.shape[1:]), array.dtype)
    return np.concatenate([*indices, np.arange(0)]), np.concatenate([*rows, nothing])


def leave_others(code: int, message: str = "") -> None:
    """Exit at once with `code` if there are other processes; for failures that only this process may have.

    Prints the message, or without one the traceback. An orderly exit would wait for the others while they wait for this
    one. They fail when the connection breaks.
    """
    if several():
        if message:
            show(message, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def _portable(error: Exception) -> Exception:
    """Return the error if it can be pickled, else a RuntimeError with its message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
