"""Which mesh and how many micro-batches: all sensible ones estimated, the best few compiled."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import log, prod

import jax

from rl_llm.experiment import Experiment
from rl_llm.learning import compile_learning
from rl_llm.likelihood import LOGITS_BYTES
from rl_llm.mesh import RULES, MeshShape, make_mesh
from rl_llm.model import Weight, parameter_count, separated, weight_table
from rl_llm.optimizer import AdamW
from rl_llm.plan.cost import Efficiency, Sent, chips, cost
from rl_llm.plan.errors import PlanError
from rl_llm.plan.planning import evaluates_ahead, on_mesh
from rl_llm.plan.topology import Topology
from rl_llm.prepare import shares
from rl_llm.recorded import Others

GIB = 2**30
SURE = 0.95  # of the memory: as near as the estimates are
TIE = 0.02  # of the seconds: then the one that takes less memory is first


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
    learning = compile_learning(experiment, 0, make_mesh(MeshShape(), jax.devices()[:1]), Others(), ())
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
            if all(size % ways == 0 for weight in weights for size, ways in _split(weight, mesh)):
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
    experiment: Experiment, topology: Topology, mesh: MeshShape, cut: int, passes: int, e: Efficiency
) -> Candidate:
    """By hand, from the shapes alone."""
    sampler = experiment.sampler_mesh or mesh
    parts, sampling = _sampling(experiment, topology, mesh, sampler)
    tokens = _tokens(experiment) / (experiment.updates_per_rollout * cut * mesh.data * mesh.fsdp)
    gib = max(sampling, state_bytes(experiment, mesh) + update_bytes(experiment, mesh, cut, tokens)) / GIB
    planned = on_mesh(experiment, mesh, cut, parts)
    seconds = cost(planned, topology, mesh, sampler, sent_by_hand(planned, sampler, e), passes, e).seconds
    return Candidate(mesh, cut, parts, gib, gib <= SURE * topology.usable_gib, seconds)


def _sampling(experiment: Experiment, topology: Topology, mesh: MeshShape, sampler: MeshShape) -> tuple[int, float]:
    """The fewest sampling batches that should fit, or the most there are, and the bytes of a chip then."""
    config, N, ways = experiment.model, experiment.prompts_per_step, sampler.data * sampler.fsdp
    cache = 2 * config.layers * config.kv_heads * config.head_width * _itemsize(experiment) * _tokens(experiment)
    lasting = of_sampler(experiment, sampler) if experiment.sampler_mesh else state_bytes(experiment, mesh)
    lasting += _itemsize(experiment) * parameter_count(config) / sampler.tensor  # in the form that sampling reads
    possible = [parts for parts in _powers(N) if N % (parts * ways) == 0] or [1]
    needs = [(parts, lasting + cache / chips(sampler) / parts) for parts in possible]
    return next((one for one in needs if one[1] < 0.9 * GIB * topology.usable_gib), needs[-1])


def of_sampler(experiment: Experiment, sampler: MeshShape) -> float:
    """What stays on a chip of a sampler on chips of its own: float32 parameters."""
    trained, frozen = separated(experiment.model, weight_table(experiment.model))
    return 4 * ((1 + evaluates_ahead(experiment)) * _per_chip(trained, sampler) + _per_chip(frozen, sampler))


def _tokens(experiment: Experiment) -> float:
    """At most, of a rollout: a prompt is read once."""
    responses = experiment.responses_per_prompt * experiment.sampling.max_tokens
    return experiment.prompts_per_step * (responses + experiment.max_prompt_tokens)


def _itemsize(experiment: Experiment) -> int:
    return 2 if experiment.model.compute_dtype == "bfloat16" else 4


def sent_by_hand(experiment: Experiment, sampler: MeshShape, e: Efficiency) -> Sent:
    """What the compiled programs are likely to send, with every layer computed again in the backward pass.

    Held against docs/plans: the compiled updates send as much within 7 %, but up to 30 % more where tensor=8 is all of
    the mesh; sampling within 10 %, but two to six times as much in four plans, where the compiler hands on a part of
    the weights at every token. None of that decides there: the seconds of a step are within 0.5 %.
    """
    config, mesh = experiment.model, experiment.mesh
    ways, D, V = mesh.data * mesh.fsdp, config.width, config.vocabulary
    rows = experiment.prompts_per_step * experiment.responses_per_prompt

    def around(n: int) -> float:
        return (n - 1) / n

    # Two sums over `tensor` a layer, of float32; each sends twice what it adds up.
    length = e.length * experiment.sampling.max_tokens
    token = config.layers * 2 * 2 * 4 * D * around(sampler.tensor)
    decode = length * rows * token / (sampler.data * sampler.fsdp)
    # What layers pass on, whole, and what their products make, split over `tensor` and then over tokens instead.
    split = config.feed_forward * (config.experts.per_token if config.experts else 1)
    split += (config.heads + 2 * config.kv_heads) * config.head_width
    layers = config.layers * 4 * around(mesh.tensor) * (8 * D + 6 * split / mesh.tensor) * _tokens(experiment) / ways
    # The head's gradient is summed over all rows for each chunk of logits; other gradients for each micro-batch, for
    # which weights spread over `fsdp` are gathered.
    table = separated(config, weight_table(config))[0]
    trained = sum(prod(weight.shape) for weight in table.values())
    chunks = rows * experiment.sampling.max_tokens / ways * 4 * V / mesh.tensor / LOGITS_BYTES
    head = chunks * 8 * D * V / mesh.tensor * around(ways) * (config.lora is None)
    cuts = experiment.updates_per_rollout * experiment.micro_batches
    weights = cuts * (8 * trained * around(ways) + 4 * parameter_count(config) * around(mesh.fsdp))
    return Sent(decode, layers + head + weights)


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
        return prod(weight.shape) / prod(ways for _, ways in _split(weight, mesh))

    return sum(part(weight) for weight in table.values())


def _split(weight: Weight, mesh: MeshShape) -> list[tuple[int, int]]:
    """The sizes of a weight that are split, and over how many chips each is."""
    named = zip(weight.shape, weight.axes, strict=True)
    return [(size, getattr(mesh, RULES[name])) for size, name in named if name]
