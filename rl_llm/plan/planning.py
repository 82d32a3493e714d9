"""A plan: an experiment's programs on one mesh of a slice, whether they fit, what to change if not, what it costs."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax

from rl_llm.experiment import Conversations, Experiment
from rl_llm.learner.state import policy_of
from rl_llm.model import split_params
from rl_llm.parallel.mesh import MeshShape, make_meshes
from rl_llm.parallel.transfer import bytes_at_once
from rl_llm.plan.cost import Cost, Efficiency, cost, sent_by_programs
from rl_llm.plan.errors import PlanError
from rl_llm.plan.programs import (
    GIB,
    WARM_START,
    Abstract,
    Program,
    abstract,
    bytes_per_chip,
    cache_bytes_per_chip,
    compile_program,
    conversations,
    copied_bytes_per_chip,
    lowered,
    mesh_of,
    update_state,
)
from rl_llm.plan.topology import Topology

SENDING = "weights to the sampler"


@dataclass(frozen=True)
class Need:
    """What one program needs of every chip, in GiB. `beside`: what stays on the chip while the program runs without
    being its argument. `cache`, and `copied`, the weights in the form that sampling reads them in, are a part of the
    temporaries.
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
    """The outcome for one mesh. `needs` and `programs` by the program's name."""

    experiment: Experiment
    topology: Topology
    programs: dict[str, Program]
    needs: dict[str, Need]
    cost: Cost
    efficiency: Efficiency
    advice: str | None

    @property
    def fits(self) -> bool:
        """Whether every program has the memory it needs."""
        return self.advice is None


def make_plan(
    experiment: Experiment,
    topology: Topology,
    devices: list[jax.Device],
    efficiency: Efficiency,
    compiling: Callable[[str], None] = lambda name: None,
    steps: int | None = None,
) -> Plan:
    """Compile an experiment's programs for its mesh on a slice. Raises PlanError where they do not divide over it, or
    where the compiler does not take the part of it that a `sampler_mesh` leaves to one.
    """
    try:
        both = make_meshes(experiment.mesh, experiment.sampler_mesh, devices)
    except ValueError as error:
        raise PlanError(str(error)) from error
    if both.apart and both.learner.size == both.sampler.size and not topology.takes_halves:
        raise PlanError(
            f"the compiler does not take half of every host's chips on {topology.name}: give a sampler_mesh other than "
            f"{both.sampler.size} of {topology.chips} chips"
        )
    experiment = replace(experiment, mesh=MeshShape(**both.learner.shape))
    made = abstract(experiment, both)
    programs = {}
    for name, lower in lowered(made).items():
        compiling(name)
        try:
            programs[name] = compile_program(name, lower, mesh_of(made, name))
        except jax.errors.JaxRuntimeError as error:
            if not both.apart:
                raise
            # libtpu compiles for some parts of a slice and not for others (RET_CHECK in net_util.cc).
            raise PlanError(
                f"{name}: the compiler does not take the {mesh_of(made, name).size} of {topology.chips} chips that "
                f"sampler_mesh={experiment.sampler_mesh} leaves to it; set sampler_mesh=None. It said: "
                f"{str(error).splitlines()[0]}"
            ) from error
    needs = {name: _need(made, program) for name, program in programs.items()}
    if both.apart and len({device.process_index for device in devices}) > 1:
        needs[SENDING] = _need_to_send(made)
    passes = made.learning.passes(experiment.pretraining_steps)
    learner, sampler = MeshShape(**both.learner.shape), MeshShape(**both.sampler.shape)
    sent = sent_by_programs(experiment, programs, efficiency)
    costs = cost(experiment, topology, learner, sampler, sent, passes, efficiency)
    costs = replace(costs, steps=steps or experiment.steps)
    return Plan(experiment, topology, programs, needs, costs, efficiency, _advice(made, topology, programs, needs))


def _need(made: Abstract, program: Program) -> Need:
    apart = made.meshes.apart and program.name == "sample"
    state = made.warm_start.state if made.warm_start and program.name == WARM_START else made.state
    parameters = bytes_per_chip(made.sampler_arguments[0] if apart else policy_of(state))
    everything = _of_sampler(made) if apart else bytes_per_chip(state)
    updates = program.name in ("update", WARM_START)
    arguments = bytes_per_chip(update_state(state)) if updates else parameters
    beside = everything - arguments
    cache = copied = 0
    if program.name == "sample":
        cache = cache_bytes_per_chip(made.experiment, made.meshes.sampler)
        copied = copied_bytes_per_chip(made.experiment, made.meshes.sampler)
    peak = beside + (program.peak if program.failure is None else arguments + program.peak)
    batch = max(0, program.arguments - arguments)
    sizes = (parameters, everything - parameters, beside, batch, cache, copied, program.temporaries, peak)
    return Need(*(size / GIB for size in sizes))


def evaluates_ahead(experiment: Experiment) -> bool:
    """Whether a sampler on chips of its own has what is trained twice: while it answers ahead, newer parameters are
    evaluated.
    """
    return experiment.staleness > 0 and experiment.evaluation.every > 0


def _of_sampler(made: Abstract) -> int:
    """Bytes of all parameters that a chip of such a sampler has; what is frozen it has once."""
    params = made.sampler_arguments[0]
    trained, _ = split_params(made.experiment.model, params)
    return bytes_per_chip(params) + (bytes_per_chip(trained) if evaluates_ahead(made.experiment) else 0)


