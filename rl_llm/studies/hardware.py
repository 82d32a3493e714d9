"""The local hardware, and the number of study members that fit on it at once.

Both are determined in short-lived processes, because an accelerator has one owner at a time.
"""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax

from rl_llm.experiment import Experiment
from rl_llm.parallel.mesh import Meshes, make_mesh
from rl_llm.parallel.numbers import partition
from rl_llm.plan.programs import bytes_per_chip, trace_programs
from rl_llm.studies.study import load_study

LARGEST = 64  # members of a population if no number is given; the host handles its members one by one
SHARE = 0.8  # of a device's memory


class Hardware(NamedTuple):
    """The JAX platform and its number of devices."""

    platform: str
    devices: int


def probe_hardware() -> Hardware:
    """The hardware that JAX uses in this environment. Raises RuntimeError or AssertionError if it finds none."""
    found: Hardware = _in_another_process(_probe)
    return found


def members_that_fit(path: str, scale: str) -> int:
    """Members of a study that fit into the memory of the one local device, at most LARGEST.

    Counts the compiled programs and the stacked state of the most demanding arm, but not the weights of a teacher or a
    reward model.
    """
    found: int = _in_another_process(_members_that_fit, path, scale)
    return found


def needed_bytes(experiment: Experiment) -> int:
    """Device memory that one member of a population takes.

    The sum of three copies of its state (its own, and the population's before and after an update) and the largest
    temporary and output memory of its programs.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    traced = trace_programs(experiment, Meshes(mesh, mesh))
    analyses = [lower().compile().memory_analysis() for lower in traced.lowerings().values()]
    return 3 * bytes_per_chip(traced.state) + max(one.temp_size_in_bytes + one.output_size_in_bytes for one in analyses)


def fitting(experiments: Iterable[Experiment], room: float) -> int:
    """Members of any of the experiments that fit into `room` bytes, from 1 to LARGEST."""
    different = {partition(experiment)[1]: experiment for experiment in experiments}
    most = max(map(needed_bytes, different.values()))
    return max(1, min(LARGEST, int(room // most)))


def _in_another_process(question: Callable, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(question, *arguments).result()


def _probe() -> Hardware:
    return Hardware(str(jax.default_backend()), jax.device_count())


def _members_that_fit(path: str, scale: str) -> int:
    study, _ = load_study(path, scale)
    return fitting(study.experiments.values(), SHARE * jax.devices()[0].memory_stats()["bytes_limit"])
