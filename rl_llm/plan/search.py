"""Searches for a mesh and numbers of batches: every valid mesh is estimated, and the best few are compiled."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log

import jax

from rl_llm.experiment import Experiment
from rl_llm.model import weight_table
from rl_llm.parallel.mesh import MeshShape, make_mesh
from rl_llm.plan import PlanError
from rl_llm.plan.cost import Efficiency, step_cost
from rl_llm.plan.estimates import sampling_bytes, sent_by_hand, sharded_axes, state_bytes, update_bytes
from rl_llm.plan.programs import GIB, rollout_tokens
from rl_llm.plan.topology import Topology
from rl_llm.prepare import shares
from rl_llm.runs.load import SourceModels
from rl_llm.update.step import compile_learning

SURE = 0.95  # share of memory for updates; their estimates are accurate to 5 %
ROOM = 0.9  # share of memory for sampling; its estimate leaves out temporaries of layers
TIE = 0.02  # candidates whose log(seconds) rounds to the same multiple of this are ordered by memory


@dataclass(frozen=True)
class Candidate:
    """A mesh for the learner with numbers of batches, and rough estimates.

    `gib` is the memory of the fullest chip, `fits` whether that should fit, and `seconds` the time of a step.
    """

    mesh: MeshShape
    micro_batches: int
    sampling_batches: int
    gib: float
    fits: bool
    seconds: float


def candidates(experiment: Experiment, topology: Topology, e: Efficiency) -> list[Candidate]:
    """Every mesh that divides the experiment's sizes, most promising first, with the fewest micro-batches that fit.

    Candidates that should fit come first, by seconds; the others follow by memory. A `sampler_mesh` stays as it is.
    Raises PlanError if there is no such mesh, or if `sampler_mesh` leaves an unknown number of chips.
    """
    learning = compile_learning(experiment, 0, make_mesh(MeshShape(), jax.devices()[:1]), SourceModels(), ())
    passes = learning.passes(experiment.pretraining_steps)
    learner_chips, found = _learner_chips(experiment, topology), []
    for mesh in _meshes(experiment, learner_chips):
        options = [_estimate(experiment, topology, mesh, n, passes, e) for n in _micro_batches(experiment, mesh)]
        found += [next((one for one in options if one.fits), options[-1])] if options else []
    if not found:
        rows = ", ".join(f"{name}: {count}" for name, count in shares(replace(experiment, micro_batches=1)).items())
        raise PlanError(
            f"no mesh of {learner_chips} chips divides the model and the rows of updates ({rows}): choose another "
            f"slice{', another sampler_mesh' if experiment.sampler_mesh else ''} or other rows"
        )
    return sorted(found, key=lambda one: (not one.fits, one.fits and round(log(one.seconds) / TIE), one.gib))


def _learner_chips(experiment: Experiment, topology: Topology) -> int:
    sampler = experiment.sampler_mesh
    if sampler is None:
        return topology.chips
    if sampler.fixed is None:
        raise PlanError(f"sampler_mesh={sampler} has an open size; --search chooses the learner's mesh: fix its sizes")
    if sampler.fixed >= topology.chips:
        raise PlanError(f"sampler_mesh={sampler} leaves none of {topology.chips} chips to the learner: use fewer")
    return topology.chips - sampler.fixed


def _meshes(experiment: Experiment, chips: int) -> Iterator[MeshShape]:
    """Meshes that divide the weights."""
    config, critic = experiment.model, experiment.critic
    weights = [*weight_table(config).values(), *(critic.table(config).values() if critic else ())]
    for tensor in _divisors(chips):
        for fsdp in _divisors(chips // tensor):
            mesh = MeshShape(chips // tensor // fsdp, fsdp, tensor)
            if all(size % ways == 0 for weight in weights for size, ways in sharded_axes(weight, mesh)):
                yield mesh


def _micro_batches(experiment: Experiment, mesh: MeshShape) -> list[int]:
    """Numbers of micro-batches, powers of two, for which the rows of updates divide over a mesh."""
    ways, prompts = mesh.data * mesh.fsdp, experiment.prompts_per_step // experiment.updates_per_rollout
    possible = [n for n in _powers(prompts) if prompts % n == 0]
    cut = {n: replace(experiment, mesh=mesh, micro_batches=n) for n in possible}
    return [n for n in possible if not any(rows % ways for rows in shares(cut[n]).values())]


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [1 << exponent for exponent in range(most.bit_length())]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _estimate(
    experiment: Experiment, topology: Topology, mesh: MeshShape, micro_batches: int, passes: int, e: Efficiency
) -> Candidate:
    sampler = experiment.sampler_mesh or mesh
    sampling_batches, sampling = _sampling(experiment, topology, mesh, sampler)
    ways = experiment.updates_per_rollout * micro_batches * mesh.data * mesh.fsdp
    update = update_bytes(experiment, mesh, micro_batches, rollout_tokens(experiment) / ways)
    gib = max(sampling, state_bytes(experiment, mesh) + update) / GIB
    planned = replace(experiment, mesh=mesh, micro_batches=micro_batches, sampling_batches=sampling_batches)
    seconds = step_cost(planned, topology, sampler, sent_by_hand(planned, sampler, e), passes, e).seconds
    return Candidate(mesh, micro_batches, sampling_batches, gib, gib <= SURE * topology.usable_gib, seconds)


def _sampling(experiment: Experiment, topology: Topology, mesh: MeshShape, sampler: MeshShape) -> tuple[int, float]:
    """The fewest sampling batches that should fit, or the most possible, and their bytes per chip."""
    N, ways = experiment.prompts_per_step, sampler.data * sampler.fsdp
    possible = [batches for batches in _powers(N) if N % (batches * ways) == 0] or [1]
    needs = [(batches, sampling_bytes(experiment, mesh, sampler, batches)) for batches in possible]
    return next((one for one in needs if one[1] < ROOM * GIB * topology.usable_gib), needs[-1])
