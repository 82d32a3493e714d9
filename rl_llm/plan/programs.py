"""An experiment's own programs (sampler, log-probabilities, updates), compiled for devices that may be absent."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from rl_llm import prng
from rl_llm.experiment import Conversations, Experiment
from rl_llm.learner.packing import compile_packed_step
from rl_llm.learner.state import Update, abstract_state, policy_of
from rl_llm.model import ModelConfig, Weight, weight_table
from rl_llm.parallel.mesh import HOST, RULES, Meshes, data_parallel_size, weight_shardings
from rl_llm.parallel.programs import BoundProgram
from rl_llm.parallel.transfer import bytes_of, entries_at_once
from rl_llm.plan.collectives import Collective, read_collectives
from rl_llm.prepare import check_shares
from rl_llm.prng import Purpose
from rl_llm.runs.load import SourceModels
from rl_llm.runs.state import graded_shape, state_spec
from rl_llm.sampler import compile_sampler, prompts_shape
from rl_llm.types import Batch, Packed, Rollout, TrainState
from rl_llm.update.step import Learning, compile_learning

GIB = 2**30
WARM_START = "warm start"  # the program of an update on a file of conversations
EFFORT = 9  # XLA's EFFORT_O0: compiles in a fifth of the default time, to much the same memory


@dataclass(frozen=True)
class CompiledProgram:
    """Needs of a compiled program, in bytes per chip: arguments, temporaries and peak memory.

    If it ran out of memory while compiling, `failure` is the compiler's reason, `peak` the memory that the compiler
    asked for, and the rest is empty.
    """

    name: str
    arguments: int
    temporaries: int
    peak: int
    collectives: tuple[Collective, ...]
    seconds_to_compile: float
    failure: str | None = None


@dataclass(frozen=True)
class ConversationUpdate:
    """The update of a warm start on a file of conversations, and the shapes of its arguments."""

    file: Conversations
    update: Update
    state: TrainState
    rows: Packed


@dataclass(frozen=True)
class AbstractRun:
    """An experiment's traced programs, and the shapes, dtypes and shardings of their arguments.

    `sampler_arguments` lie on the sampler's mesh. `warm_start` is None unless RL begins after a file of conversations.
    """

    experiment: Experiment
    meshes: Meshes
    learning: Learning
    state: TrainState
    rollout: Rollout
    batch: Batch
    sample: BoundProgram
    sampler_arguments: tuple
    warm_start: ConversationUpdate | None

    def mesh_of(self, name: str) -> Mesh:
        """The mesh that a program runs on."""
        return self.meshes.sampler if name == "sample" else self.meshes.learner

    def lowerings(self) -> Mapping[str, Callable[[], Any]]:
        """Functions that lower each program of a step for the compiler, by name, and that of the warm start."""
        temperature, update = _shape(jnp.float32), _shape(jnp.int32)
        state = update_state(self.state)
        programs: dict[str, Callable[[], Any]] = {
            "sample": lambda: self.sample.lower(*self.sampler_arguments),
            "update": lambda: self.learning.train_step.lower(state, self.batch, update, temperature, None),
        }
        if {"old_logp", "ref_logp"} & self.learning.fields.names:
            logps = self.learning.fields.logps
            programs["log-probabilities"] = lambda: logps.lower(policy_of(self.state), self.rollout, temperature)  # type: ignore[attr-defined]
        if (warm := self.warm_start) is not None:
            programs[WARM_START] = lambda: warm.update.lower(warm.state, warm.rows)
        return programs


def trace_programs(experiment: Experiment, meshes: Meshes) -> AbstractRun:
    """Trace an experiment's programs. Raises ValueError if its sizes do not divide over a mesh."""
    K, T, mesh = experiment.responses_per_prompt, experiment.sampling.max_tokens, meshes.learner
    check_shares(experiment, *map(data_parallel_size, (meshes.learner, meshes.sampler)))
    state = abstract_state(experiment.model, experiment.policy_optimizer, mesh, state_spec(experiment))
    teacher = None if experiment.teacher is None else (experiment, policy_of(state))  # stands for the teacher's shapes
    learning = compile_learning(experiment, 0, mesh, SourceModels(teacher=teacher), ())
    prompts = prompts_shape(experiment.prompts_per_step // experiment.sampling_batches, experiment.max_prompt_tokens)
    key = jax.eval_shape(lambda: prng.key(0, Purpose.ROLLOUT))
    values = jax.eval_shape(lambda: experiment.sampling.values((), T))
    weights = weight_shardings(meshes.sampler, weight_table(experiment.model))
    params = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), policy_of(state), weights
    )
    rollout = graded_shape(experiment)
    extra_fields = learning.fields.shapes(state, rollout)
    batch, _ = learning.make_batch.eval_shape(rollout, extra_fields, state.moments, state.coefficients)
    return AbstractRun(
        experiment,
        meshes,
        learning,
        state,
        rollout,
        batch,
        compile_sampler(experiment.model, meshes.sampler, K, T),
        (params, prompts, key, values),
        _conversation_update(experiment, mesh),
    )


