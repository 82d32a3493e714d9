"""An experiment's own programs (sampler, log-probabilities, updates), compiled for devices that need not be there."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rl_llm import prng
from rl_llm.experiment import Conversations, Experiment
from rl_llm.learner.packing import compile_packed_step
from rl_llm.learner.state import Update, abstract_state, policy_of
from rl_llm.model import Weight, weight_table
from rl_llm.parallel import mesh as meshes
from rl_llm.parallel.mesh import Meshes
from rl_llm.plan.collectives import Collective, collectives
from rl_llm.plan.errors import PlanError
from rl_llm.prepare import check_shares
from rl_llm.prng import Purpose
from rl_llm.runs.load import SourceModels
from rl_llm.runs.state import state_spec
from rl_llm.sampler import compile_sampler
from rl_llm.types import Batch, Packed, Prompts, Rollout, TrainState
from rl_llm.update.step import Learning, compile_learning

GIB = 2**30
WARM_START = "warm start"  # the program that learns the conversations of a file

# The compiler's least effort at speed (XLA's EFFORT_O0): a fifth of the time at its default, the memory much the same.
EFFORT = 9


@dataclass(frozen=True)
class Program:
    """What a compiled program needs of every chip, in bytes: its arguments, temporaries, and the most at one time.
    Where it did not compile for want of memory, `failure` is the compiler's reason, `peak` what it said it would need,
    and the rest is empty.
    """

    name: str
    arguments: int
    temporaries: int
    peak: int
    collectives: tuple[Collective, ...]
    seconds_to_compile: float
    failure: str | None = None


@dataclass(frozen=True)
class OnConversations:
    """An update of a warm start on conversations of a file, and what it reads."""

    update: Update
    state: TrainState
    rows: Packed


@dataclass(frozen=True)
class Abstract:
    """Shapes, types and shardings of what an experiment's programs read, and the programs themselves, not compiled.
    The sampler reads `sampler_arguments`, on a mesh of its own where the experiment has one. `warm_start` is there
    where RL begins after a file of conversations.
    """

    experiment: Experiment
    meshes: Meshes
    learning: Learning
    state: TrainState
    rollout: Rollout
    batch: Batch
    sample: Callable[..., Rollout]
    sampler_arguments: tuple
    warm_start: OnConversations | None


def abstract(experiment: Experiment, both: Meshes) -> Abstract:
    """Trace an experiment's programs. Raises PlanError for a mesh that its sizes do not divide over."""
    try:
        return _abstract(experiment, both)
    except ValueError as error:
        raise PlanError(str(error)) from error


def _abstract(experiment: Experiment, both: Meshes) -> Abstract:
    N, K, mesh = experiment.prompts_per_step, experiment.responses_per_prompt, both.learner
    check_shares(experiment, *map(meshes.data_parallel_size, (both.learner, both.sampler)))
    learning = compile_learning(experiment, 0, mesh, SourceModels(), ())
    optimizer = experiment.optimizer.build(experiment.policy_updates())
    state = abstract_state(experiment.model, optimizer, mesh, state_spec(experiment))
    T, P, part = experiment.sampling.max_tokens, experiment.max_prompt_tokens, N // experiment.sampling_batches
    sample = compile_sampler(experiment.model, both.sampler, K, T)
    prompts = Prompts(_shape(jnp.int32, part, P), _shape(jnp.int32, part), _shape(jnp.int32, part))
    key = jax.eval_shape(lambda: prng.key(0, Purpose.ROLLOUT))
    values = jax.eval_shape(lambda: experiment.sampling.values((), T))
    weights = meshes.weight_shardings(both.sampler, weight_table(experiment.model))
    params = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), policy_of(state), weights
    )
    arguments = (params, prompts, key, values)
    rollout = jax.tree.map(
        lambda x: _shape(x.dtype, x.shape[0] * experiment.sampling_batches, *x.shape[1:]),
        sample.eval_shape(*arguments),  # type: ignore[attr-defined]
    )
    made = {name: shape for name, shape in _fields(experiment).items() if name in learning.fields.names}
    reward = _shape(jnp.float32, N * K)
    batch, _ = jax.eval_shape(learning.build_batch, rollout, reward, made, state.moments, state.coefficients)
    return Abstract(
        experiment, both, learning, state, rollout, batch, sample, arguments, _on_conversations(experiment, mesh)
    )


def conversations(experiment: Experiment) -> Conversations | None:
    """The file that a warm start learns from, where there is one."""
    return experiment.warm_start.demonstrations if experiment.warm_start else None


def _on_conversations(experiment: Experiment, mesh: Mesh) -> OnConversations | None:
    model, warm_start, file = experiment.model, experiment.warm_start, conversations(experiment)
    if warm_start is None or file is None:
        return None
    optimizer = warm_start.optimizer.build(experiment.warm_steps)
    update = compile_packed_step(model, optimizer, mesh, file.micro_batches)
    sizes = file.rows_per_step, file.row_tokens
    rows = Packed(_shape(jnp.int32, *sizes), _shape(jnp.int32, *sizes), _shape(jnp.float32, *sizes))
    return OnConversations(update, abstract_state(model, optimizer, mesh), rows)


