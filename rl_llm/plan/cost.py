"""Roofline of an experiment's step on given chips at stated efficiencies, and the cost of a run."""

from collections.abc import Mapping
from dataclasses import dataclass

from rl_llm.experiment import Experiment
from rl_llm.model import forward_flops, parameter_count
from rl_llm.parallel.mesh import MeshShape
from rl_llm.plan.programs import CompiledProgram, cache_slot_bytes, compute_itemsize
from rl_llm.plan.topology import Topology
from rl_llm.sampler import cache_spans


@dataclass(frozen=True)
class Efficiency:
    """Assumed shares of a chip's peak compute and bandwidths, and mean response length as a share of the longest."""

    compute: float = 0.4
    memory: float = 0.7
    network: float = 0.7
    length: float = 1.0


@dataclass(frozen=True)
class PhaseCost:
    """Seconds of a part of a step if compute, memory or network alone limited it. They overlap."""

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """Seconds of the slowest of the three."""
        return max(self.compute, self.memory, self.network)

    @property
    def bound(self) -> str:
        """Name of the slowest of the three."""
        times = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class BytesSent:
    """Bytes that a chip sends per step, in the phases that the network may limit."""

    decode: float
    update: float


@dataclass(frozen=True)
class StepCost:
    """Cost of one step and of a run of `steps` RL steps.

    Evaluations, warm start, compilation and restarts are not counted. `side_by_side`: a sampler on chips of its own
    samples the next responses during the updates.
    """

    phases: Mapping[str, PhaseCost]
    flops: float
    tokens: float
    steps: int
    chips: int
    side_by_side: bool = False

    @property
    def seconds(self) -> float:
        """Seconds of a step: the sum of sampling and learning, or the slower of the two if side by side."""
        learning = self.phases["update"].seconds
        sampling = sum(phase.seconds for phase in self.phases.values()) - learning
        return max(sampling, learning) if self.side_by_side else sampling + learning

    @property
    def chip_hours(self) -> float:
        """Chip-hours of the run."""
        return self.seconds * self.steps * self.chips / 3600


def step_cost(
    experiment: Experiment, topology: Topology, sampler: MeshShape, sent: BytesSent, passes: int, e: Efficiency
) -> StepCost:
    """Roofline of a step, where `experiment.mesh` and the sampler's mesh have fixed sizes.

    FLOPs are the model's own, with `passes` passes of the learner over every prompt and response. Recomputation does
    not count.
    """
    learner, batches = experiment.mesh, experiment.sampling_batches
    chip, config = topology.chip, experiment.model
    N, P, T = experiment.prompts_per_step, experiment.max_prompt_tokens, experiment.sampling.max_tokens
    rows, length = N * experiment.responses_per_prompt, e.length * T
    prefill_flops = forward_flops(config, N * P, P / 2, logits=N)
    decode_flops = forward_flops(config, rows * length, P + length / 2)

    def phase(mesh: MeshShape, flops: float, bytes_read: float, sent: float) -> PhaseCost:
        return PhaseCost(
            flops / (chips(mesh) * chip.bf16_flops * e.compute),
            bytes_read / (chip.hbm_bandwidth * e.memory),
            sent / (chip.ici_bandwidth / 2 * e.network),  # one direction
        )

    weights = parameter_count(config) * compute_itemsize(config)
    sampler_weights, learner_weights = weights / sampler.tensor, weights / learner.tensor
    slots = (N * P + rows * length / 2) / chips(sampler)
    decode_bytes = length * (batches * sampler_weights + cache_slot_bytes(config) * slots)
    flops = prefill_flops + decode_flops
    update_bytes = experiment.updates_per_rollout * experiment.micro_batches * 3 * learner_weights
    phases = {
        "prefill": phase(sampler, prefill_flops, batches * sampler_weights, 0.0),
        "decode": phase(sampler, decode_flops, decode_bytes, sent.decode),
        "update": phase(learner, passes * flops, update_bytes, sent.update),
    }
    side_by_side = experiment.sampler_mesh is not None and experiment.staleness > 0
    return StepCost(phases, (1 + passes) * flops, rows * length, experiment.steps, topology.chips, side_by_side)


def chips(mesh: MeshShape) -> int:
    """Number of chips of a mesh of fixed sizes."""
    return mesh.data * mesh.fsdp * mesh.tensor


def sent_by_programs(experiment: Experiment, programs: Mapping[str, CompiledProgram], e: Efficiency) -> BytesSent:
    """Bytes that the compiled programs of a step send.

    Log-probabilities are left out: in docs/plans they send at most a sixth of what updates do.
    """
    T, update = experiment.sampling.max_tokens, programs.get("update")
    return BytesSent(
        decode=experiment.sampling_batches * _sent_by_sampling(programs.get("sample"), T, e.length * T),
        update=experiment.updates_per_rollout * sum(one.total for one in update.collectives) if update else 0.0,
    )


def _sent_by_sampling(program: CompiledProgram | None, max_tokens: int, length: float) -> float:
    """Bytes that a chip sends in one sampling call.

    The program has one token loop per span of the cache. They are much alike, so each is taken to sample an equal share
    of the tokens.
    """
    if program is None:
        return 0.0
    once = sum(one.total for one in program.collectives if not one.open_loops)
    each_token = sum(one.total for one in program.collectives if one.open_loops)
    return once + each_token / max(1, len(cache_spans(max_tokens))) * length
