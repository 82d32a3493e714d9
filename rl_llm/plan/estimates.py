"""Memory and communication of an experiment, estimated from its shapes before anything is compiled."""

from collections.abc import Mapping
from math import prod

from rl_llm.experiment import Experiment
from rl_llm.learner.logprobs import LOGITS_BYTES
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import Weight, parameter_count, split_flat, weight_table
from rl_llm.parallel.mesh import RULES, MeshShape
from rl_llm.plan.cost import BytesSent, Efficiency, chips
from rl_llm.plan.planning import evaluates_ahead
from rl_llm.plan.programs import cache_slot_bytes, compute_itemsize, rollout_tokens


def sampler_param_bytes(experiment: Experiment, sampler: MeshShape) -> float:
    """Bytes of float32 parameters that stay on each chip of a separate sampler."""
    trained, frozen = split_flat(experiment.model, weight_table(experiment.model))
    return 4 * ((1 + evaluates_ahead(experiment)) * _per_chip(trained, sampler) + _per_chip(frozen, sampler))


def sampling_bytes(experiment: Experiment, mesh: MeshShape, sampler: MeshShape, sampling_batches: int) -> float:
    """Bytes per chip for sampling: resident state, the copy of the weights in the compute dtype, and the KV cache."""
    config = experiment.model
    resident = sampler_param_bytes(experiment, sampler) if experiment.sampler_mesh else state_bytes(experiment, mesh)
    weights = compute_itemsize(config) * parameter_count(config) / sampler.tensor
    cache = cache_slot_bytes(config) * rollout_tokens(experiment)
    return resident + weights + cache / chips(sampler) / sampling_batches


def sent_by_hand(experiment: Experiment, sampler: MeshShape, e: Efficiency) -> BytesSent:
    """Bytes that the compiled programs are likely to send, if the backward pass recomputes every layer.

    Against docs/plans: compiled updates send as much within 7 %, but up to 30 % more if tensor=8 is the whole mesh.
    Sampling sends as much within 10 %, but two to six times as much in four plans, where the compiler moves a part of
    the weights at every token. The network is not the bottleneck there: the seconds of a step are within 0.5 %.
    """
    config, mesh = experiment.model, experiment.mesh
    ways, D, V = mesh.data * mesh.fsdp, config.width, config.vocabulary
    rows = experiment.prompts_per_step * experiment.responses_per_prompt

    def ring(n: int) -> float:
        return (n - 1) / n

    # Two float32 all-reduces over `tensor` per layer; each sends twice its size.
    length = e.length * experiment.sampling.max_tokens
    token = config.layers * 2 * 2 * 4 * D * ring(sampler.tensor)
    decode = length * rows * token / (sampler.data * sampler.fsdp)
    # The whole activations between layers, and the outputs of products, resharded from `tensor` to tokens.
    split = config.feed_forward * (config.experts.per_token if config.experts else 1)
    split += (config.heads + 2 * config.kv_heads) * config.head_width
    layers = (
        config.layers * 4 * ring(mesh.tensor) * (8 * D + 6 * split / mesh.tensor) * rollout_tokens(experiment) / ways
    )
    # The head's gradient is summed over all rows for each chunk of logits, other gradients for each micro-batch, for
    # which weights sharded over `fsdp` are gathered.
    table = split_flat(config, weight_table(config))[0]
    trained = sum(prod(weight.shape) for weight in table.values())
    chunks = rows * experiment.sampling.max_tokens / ways * 4 * V / mesh.tensor / LOGITS_BYTES
    head = chunks * 8 * D * V / mesh.tensor * ring(ways) * (config.lora is None)
    micro_batches = experiment.updates_per_rollout * experiment.micro_batches
    weights = micro_batches * (8 * trained * ring(ways) + 4 * parameter_count(config) * ring(mesh.fsdp))
    return BytesSent(decode, layers + head + weights)


def state_bytes(experiment: Experiment, mesh: MeshShape) -> float:
    """Bytes per chip of the state between steps.

    Float32 parameters, the moments of the trained ones, copies of those for past steps and for a reference on the
    devices, and the same for a separate critic.
    """
    optimizer, critic = experiment.optimizer, experiment.critic
    trained, frozen = split_flat(experiment.model, weight_table(experiment.model))
    copies = experiment.staleness + (experiment.reference is not None and not experiment.reference.offload)
    kept = (4 * (1 + copies) + _moments(optimizer)) * _per_chip(trained, mesh) + 4 * _per_chip(frozen, mesh)
    if critic is not None:
        kept += (4 + _moments(critic.optimizer)) * _per_chip(critic.table(experiment.model), mesh)
    return kept


def update_bytes(experiment: Experiment, mesh: MeshShape, micro_batches: int, tokens: float) -> float:
    """Bytes per chip of an update besides the state, for `tokens` tokens of a micro-batch per data-parallel chip.

    The gradient (twice if micro-batches accumulate it), the activations kept for the backward pass, and the larger of
    the peaks of a layer and of the head, all in float32. With the state, this is within 5 % of updates compiled for
    v6e:4x4 with remat="layers": Qwen3-4B over fsdp=8, tensor=2 (28.5 GiB per chip; 18.9 with 12 layers) and Qwen3-8B
    over fsdp=4, tensor=4 (27.2).
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
        "layers": D / tensor,  # only each layer's input
    }[config.remat]
    # Activations and their gradients. Inputs of products have the whole width; the rest is sharded by tokens.
    layer = 4 * tokens * ((2 + 4 / tensor) * D + 2 * attention + 6 * split)
    head = 2 * 4 * D * config.vocabulary / tensor + 3 * LOGITS_BYTES + 2 * 4 * tokens * D
    return gradient * (1 + (micro_batches > 1)) + 4 * config.layers * tokens * kept + max(layer, head)


def _moments(optimizer: AdamW) -> int:
    """Bytes of both moments of one parameter."""
    return 2 * (2 if optimizer.moments_dtype == "bfloat16" else 4)


def _per_chip(table: Mapping[str, Weight], mesh: MeshShape) -> float:
    """Numbers of a table's weights on each chip."""

    def part(weight: Weight) -> float:
        return prod(weight.shape) / prod(ways for _, ways in sharded_axes(weight, mesh))

    return sum(part(weight) for weight in table.values())


def sharded_axes(weight: Weight, mesh: MeshShape) -> list[tuple[int, int]]:
    """(size, number of shards) of each axis of a weight that can be sharded."""
    named = zip(weight.shape, weight.axes, strict=True)
    return [(size, getattr(mesh, RULES[name])) for size, name in named if name]