def _shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _fields(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the fields that a batch may get besides its rollout and rewards (`rl_llm.update.batch_fields`)."""
    B, T = experiment.prompts_per_step * experiment.responses_per_prompt, experiment.sampling.max_tokens
    sources = [source for source in (experiment.teacher, experiment.reference) if source is not None]
    k = max((source.top_tokens for source in sources), default=0)
    tokens, rows = _shape(jnp.float32, B, T), _shape(jnp.float32, B)
    several = _shape(jnp.float32, B, T, k)
    return {
        **dict.fromkeys(("old_logp", "sampler_logp", "ref_logp", "value"), tokens),
        **dict.fromkeys(("greedy_reward", "kl_baseline"), rows),
        "rewards": _shape(jnp.float32, B, len(experiment.reward.names)),
        "teacher_tokens": _shape(jnp.int32, B, T, k),
        **dict.fromkeys(("teacher_logp", "old_top_logp"), several),
    }


def update_state(state: TrainState) -> TrainState:
    """The state as an update gets it: what is replayed, a reference and the parameters of past steps stay outside."""
    return replace(state, replay=None, past=None, reference=None)


def lowered(made: Abstract) -> Mapping[str, Callable[[], Any]]:
    """The programs of a step, and that of a step on conversations before RL, by name: each lowers one to what the
    compiler takes.
    """
    temperature, update = _shape(jnp.float32), _shape(jnp.int32)
    state = update_state(made.state)
    programs: dict[str, Callable[[], Any]] = {
        "sample": lambda: made.sample.lower(*made.sampler_arguments),  # type: ignore[attr-defined]
        "update": lambda: made.learning.train_step.lower(state, made.batch, update, temperature, None),
    }
    if {"old_logp", "ref_logp"} & made.learning.fields.names:
        logps = made.learning.fields.logps
        programs["log-probabilities"] = lambda: logps.lower(policy_of(made.state), made.rollout, temperature)  # type: ignore[attr-defined]
    if (warm := made.warm_start) is not None:
        programs[WARM_START] = lambda: warm.update.lower(warm.state, warm.rows)
    return programs


def mesh_of(made: Abstract, name: str) -> Mesh:
    """Where a program runs."""
    return made.meshes.sampler if name == "sample" else made.meshes.learner


def compile_program(name: str, lower: Callable[[], Any], mesh: Mesh) -> Program:
    """Compile one program and read what it needs."""
    start = time.perf_counter()
    try:
        compiled = lower().compile(compiler_options={"optimization_level": EFFORT})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - start
        return Program(name, 0, 0, wanted_bytes(str(error)), (), seconds, str(error).splitlines()[0])
    memory = compiled.memory_analysis()
    found = collectives(compiled.as_text(), dict(mesh.shape))
    seconds = time.perf_counter() - start
    return Program(
        name,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes,
        tuple(found),
        seconds,
    )


def wanted_bytes(message: str) -> int:
    """How much memory a program would have needed, by the compiler's message on why it will not have it."""
    wanted = re.search(r"\(([\d.]+)([KMG])\) exceeds available|Used ([\d.]+)([KMG]) of", message)
    if wanted is None:
        return 0
    amount, unit = [part for part in wanted.groups() if part]
    return int(float(amount) * 2 ** {"K": 10, "M": 20, "G": 30}[unit])


def bytes_per_chip(tree: Any) -> int:
    """Memory of a chip that its part of arrays takes, by their shapes and shardings."""

    def part(x: jax.ShapeDtypeStruct) -> int:
        if x.sharding is not None and x.sharding.memory_kind == meshes.HOST:
            return 0
        shape = x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape
        size = jnp.dtype(x.dtype).itemsize
        for dimension in shape:
            size *= dimension
        return size

    return sum(part(x) for x in jax.tree.leaves(tree))


def cache_bytes_per_chip(experiment: Experiment, mesh: Mesh) -> int:
    """Keys and values of the responses that are sampled in one call and of their prompts, as the sampler keeps them."""
    config, shape = experiment.model, mesh.shape
    itemsize = jnp.dtype(config.compute_dtype).itemsize
    per_slot = 2 * config.layers * config.kv_heads * config.head_width * itemsize
    part = experiment.prompts_per_step // experiment.sampling_batches
    prompts = part * experiment.max_prompt_tokens
    responses = part * experiment.responses_per_prompt * experiment.sampling.max_tokens
    ways = meshes.data_parallel_size(mesh) * shape["tensor"]
    return per_slot * (prompts + responses) // ways


def copied_bytes_per_chip(experiment: Experiment, mesh: Mesh) -> int:
    """The weights as sampling reads them, made once per call: those of layers in the compute type, and all of them
    whole along `fsdp`.
    """
    compute = jnp.dtype(experiment.model.compute_dtype).itemsize

    def copied(path: str, weight: Weight) -> int:
        in_layers = path.startswith("layers/")
        if not in_layers and (mesh.shape["fsdp"] == 1 or "width" not in weight.axes):
            return 0
        itemsize = compute if in_layers and len(weight.shape) > 2 else 4
        axes = [meshes.RULES[name] for name in weight.axes if name]
        ways = prod(mesh.shape[axis] for axis in axes if axis != "fsdp")
        return itemsize * prod(weight.shape) // ways

    return sum(copied(path, weight) for path, weight in weight_table(experiment.model).items())