def _need_to_send(made: Abstract) -> Need:
    """What a learner's chip has while several processes send the weights to the sampler's chips."""
    params, there = policy_of(made.state), jax.tree.map(lambda x: x.sharding, made.sampler_arguments[0])
    parameters, everything, sent = bytes_per_chip(params), bytes_per_chip(made.state), bytes_at_once(params, there)
    sizes = (parameters, everything - parameters, 0, 0, 0, 0, sent, everything + sent)
    return Need(*(size / GIB for size in sizes))


def _advice(made: Abstract, topology: Topology, programs: dict[str, Program], needs: dict[str, Need]) -> str | None:
    """The first thing to change where a program does not fit; None where all do."""
    failed = {name for name, program in programs.items() if program.failure is not None}
    tight = [name for name, need in needs.items() if name in failed or need.peak > topology.usable_gib]
    if not tight:
        return None
    name = max(tight, key=lambda name: needs[name].peak)
    need, experiment, shape = needs[name], made.experiment, mesh_of(made, name).shape
    if need.parameters + need.state > 0.5 * topology.usable_gib:
        return advice_on_state(made, name, need)
    if name == SENDING:
        return f"{name}: {need.temporaries:.1f} GiB of weights are whole for a moment: set sampler_mesh=None"
    if name == "sample":
        return advice_on_cache(made, topology, need, name in failed)
    ways = shape["data"] * shape["fsdp"]
    prompts = experiment.prompts_per_step // (experiment.updates_per_rollout * experiment.micro_batches)
    if getattr(experiment.model, "remat", "nothing") == "nothing":
        return f"{name}: compute activations again instead of keeping them, --set model.remat=layers"
    if name == WARM_START and (file := conversations(experiment)):
        return _advice_on_rows(file, ways)
    if name == "update" and prompts % (2 * ways) == 0:
        return f"{name}: smaller micro-batches, --set micro_batches={2 * experiment.micro_batches}"
    if ways > 1 and shape["tensor"] < experiment.model.kv_heads:
        return f"{name}: a micro-batch has one prompt for each of {ways} chips already: tensor={2 * shape['tensor']}"
    return f"{name}: shorter responses (sampling.max_tokens={experiment.sampling.max_tokens}), or a larger slice"


def advice_on_state(made: Abstract, name: str, need: Need) -> str:
    """What to change where parameters, and what else lasts, take most of the chips that a program runs on."""
    shape, of_sampler = mesh_of(made, name).shape, made.meshes.apart and name == "sample"
    what = "parameters" if of_sampler else "parameters and optimizer"
    said, fsdp = f"{what} take {need.parameters + need.state:.1f} GiB of every chip", shape["fsdp"] * shape["data"]
    if shape["data"] == 1:
        return f"{said} although spread over all: a larger {'sampler_mesh' if of_sampler else 'slice'}"
    flags = f"--mesh data=1,fsdp={fsdp},tensor={shape['tensor']}"
    if of_sampler:
        flags = f"--set sampler_mesh.data=1 --set sampler_mesh.fsdp={fsdp}"
    return f"{said}: spread them over more chips, {flags}"


def advice_on_cache(made: Abstract, topology: Topology, need: Need, failed: bool) -> str:
    """What to change where responses do not fit beside the rest."""
    experiment, shape = made.experiment, made.meshes.sampler.shape
    tensor = "sampler_mesh.tensor" if made.meshes.apart else "tensor"
    rest = need.parameters + need.state if failed else need.peak - need.cache
    times, most = 2, experiment.prompts_per_step // (shape["data"] * shape["fsdp"] * experiment.sampling_batches)
    while need.cache / times + rest > 0.9 * topology.usable_gib and times < most:
        times *= 2
    rows = experiment.prompts_per_step * experiment.responses_per_prompt // experiment.sampling_batches
    said = (
        f"the keys and values of {rows} responses of {experiment.sampling.max_tokens} tokens take {need.cache:.1f} "
        f"GiB of every chip"
    )
    if most < 2:
        return f"{said}, and each has one prompt already: {tensor}={2 * shape['tensor']}, or a larger slice"
    return f"{said}: sample fewer at a time, --set sampling_batches={times * experiment.sampling_batches}"


def _advice_on_rows(file: Conversations, ways: int) -> str:
    if (file.rows_per_step // file.micro_batches) % (2 * ways) == 0:
        more = 2 * file.micro_batches
        return f"{WARM_START}: smaller micro-batches, --set warm_start.demonstrations.micro_batches={more}"
    return (
        f"{WARM_START}: a micro-batch has one row for each of {ways} chips already: shorter rows "
        f"(warm_start.demonstrations.row_tokens={file.row_tokens}), fewer data x fsdp, or a larger slice"
    )


def on_mesh(
    experiment: Experiment, shape: MeshShape, micro_batches: int | None = None, sampling_batches: int | None = None
) -> Experiment:
    """The experiment on another mesh, cut in other parts."""
    return replace(
        experiment,
        mesh=shape,
        micro_batches=micro_batches or experiment.micro_batches,
        sampling_batches=sampling_batches or experiment.sampling_batches,
    )