def _conversation_update(experiment: Experiment, mesh: Mesh) -> ConversationUpdate | None:
    if experiment.warm_start is None or (file := experiment.warm_start.demonstrations) is None:
        return None
    model, optimizer = experiment.model, experiment.warm_optimizer
    update = compile_packed_step(model, optimizer, mesh, file.micro_batches)
    sizes = file.rows_per_step, file.row_tokens
    rows = Packed(_shape(jnp.int32, *sizes), _shape(jnp.int32, *sizes), _shape(jnp.float32, *sizes))
    return ConversationUpdate(file, update, abstract_state(model, optimizer, mesh), rows)


def _shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def update_state(state: TrainState) -> TrainState:
    """The part of the state that an update takes: no replayed rollouts, past parameters or reference."""
    return replace(state, replay=None, past=None, reference=None)


def compile_and_measure(name: str, lower: Callable[[], Any], mesh: Mesh) -> CompiledProgram:
    """Compile one program and read its memory and communication."""
    start = time.perf_counter()
    try:
        compiled = lower().compile(compiler_options={"optimization_level": EFFORT})
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        seconds = time.perf_counter() - start
        return CompiledProgram(name, 0, 0, wanted_bytes(message), (), seconds, message.splitlines()[0])
    memory = compiled.memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.peak_memory_in_bytes
    found = read_collectives(compiled.as_text(), dict(mesh.shape))
    return CompiledProgram(name, *sizes, tuple(found), time.perf_counter() - start)


def wanted_bytes(message: str) -> int:
    """Bytes of memory that an out-of-memory message of the compiler asks for; 0 if it names none."""
    wanted = re.search(r"\(([\d.]+)([KMG])\) exceeds available|Used ([\d.]+)([KMG]) of", message)
    if wanted is None:
        return 0
    amount, unit = [part for part in wanted.groups() if part]
    return int(float(amount) * 2 ** {"K": 10, "M": 20, "G": 30}[unit])


def bytes_per_chip(tree: Any) -> int:
    """Device memory that a chip's shards of abstract arrays take. Arrays in host memory count nothing."""

    def part(x: jax.ShapeDtypeStruct) -> int:
        if x.sharding is not None and x.sharding.memory_kind == HOST:
            return 0
        shape = x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape
        return prod(shape) * jnp.dtype(x.dtype).itemsize

    return sum(part(x) for x in jax.tree.leaves(tree))


def bytes_at_once(tree: Any, shardings: Any) -> int:
    """Peak bytes of `move` on a source device with several processes: part of an array, and a target's shard of it."""

    def part_bytes(array: Any, sharding: NamedSharding) -> int:
        count = entries_at_once(array, sharding)
        whole = bytes_of(array) if count is None else bytes_of(array) // array.shape[0] * count
        return whole + whole * prod(sharding.shard_shape(array.shape)) // max(1, array.size)

    return max(jax.tree.leaves(jax.tree.map(part_bytes, tree, shardings)))


def compute_itemsize(config: ModelConfig) -> int:
    """Bytes of a number in matrix products and in the KV cache."""
    return int(jnp.dtype(config.compute_dtype).itemsize)


def cache_slot_bytes(config: ModelConfig) -> int:
    """Bytes of the keys and values of one token, in all layers."""
    return 2 * config.layers * config.kv_heads * config.head_width * compute_itemsize(config)


def rollout_tokens(experiment: Experiment) -> int:
    """Most tokens that a rollout can have. A prompt counts once for all its responses."""
    responses = experiment.responses_per_prompt * experiment.sampling.max_tokens
    return experiment.prompts_per_step * (responses + experiment.max_prompt_tokens)


def cache_bytes_per_chip(experiment: Experiment, mesh: Mesh) -> int:
    """Size of the sampler's KV cache: the prompts of one sampling call and their responses."""
    tokens = rollout_tokens(experiment) // experiment.sampling_batches
    return cache_slot_bytes(experiment.model) * tokens // int(mesh.size)


def copied_bytes_per_chip(experiment: Experiment, mesh: Mesh) -> int:
    """Size of the copy of the weights that each sampling call makes.

    The weights of layers are cast to the compute dtype, and all weights are gathered along `fsdp`.
    """

    def copied(path: str, weight: Weight) -> int:
        in_layers = path.startswith("layers/")
        if not in_layers and (mesh.shape["fsdp"] == 1 or "width" not in weight.axes):
            return 0
        itemsize = compute_itemsize(experiment.model) if in_layers and len(weight.shape) > 2 else 4
        axes = [RULES[name] for name in weight.axes if name]
        ways = prod(mesh.shape[axis] for axis in axes if axis != "fsdp")
        return itemsize * prod(weight.shape) // ways

    return sum(copied(path, weight) for path, weight in weight_table(experiment.model).items())
