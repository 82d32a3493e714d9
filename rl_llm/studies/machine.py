"""The machine that a study runs on, and how many of its members fit there at a time.

Asked in processes that are gone before it matters: an accelerator has one owner at a time.
"""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax

from rl_llm.experiment import Experiment
from rl_llm.parallel.mesh import Meshes, make_mesh
from rl_llm.parallel.numbers import Numbers
from rl_llm.plan.programs import abstract, bytes_per_chip, lowered
from rl_llm.studies.study import load_study

LARGEST = 64  # members of a population where no number is asked for: what the host does for each is done one by one
SHARE = 0.8  # of a device's memory


class Machine(NamedTuple):
    """Where JAX would run."""

    platform: str
    devices: int


def machine() -> Machine:
    """This one."""
    found: Machine = _in_another_process(_machine)
    return found


def members_that_fit(path: str, scale: str) -> int:
    """How many members of a study the memory of this machine's one device has room for, at most LARGEST: what the
    programs of a run need when they are compiled for it, and what stacking its state takes, of the arm that needs most.
    The weights of a teacher or a reward model are not counted.
    """
    found: int = _in_another_process(_members_that_fit, path, scale)
    return found


def needed_bytes(experiment: Experiment) -> int:
    """What a member of a population takes of the device's memory: its state three times over (its own, and that of the
    population before and after an update), and the most that one of its programs has beside its arguments.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    made = abstract(experiment, Meshes(mesh, mesh))
    analyses = [lower().compile().memory_analysis() for lower in lowered(made).values()]
    return 3 * bytes_per_chip(made.state) + max(one.temp_size_in_bytes + one.output_size_in_bytes for one in analyses)


def _in_another_process(question: Callable, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(question, *arguments).result()


def _machine() -> Machine:
    return Machine(str(jax.default_backend()), jax.device_count())


def _members_that_fit(path: str, scale: str) -> int:
    study, _ = load_study(path, scale)
    room = SHARE * jax.devices()[0].memory_stats()["bytes_limit"]
    return fitting(study.experiments.values(), room)


def fitting(experiments: Iterable[Experiment], room: float) -> int:
    """Members of any of the experiments that fit into so many bytes: from 1 to LARGEST."""
    different = {Numbers.of(experiment).structure: experiment for experiment in experiments}
    most = max(map(needed_bytes, different.values()))
    return max(1, min(LARGEST, int(room // most)))
