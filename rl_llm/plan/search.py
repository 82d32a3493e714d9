"""Which mesh and how many micro-batches: all sensible ones estimated, the best few compiled."""

from collections.abc import Iterator
from dataclasses import dataclass

from rl_llm.experiment import Experiment
from rl_llm.mesh import MeshShape
from rl_llm.model import parameter_count
from rl_llm.plan.topology import Topology

GIB = 2**30
STATE_BYTES = 12  # float32 parameters and two moments


@dataclass(frozen=True)
class Candidate:
    """A mesh, and numbers of micro-batches and of sampling batches, with a rough guess at the memory they take (GiB per
    chip), and at how much is sent: bytes per chip and step.
    """

    mesh: MeshShape
    micro_batches: int
    sampling_batches: int
    gib: float
    sent: float


def candidates(experiment: Experiment, topology: Topology) -> list[Candidate]:
    """All that the experiment's sizes divide over, the most promising first: those that should fit by what they send,
    then the others by what they need.
    """
    found = [_estimate(experiment, topology, mesh, cut) for mesh, cut in _possible(experiment, topology.chips)]
    return sorted(
        found, key=lambda one: (one.gib > topology.usable_gib, one.sent if one.gib <= topology.usable_gib else one.gib)
    )


def _possible(experiment: Experiment, chips: int) -> Iterator[tuple[MeshShape, int]]:
    config = experiment.model
    prompts = experiment.prompts_per_step // experiment.updates_per_rollout
    for tensor in _divisors(chips):
        if config.kv_heads % tensor or config.feed_forward % tensor or config.vocabulary % tensor:
            continue
        for fsdp in _divisors(chips // tensor):
            if config.width % fsdp:
                continue
            ways = chips // tensor
            for cut in _powers(prompts):
                if (prompts // cut) % ways == 0:
                    yield MeshShape(chips // tensor // fsdp, fsdp, tensor), cut


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [1 << exponent for exponent in range(most.bit_length())]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _estimate(experiment: Experiment, topology: Topology, mesh: MeshShape, cut: int) -> Candidate:
    """By hand, from the shapes alone: state, cache, a layer's inputs of a micro-batch, and the head's chunk."""
    config, chips = experiment.model, topology.chips
    ways = mesh.data * mesh.fsdp
    itemsize = 2 if config.compute_dtype == "bfloat16" else 4
    P, T = experiment.max_prompt_tokens, experiment.sampling.max_tokens
    rows = experiment.prompts_per_step * experiment.responses_per_prompt
    parameters = parameter_count(config)
    state = STATE_BYTES * parameters / (mesh.fsdp * mesh.tensor)
    gathered = itemsize * parameters / mesh.tensor
    slots = (rows * T + experiment.prompts_per_step * P) / chips
    cache = 2 * config.layers * config.kv_heads * config.head_width * itemsize * slots
    tokens = rows * (P + T) / (experiment.updates_per_rollout * cut * ways)
    inputs = 4 * config.layers * config.width * tokens / mesh.tensor
    layer = 4 * tokens * (4 * config.width + 3 * config.feed_forward / mesh.tensor)
    gradient = 4 * parameters / (mesh.fsdp * mesh.tensor)
    update = state + gradient + inputs + layer
    most = max(1, experiment.prompts_per_step // ways)
    parts = next((n for n in _powers(most) if state + gathered + cache / n < 0.9 * GIB * topology.usable_gib), most)
    sampling = state + gathered + cache / parts
    sent = 3 * cut * gathered * (mesh.fsdp > 1) + 8 * parameters * (mesh.data > 1) / (mesh.fsdp * mesh.tensor)
    per_token = 4 * config.layers * config.width * 4 * (mesh.tensor - 1) / mesh.tensor  # two all-reduces each way
    sent += experiment.updates_per_rollout * 3 * per_token * rows * (P + T) / ways
    return Candidate(mesh, cut, parts, max(update, sampling) / GIB, sent)
