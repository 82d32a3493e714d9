"""Which mesh and how many micro-batches: all sensible ones estimated, the best few compiled."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from rl_llm.experiment import Experiment
from rl_llm.likelihood import LOGITS_BYTES
from rl_llm.mesh import RULES, MeshShape
from rl_llm.model import Weight, parameter_count, separated, weight_table
from rl_llm.optimizer import AdamW
from rl_llm.plan.topology import Topology

GIB = 2**30


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
    """By hand, from the shapes alone."""
    config, chips, ways = experiment.model, topology.chips, mesh.data * mesh.fsdp
    itemsize = 2 if config.compute_dtype == "bfloat16" else 4
    rows = experiment.prompts_per_step * experiment.responses_per_prompt
    responses = rows * experiment.sampling.max_tokens
    tokens = responses + experiment.prompts_per_step * experiment.max_prompt_tokens  # a prompt is read once
    parameters = parameter_count(config)
    trained = sum(prod(weight.shape) for weight in separated(config, weight_table(config))[0].values())
    state = state_bytes(experiment, mesh)
    gathered = itemsize * parameters / mesh.tensor
    cache = 2 * config.layers * config.kv_heads * config.head_width * itemsize * tokens / chips
    update = state + update_bytes(experiment, mesh, cut, tokens / (experiment.updates_per_rollout * cut * ways))
    most = max(1, experiment.prompts_per_step // ways)
    parts = next((n for n in _powers(most) if state + gathered + cache / n < 0.9 * GIB * topology.usable_gib), most)
    sampling = state + gathered + cache / parts
    passed = (2 * parameters + trained) * itemsize / mesh.tensor  # weights both ways, and gradients back
    sent = cut * passed * (mesh.fsdp > 1) + 8 * trained * (mesh.data > 1) / (mesh.fsdp * mesh.tensor)
    per_token = 4 * config.layers * config.width * 4 * (mesh.tensor - 1) / mesh.tensor  # two all-reduces each way
    sent += experiment.updates_per_rollout * 3 * per_token * tokens / ways
    return Candidate(mesh, cut, parts, max(update, sampling) / GIB, sent)


def state_bytes(experiment: Experiment, mesh: MeshShape) -> float:
    """What stays on a chip from step to step: float32 parameters, moments of those that are trained, and their copies,
    those of past steps and of a reference on the devices; the same for a critic of its own.
    """
    optimizer, critic = experiment.optimizer, experiment.critic
    trained, frozen = separated(experiment.model, weight_table(experiment.model))
    copies = experiment.staleness + (experiment.reference is not None and not experiment.reference.offload)
    kept = (4 * (1 + copies) + _moments(optimizer)) * _per_chip(trained, mesh) + 4 * _per_chip(frozen, mesh)
    if critic is not None:
        kept += (4 + _moments(critic.optimizer)) * _per_chip(critic.table(experiment.model), mesh)
    return kept


def update_bytes(experiment: Experiment, mesh: MeshShape, cut: int, tokens: float) -> float:
    """What an update needs of a chip besides the state, when a micro-batch has so many tokens for each data-parallel
    chip: the gradient, twice where micro-batches add to it; what layers keep for the backward pass; and the larger of
    what the widest moment of a layer and of the head takes then.

    All of it is float32. With the state, within 5 % of what updates take that were compiled for v6e:4x4: Qwen3-4B over
    fsdp=8, tensor=2 (28.5 GiB a chip; cut to 12 layers 18.9) and Qwen3-8B over fsdp=4, tensor=4 (27.2), remat="layers".
    """
    config, tensor = experiment.model, mesh.tensor
    trained, _ = separated(config, weight_table(config))
    gradient = 4 * _per_chip(trained, mesh)
    if experiment.critic is not None:
        gradient += 4 * _per_chip(experiment.critic.table(config), mesh)
    D, split = config.width, config.feed_forward * (config.experts.per_token if config.experts else 1) / tensor
    attention = 2 * (config.heads + config.kv_heads) * config.head_width / tensor
    kept = {
        "nothing": 4 * D + attention + 3 * split,
        "all but products": 3 * D / tensor + attention + 2 * split,
        "layers": D / tensor,  # of every layer its input alone
    }[config.remat]
    # Of everything in a layer the gradient, too; of its width, what products read is whole, the rest split by tokens.
    layer = 4 * tokens * ((2 + 4 / tensor) * D + 2 * attention + 6 * split)
    head = 2 * 4 * D * config.vocabulary / tensor + 3 * LOGITS_BYTES + 2 * 4 * tokens * D
    return gradient * (1 + (cut > 1)) + 4 * config.layers * tokens * kept + max(layer, head)


def _moments(optimizer: AdamW) -> int:
    """Bytes of the moments of a parameter."""
    return 2 * (2 if optimizer.moments_dtype == "bfloat16" else 4)


def _per_chip(table: Mapping[str, Weight], mesh: MeshShape) -> float:
    """How many numbers of the weights of a table a chip has."""

    def part(weight: Weight) -> float:
        return prod(weight.shape) / prod(getattr(mesh, RULES[name]) for name in weight.axes if name)

    return sum(part(weight) for weight in table.values())
