"""Which mesh and how many micro-batches: all sensible ones estimated, the best few compiled."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log

import jax

from rl_llm.experiment import Experiment
from rl_llm.model import weight_table
from rl_llm.parallel.mesh import MeshShape, make_mesh
from rl_llm.plan.cost import Efficiency, cost
from rl_llm.plan.errors import PlanError
from rl_llm.plan.estimates import (
    rollout_tokens,
    sampling_bytes,
    sent_by_hand,
    split_over,
    state_bytes,
    update_bytes,
)
from rl_llm.plan.planning import on_mesh
from rl_llm.plan.programs import GIB
from rl_llm.plan.topology import Topology
from rl_llm.prepare import shares
from rl_llm.runs.load import SourceModels
from rl_llm.update.step import compile_learning

SURE = 0.95  # of the memory: as near as the estimates of updates are
ROOM = 0.9  # of the memory, for sampling: the estimate counts nothing that layers make on the way
TIE = 0.02  # steps of the logarithm of the seconds: among those of one step, what takes less memory is first


@dataclass(frozen=True)
class Candidate:
    """A mesh for the learner, and numbers of micro-batches and of sampling batches, with rough guesses at the memory
    that they take (GiB of the fullest chip), whether that should fit, and at the seconds of a step.
    """

    mesh: MeshShape
    micro_batches: int
    sampling_batches: int
    gib: float
    fits: bool
    seconds: float


def candidates(experiment: Experiment, topology: Topology, e: Efficiency) -> list[Candidate]:
    """Every mesh that the experiment's sizes divide over, with the fewest micro-batches that should fit, the most
    promising first: those that should fit by their seconds, then the others by what they need. A `sampler_mesh` stays
    as it is. Raises PlanError where there is no such mesh, or where `sampler_mesh` does not say how many chips it
    leaves.
    """
    learning = compile_learning(experiment, 0, make_mesh(MeshShape(), jax.devices()[:1]), SourceModels(), ())
    passes = learning.passes(experiment.pretraining_steps)
    learning_chips, found = _learning_chips(experiment, topology), []
    for mesh in _meshes(experiment, learning_chips):
        cuts = [_estimate(experiment, topology, mesh, cut, passes, e) for cut in _cuts(experiment, mesh)]
        found += [next((one for one in cuts if one.fits), cuts[-1])] if cuts else []
    if not found:
        rows = ", ".join(f"{name}: {count}" for name, count in shares(replace(experiment, micro_batches=1)).items())
        raise PlanError(
            f"no mesh of {learning_chips} chips divides the model and the rows of updates ({rows}): choose another "
            f"slice{', another sampler_mesh' if experiment.sampler_mesh else ''} or other rows"
        )
    return sorted(found, key=lambda one: (not one.fits, one.fits and round(log(one.seconds) / TIE), one.gib))


def _learning_chips(experiment: Experiment, topology: Topology) -> int:
    sampler = experiment.sampler_mesh
    if sampler is None:
        return topology.chips
    if sampler.fixed is None:
        raise PlanError(
            f"sampler_mesh={sampler} takes the chips that the learner leaves, and --search chooses those: fix its sizes"
        )
    if sampler.fixed >= topology.chips:
        raise PlanError(f"sampler_mesh={sampler} leaves none of {topology.chips} chips to the learner: a smaller one")
    return topology.chips - sampler.fixed


def _meshes(experiment: Experiment, chips: int) -> Iterator[MeshShape]:
    """Those that the weights divide over."""
    config, critic = experiment.model, experiment.critic
    weights = [*weight_table(config).values(), *(critic.table(config).values() if critic else ())]
    for tensor in _divisors(chips):
        for fsdp in _divisors(chips // tensor):
            mesh = MeshShape(chips // tensor // fsdp, fsdp, tensor)
            if all(size % ways == 0 for weight in weights for size, ways in split_over(weight, mesh)):
                yield mesh


def _cuts(experiment: Experiment, mesh: MeshShape) -> list[int]:
    """The numbers of micro-batches with which the rows of updates divide over a mesh."""
    ways, prompts = mesh.data * mesh.fsdp, experiment.prompts_per_step // experiment.updates_per_rollout
    possible = [cut for cut in _powers(prompts) if prompts % cut == 0]
    return [cut for cut in possible if not any(n % ways for n in shares(on_mesh(experiment, mesh, cut)).values())]


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [1 << exponent for exponent in range(most.bit_length())]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _estimate(
    experiment: Experiment, topology: Topology, mesh: MeshShape, micro_batches: int, passes: int, e: Efficiency
) -> Candidate:
    sampler = experiment.sampler_mesh or mesh
    parts, sampling = _sampling(experiment, topology, mesh, sampler)
    ways = experiment.updates_per_rollout * micro_batches * mesh.data * mesh.fsdp
    update = update_bytes(experiment, mesh, micro_batches, rollout_tokens(experiment) / ways)
    gib = max(sampling, state_bytes(experiment, mesh) + update) / GIB
    planned = on_mesh(experiment, mesh, micro_batches, parts)
    seconds = cost(planned, topology, mesh, sampler, sent_by_hand(planned, sampler, e), passes, e).seconds
    return Candidate(mesh, micro_batches, parts, gib, gib <= SURE * topology.usable_gib, seconds)


def _sampling(experiment: Experiment, topology: Topology, mesh: MeshShape, sampler: MeshShape) -> tuple[int, float]:
    """The fewest sampling batches that should fit, or the most there are, and the bytes of a chip then."""
    N, ways = experiment.prompts_per_step, sampler.data * sampler.fsdp
    possible = [parts for parts in _powers(N) if N % (parts * ways) == 0] or [1]
    needs = [(parts, sampling_bytes(experiment, mesh, sampler, parts)) for parts in possible]
    return next((one for one in needs if one[1] < ROOM * GIB * topology.usable_gib), needs[-1])
