"""What a step of an experiment must take on given chips, and what a run costs: a roofline, by stated efficiencies."""

from collections.abc import Mapping
from dataclasses import dataclass

from rl_llm.experiment import Experiment
from rl_llm.model import forward_flops, parameter_count
from rl_llm.parallel.mesh import MeshShape
from rl_llm.plan.programs import Program
from rl_llm.plan.topology import Topology
from rl_llm.sampler import cache_spans


@dataclass(frozen=True)
class Efficiency:
    """The shares of a chip's peak figures that programs are taken to reach, and the share of the longest response that
    the mean one has.
    """

    compute: float = 0.4
    memory: float = 0.7
    network: float = 0.7
    length: float = 1.0


@dataclass(frozen=True)
class Phase:
    """The seconds that a part of a step takes if compute, memory or network alone were slow. They overlap: the slowest
    decides.
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """By the slowest."""
        return max(self.compute, self.memory, self.network)

    @property
    def bound(self) -> str:
        """Which one is the slowest."""
        times = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class Sent:
    """Bytes that a chip sends in a step, in the phases where that may decide."""

    decode: float
    update: float


@dataclass(frozen=True)
class Cost:
    """Of one step, and of a run of `steps`: RL steps alone, without evaluations, warm start, compilation, restarts.
    `side_by_side`: a sampler on chips of its own answers while the learner learns from what it answered before.
    """

    phases: Mapping[str, Phase]
    flops: float
    tokens: float
    steps: int
    chips: int
    side_by_side: bool = False

    @property
    def seconds(self) -> float:
        """One step: its phases one after the other, or the slower of sampling and learning."""
        learning = self.phases["update"].seconds
        sampling = sum(phase.seconds for phase in self.phases.values()) - learning
        return max(sampling, learning) if self.side_by_side else sampling + learning

    @property
    def chip_hours(self) -> float:
        """The run."""
        return self.seconds * self.steps * self.chips / 3600


def cost(
    experiment: Experiment,
    topology: Topology,
    learner: MeshShape,
    sampler: MeshShape,
    sent: Sent,
    passes: int,
    e: Efficiency,
) -> Cost:
    """The roofline of a step on meshes of these sizes. FLOPs are the model's own count, of every prompt and response
    read `passes` times by the learner: recomputation does not count.
    """
    chip, config, batches = topology.chip, experiment.model, experiment.sampling_batches
    N, P, T = experiment.prompts_per_step, experiment.max_prompt_tokens, experiment.sampling.max_tokens
    rows, length = N * experiment.responses_per_prompt, e.length * T
    reading = forward_flops(config, N * P, P / 2, logits=N)
    answering = forward_flops(config, rows * length, P + length / 2)

    def phase(mesh: MeshShape, flops: float, bytes_read: float, sent: float) -> Phase:
        return Phase(
            flops / (chips(mesh) * chip.bf16_flops * e.compute),
            bytes_read / (chip.hbm_bandwidth * e.memory),
            sent / (chip.ici_bandwidth / 2 * e.network),  # one direction
        )

    itemsize = 2 if config.compute_dtype == "bfloat16" else 4
    weights = parameter_count(config) * itemsize
    of_slot = 2 * config.layers * config.kv_heads * config.head_width * itemsize
    slots = (N * P + rows * length / 2) / chips(sampler)
    of_sampling, of_update = weights / sampler.tensor, weights / learner.tensor
    micro_batches = experiment.updates_per_rollout * experiment.micro_batches
    decoding = length * (batches * of_sampling + of_slot * slots)
    phases = {
        "prefill": phase(sampler, reading, batches * of_sampling, 0.0),
        "decode": phase(sampler, answering, decoding, sent.decode),
        "update": phase(learner, passes * (reading + answering), micro_batches * 3 * of_update, sent.update),
    }
    flops = (1 + passes) * (reading + answering)
    side_by_side = experiment.sampler_mesh is not None and experiment.staleness > 0
    return Cost(phases, flops, rows * length, experiment.steps, topology.chips, side_by_side)


def chips(mesh: MeshShape) -> int:
    """Of a mesh whose sizes are all known."""
    return mesh.data * mesh.fsdp * mesh.tensor


def sent_by_programs(experiment: Experiment, programs: Mapping[str, Program], e: Efficiency) -> Sent:
    """What the compiled programs of a step send, but for log-probabilities: in docs/plans a sixth of what updates do,
    at most.
    """
    T, update = experiment.sampling.max_tokens, programs.get("update")
    return Sent(
        decode=experiment.sampling_batches * sent_by_sampling(programs.get("sample"), T, e.length * T),
        update=experiment.updates_per_rollout * sum(one.total for one in update.collectives) if update else 0.0,
    )


def sent_by_sampling(program: Program | None, max_tokens: int, length: float) -> float:
    """Bytes that a chip sends while sampling: the loops over tokens, one for each span of the cache, are much alike, so
    each is taken to make its part of the tokens.
    """
    if program is None:
        return 0.0
    once = sum(one.total for one in program.collectives if not one.open_loops)
    of_tokens = [one for one in program.collectives if one.open_loops]

    loops = max(1, len(cache_spans(max_tokens)))
    return once + sum(one.total for one in of_tokens) / loops * length
