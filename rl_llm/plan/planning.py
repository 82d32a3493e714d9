"""Plans an experiment's programs on one mesh of a slice: do they fit, what to change if not, and the cost."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax

from rl_llm.experiment import Conversations, Experiment
from rl_llm.learner.state import policy_of
from rl_llm.model import split_params
from rl_llm.parallel.mesh import MeshShape, make_meshes
from rl_llm.plan import PlanError
from rl_llm.plan.cost import Efficiency, StepCost, sent_by_programs, step_cost
from rl_llm.plan.programs import (
    GIB,
    WARM_START,
    AbstractRun,
    CompiledProgram,
    bytes_at_once,
    bytes_per_chip,
    cache_bytes_per_chip,
    compile_and_measure,
    copied_bytes_per_chip,
    trace_programs,
    update_state,
)
from rl_llm.plan.topology import Topology

SENDING = "weights to the sampler"


@dataclass(frozen=True)
class Need:
    """Memory that one program needs on every chip, in GiB.

    `beside` is resident during the program without being its argument. `cache` (KV cache) and `copied` (the weights in
    the form that sampling reads) are a part of `temporaries`.
    """

    parameters: float
    state: float
    beside: float
    batch: float
    cache: float
    copied: float
    temporaries: float
    peak: float


@dataclass(frozen=True)
class Plan:
    """The plan for one mesh. `programs` and `needs` are keyed by the program's name; `advice` is None if it fits."""

    experiment: Experiment
    topology: Topology
    programs: dict[str, CompiledProgram]
    needs: dict[str, Need]
    cost: StepCost
    efficiency: Efficiency
    advice: str | None

    @property
    def fits(self) -> bool:
        """Whether every program fits into memory."""
        return self.advice is None


def make_plan(
    experiment: Experiment,
    topology: Topology,
    devices: list[jax.Device],
    efficiency: Efficiency,
    compiling: Callable[[str], None] = lambda name: None,
    steps: int | None = None,
) -> Plan:
    """Compile an experiment's programs for its mesh on a slice; `compiling` is called with each program's name.

    Raises PlanError if its sizes do not divide over the mesh, or if the compiler rejects the part of the slice that a
    `sampler_mesh` leaves to a program.
    """
    try:
        meshes = make_meshes(experiment.mesh, experiment.sampler_mesh, devices)
        experiment = replace(experiment, mesh=MeshShape(**meshes.learner.shape))
        run = trace_programs(experiment, meshes)
    except ValueError as error:
        raise PlanError(str(error)) from error
    if meshes.apart and meshes.learner.size == meshes.sampler.size and not topology.accepts_halves:
        raise PlanError(
            f"sampler_mesh takes {meshes.sampler.size} of {topology.chips} chips; the compiler does not accept half of "
            f"every host's chips on {topology.name}: give it another number"
        )
    programs = {}
    for name, lower in run.lowerings().items():
        compiling(name)
        try:
            programs[name] = compile_and_measure(name, lower, run.mesh_of(name))
        except jax.errors.JaxRuntimeError as error:
            if not meshes.apart:
                raise
            # libtpu compiles for some parts of a slice and not for others (RET_CHECK in net_util.cc).
            raise PlanError(
                f"{name}: the compiler does not accept the {run.mesh_of(name).size} of {topology.chips} chips that "
                f"sampler_mesh={experiment.sampler_mesh} leaves to it; set sampler_mesh=None. The compiler's message: "
                f"{str(error).splitlines()[0]}"
            ) from error
    needs = {name: _need(run, program) for name, program in programs.items()}
    if meshes.apart and len({device.process_index for device in devices}) > 1:
        needs[SENDING] = _need_to_send(run)
    passes = run.learning.passes(experiment.pretraining_steps)
    sampler = MeshShape(**meshes.sampler.shape)
    sent = sent_by_programs(experiment, programs, efficiency)
    cost = step_cost(experiment, topology, sampler, sent, passes, efficiency)
    cost = replace(cost, steps=steps or experiment.steps)
    return Plan(experiment, topology, programs, needs, cost, efficiency, _advice(run, topology, programs, needs))


def _need(run: AbstractRun, program: CompiledProgram) -> Need:
    on_sampler = run.meshes.apart and program.name == "sample"
    state = run.warm_start.state if run.warm_start and program.name == WARM_START else run.state
    parameters = bytes_per_chip(run.sampler_arguments[0] if on_sampler else policy_of(state))
    resident = _sampler_param_bytes(run) if on_sampler else bytes_per_chip(state)
    arguments = bytes_per_chip(update_state(state)) if program.name in ("update", WARM_START) else parameters
    beside = resident - arguments
    cache = copied = 0
    if program.name == "sample":
        cache = cache_bytes_per_chip(run.experiment, run.meshes.sampler)
        copied = copied_bytes_per_chip(run.experiment, run.meshes.sampler)
    peak = beside + (program.peak if program.failure is None else arguments + program.peak)
    batch = max(0, program.arguments - arguments)
    sizes = (parameters, resident - parameters, beside, batch, cache, copied, program.temporaries, peak)
    return Need(*(size / GIB for size in sizes))


