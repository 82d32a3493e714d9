"""What an experiment takes of a chip and what its chips send, by hand, from the shapes alone: what a search goes by
before anything is compiled.
"""

from collections.abc import Mapping
from math import prod

from rl_llm.experiment import Experiment
from rl_llm.learner.logprobs import LOGITS_BYTES
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import Weight, parameter_count, split_flat, weight_table
from rl_llm.parallel.mesh import RULES, MeshShape
from rl_llm.plan.cost import Efficiency, Sent, chips
from rl_llm.plan.planning import evaluates_ahead


def of_sampler(experiment: Experiment, sampler: MeshShape) -> float:
    """What stays on a chip of a sampler on chips of its own: float32 parameters."""
    trained, frozen = split_flat(experiment.model, weight_table(experiment.model))
    return 4 * ((1 + evaluates_ahead(experiment)) * _per_chip(trained, sampler) + _per_chip(frozen, sampler))


def sampling_bytes(experiment: Experiment, mesh: MeshShape, sampler: MeshShape, sampling_batches: int) -> float:
    """What sampling needs of a chip: what stays there, the weights in the form that it reads, and the cache."""
    config = experiment.model
    cache = 2 * config.layers * config.kv_heads * config.head_width * itemsize(experiment) * rollout_tokens(experiment)
    lasting = of_sampler(experiment, sampler) if experiment.sampler_mesh else state_bytes(experiment, mesh)
    weights = itemsize(experiment) * parameter_count(config) / sampler.tensor
    return lasting + weights + cache / chips(sampler) / sampling_batches


def rollout_tokens(experiment: Experiment) -> float:
    """At most, of a rollout: a prompt is read once."""
    responses = experiment.responses_per_prompt * experiment.sampling.max_tokens
    return experiment.prompts_per_step * (responses + experiment.max_prompt_tokens)


def itemsize(experiment: Experiment) -> int:
    """Bytes of a number in products and in the cache."""
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
    layers = (
        config.layers * 4 * around(mesh.tensor) * (8 * D + 6 * split / mesh.tensor) * rollout_tokens(experiment) / ways
    )
    # The head's gradient is summed over all rows for each chunk of logits; other gradients for each micro-batch, for
    # which weights spread over `fsdp` are gathered.
    table = split_flat(config, weight_table(config))[0]
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
    trained, frozen = split_flat(experiment.model, weight_table(experiment.model))
    copies = experiment.staleness + (experiment.reference is not None and not experiment.reference.offload)
    kept = (4 * (1 + copies) + _moments(optimizer)) * _per_chip(trained, mesh) + 4 * _per_chip(frozen, mesh)
    if critic is not None:
        kept += (4 + _moments(critic.optimizer)) * _per_chip(critic.table(experiment.model), mesh)
    return kept


def update_bytes(experiment: Experiment, mesh: MeshShape, micro_batches: int, tokens: float) -> float:
    """What an update needs of a chip besides the state, when a micro-batch has so many tokens for each data-parallel
    chip: the gradient, twice where micro-batches add to it; what layers keep for the backward pass; and the larger of
    what the widest moment of a layer and of the head takes then.

    All of it is float32. With the state, within 5 % of what updates take that were compiled for v6e:4x4: Qwen3-4B over
    fsdp=8, tensor=2 (28.5 GiB a chip; cut to 12 layers 18.9) and Qwen3-8B over fsdp=4, tensor=4 (27.2), remat="layers".
    """
    config, tensor = experiment.model, mesh.tensor
    trained, _ = split_flat(config, weight_table(config))
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
    return gradient * (1 + (micro_batches > 1)) + 4 * config.layers * tokens * kept + max(layer, head)


def _moments(optimizer: AdamW) -> int:
    """Bytes of the moments of a parameter."""
    return 2 * (2 if optimizer.moments_dtype == "bfloat16" else 4)


def _per_chip(table: Mapping[str, Weight], mesh: MeshShape) -> float:
    """How many numbers of the weights of a table a chip has."""

    def part(weight: Weight) -> float:
        return prod(weight.shape) / prod(ways for _, ways in split_over(weight, mesh))

    return sum(part(weight) for weight in table.values())


def split_over(weight: Weight, mesh: MeshShape) -> list[tuple[int, int]]:
    """The sizes of a weight that are split, and over how many chips each is."""
    named = zip(weight.shape, weight.axes, strict=True)
    return [(size, getattr(mesh, RULES[name])) for size, name in named if name]