def evaluates_ahead(experiment: Experiment) -> bool:
    """Whether a separate sampler holds the trained parameters twice.

    It does if the current parameters are evaluated while it still samples ahead with older ones.
    """
    return experiment.staleness > 0 and experiment.evaluation.every > 0


def _sampler_param_bytes(run: AbstractRun) -> int:
    """Parameter bytes per chip of a separate sampler. Frozen weights count once."""
    params = run.sampler_arguments[0]
    trained, _ = split_params(run.experiment.model, params)
    return bytes_per_chip(params) + (bytes_per_chip(trained) if evaluates_ahead(run.experiment) else 0)


def _need_to_send(run: AbstractRun) -> Need:
    """Memory on a learner chip while several processes send the weights to the sampler's chips."""
    params, there = policy_of(run.state), jax.tree.map(lambda x: x.sharding, run.sampler_arguments[0])
    parameters, resident, sent = bytes_per_chip(params), bytes_per_chip(run.state), bytes_at_once(params, there)
    sizes = (parameters, resident - parameters, 0, 0, 0, 0, sent, resident + sent)
    return Need(*(size / GIB for size in sizes))


def _advice(
    run: AbstractRun, topology: Topology, programs: dict[str, CompiledProgram], needs: dict[str, Need]
) -> str | None:
    """The first thing to change if a program does not fit; None if all fit."""
    failed = {name for name, program in programs.items() if program.failure is not None}
    tight = [name for name, need in needs.items() if name in failed or need.peak > topology.usable_gib]
    if not tight:
        return None
    name = max(tight, key=lambda name: needs[name].peak)
    need, experiment, shape = needs[name], run.experiment, run.mesh_of(name).shape
    if need.parameters + need.state > 0.5 * topology.usable_gib:
        return advice_on_state(run, name, need)
    if name == SENDING:
        return f"{name}: {need.temporaries:.1f} GiB of weights are gathered at once: set sampler_mesh=None"
    if name == "sample":
        return advice_on_cache(run, topology, need, name in failed)
    ways = shape["data"] * shape["fsdp"]
    prompts = experiment.prompts_per_step // (experiment.updates_per_rollout * experiment.micro_batches)
    if experiment.model.remat == "nothing":
        return f"{name}: recompute activations instead of keeping them, --set model.remat=layers"
    if name == WARM_START and run.warm_start:
        return _advice_on_rows(run.warm_start.file, ways)
    if name == "update" and prompts % (2 * ways) == 0:
        return f"{name}: use smaller micro-batches, --set micro_batches={2 * experiment.micro_batches}"
    if ways > 1 and shape["tensor"] < experiment.model.kv_heads:
        return f"{name}: a micro-batch already has one prompt per chip ({ways} chips): use tensor={2 * shape['tensor']}"
    return f"{name}: use shorter responses (sampling.max_tokens={experiment.sampling.max_tokens}) or a larger slice"


def advice_on_state(run: AbstractRun, name: str, need: Need) -> str:
    """Advice if parameters and other resident state take most of the memory of a program's chips."""
    shape, on_sampler = run.mesh_of(name).shape, run.meshes.apart and name == "sample"
    what = "parameters" if on_sampler else "parameters and optimizer"
    said, fsdp = f"{what} take {need.parameters + need.state:.1f} GiB of every chip", shape["fsdp"] * shape["data"]
    if shape["data"] == 1:
        return f"{said} although sharded over all: use a larger {'sampler_mesh' if on_sampler else 'slice'}"
    flags = f"--mesh data=1,fsdp={fsdp},tensor={shape['tensor']}"
    if on_sampler:
        flags = f"--set sampler_mesh.data=1 --set sampler_mesh.fsdp={fsdp}"
    return f"{said}: shard them over more chips, {flags}"


def advice_on_cache(run: AbstractRun, topology: Topology, need: Need, failed: bool) -> str:
    """Advice if the KV cache does not fit beside everything else."""
    experiment, shape = run.experiment, run.meshes.sampler.shape
    tensor = "sampler_mesh.tensor" if run.meshes.apart else "tensor"
    rest = need.parameters + need.state if failed else need.peak - need.cache
    times, most = 2, experiment.prompts_per_step // (shape["data"] * shape["fsdp"] * experiment.sampling_batches)
    while need.cache / times + rest > 0.9 * topology.usable_gib and times < most:
        times *= 2
    rows = experiment.prompts_per_step * experiment.responses_per_prompt // experiment.sampling_batches
    said = (
        f"the KV cache of {rows} responses of {experiment.sampling.max_tokens} tokens takes {need.cache:.1f} GiB of "
        "every chip"
    )
    if most < 2:
        return f"{said}, and each already has a single prompt: use {tensor}={2 * shape['tensor']} or a larger slice"
    return f"{said}: sample fewer at a time, --set sampling_batches={times * experiment.sampling_batches}"


def _advice_on_rows(file: Conversations, ways: int) -> str:
    if (file.rows_per_step // file.micro_batches) % (2 * ways) == 0:
        more = 2 * file.micro_batches
        return f"{WARM_START}: use smaller micro-batches, --set warm_start.demonstrations.micro_batches={more}"
    return (
        f"{WARM_START}: a micro-batch already has one row per chip ({ways} chips): use shorter rows "
        f"(warm_start.demonstrations.row_tokens={file.row_tokens}), fewer data x fsdp, or a larger slice"
    )
