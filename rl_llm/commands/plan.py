"""`rl-llm plan`: predict the needs of an experiment on a TPU slice, without a TPU."""

import argparse
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rl_llm.commands.common import UsageError, add_experiment, check_output, positive, resolve_experiment, share
from rl_llm.config.terminal import make_console
from rl_llm.plan import PlanError
from rl_llm.plan.environment import compile_only

if TYPE_CHECKING:
    from rl_llm.experiment import Experiment
    from rl_llm.parallel.mesh import MeshShape
    from rl_llm.plan.planning import Plan
    from rl_llm.plan.search import Candidate

SUMMARY = "predict memory, time and cost on a TPU slice, without a TPU"
FITS, DOES_NOT_FIT = 0, 1
COMPILED = 4  # candidates of a search that are compiled by default

EXAMPLES = """examples:
  rl-llm plan experiments/qwen3_4b_gsm8k.py:paper --topology v6e:4x4
  rl-llm plan experiments/qwen3_4b_gsm8k.py:paper --topology v5p:2x2x4 --mesh data=1,fsdp=4,tensor=4 --json plan.json
  rl-llm plan experiments/qwen3_4b_gsm8k.py:paper --topology v6e:8x8 --search

exit codes: 0 fits, 1 does not fit, 2 wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan`."""
    add_experiment(parser)
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="a TPU slice, such as v6e:4x4")
    parser.add_argument("--mesh", metavar="AXIS=N,...", help="mesh to plan for (default: the experiment's)")
    parser.add_argument("--search", action="store_true", help="try meshes and numbers of batches, and recommend one")
    candidates = f"with --search: compile the N most promising candidates (default: {COMPILED})"
    parser.add_argument("--candidates", type=positive, metavar="N", help=candidates)
    parser.add_argument("--steps", type=positive, metavar="N", help="RL steps of the run (default: the experiment's)")
    for name, default, peak in (
        ("compute", 0.4, "peak FLOP/s"),
        ("memory", 0.7, "memory bandwidth"),
        ("network", 0.7, "network bandwidth"),
    ):
        assumed = f"share of the {peak} that programs are assumed to reach (default: {default})"
        parser.add_argument(f"--{name}-efficiency", type=share, default=default, metavar="SHARE", help=assumed)
    length = "mean response length as a share of the longest (default: 1, the worst case)"
    parser.add_argument("--mean-length", type=share, default=1.0, metavar="SHARE", help=length)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the plan to this file")


def parse_mesh(text: str) -> "MeshShape":
    """ "data=2,fsdp=4" -> MeshShape(2, 4, 1). Raises PlanError."""
    from rl_llm.parallel.mesh import MeshShape

    sizes: dict[str, int] = {}
    known = [field.name for field in fields(MeshShape)]
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in known or name in sizes or not size.lstrip("-").isdecimal():
            raise PlanError(f"--mesh {text}: {part!r} is not one of {', '.join(f'{n}=N' for n in known)}, each once")
        sizes[name] = int(size)
    try:
        return MeshShape(**{"data": -1 if -1 not in sizes.values() else 1, **sizes})
    except ValueError as error:
        raise PlanError(f"--mesh {text}: {error}") from error


def run(arguments: argparse.Namespace) -> int:
    """Compile an experiment's own programs for a TPU slice on this machine.

    Prints memory and communication per chip, the estimated time of a step, and the cost of the run. This needs the TPU
    compiler (pip install 'rl-llm[tpu]') but no TPU. The weights of a teacher or of a reward model, which belong to
    other runs, are not counted.
    """
    try:
        return _run(arguments)
    except PlanError as error:
        raise UsageError(str(error)) from error


def _run(arguments: argparse.Namespace) -> int:
    from rl_llm.plan.topology import parse_topology, topology_devices

    topology = parse_topology(arguments.topology)
    _check_chosen_once(arguments)
    if arguments.candidates is not None and not arguments.search:
        raise PlanError(f"--candidates {arguments.candidates} cannot act without --search")
    check_output("json", arguments.json, overwrite=True)
    compile_only()
    from rl_llm.plan.cost import Efficiency
    from rl_llm.plan.planning import make_plan
    from rl_llm.plan.report import as_json, show
    from rl_llm.plan.search import candidates
    from rl_llm.runs.progress import Progress

    _, experiment = resolve_experiment(arguments.experiment, arguments.overrides)
    devices, shares = topology_devices(topology), ("compute_efficiency", "memory_efficiency", "network_efficiency")
    efficiency = Efficiency(*(getattr(arguments, name) for name in (*shares, "mean_length")))

    def plan_one(changed: "Experiment", compiling: Callable[[str], None] = lambda name: None) -> "Plan":
        return make_plan(changed, topology, devices, efficiency, compiling, arguments.steps)

    count = 1
    if arguments.search:
        promising = candidates(experiment, topology, efficiency)[: arguments.candidates or COMPILED]
        plan, count = _best(experiment, promising, plan_one)
    else:
        planned = replace(experiment, mesh=parse_mesh(arguments.mesh)) if arguments.mesh else experiment
        with Progress() as display:
            plan = plan_one(planned, lambda name: display.say(f"compiling {name} ..."))
    console = make_console()
    show(plan, console)
    if arguments.search:
        shape = plan.experiment.mesh
        console.print(
            f"recommended, of {count} that were compiled: --mesh data={shape.data},fsdp={shape.fsdp},"
            f"tensor={shape.tensor} --set micro_batches={plan.experiment.micro_batches} --set "
            f"sampling_batches={plan.experiment.sampling_batches}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(plan), indent=2) + "\n")
    return FITS if plan.fits else DOES_NOT_FIT


def _check_chosen_once(arguments: argparse.Namespace) -> None:
    """Refuse to set a value that --search or --mesh chooses."""
    if arguments.search and arguments.mesh:
        raise PlanError(f"--search chooses the mesh: leave out --mesh {arguments.mesh}")
    chosen = ("mesh", "micro_batches", "sampling_batches") if arguments.search else ("mesh",) if arguments.mesh else ()
    for override in arguments.overrides:
        if (name := override.partition("=")[0].partition(".")[0].strip()) in chosen:
            by = "--search" if arguments.search else "--mesh"
            raise PlanError(f"{by} chooses {name}: leave out --set {override}")


def _best(
    experiment: "Experiment", promising: "list[Candidate]", plan_one: "Callable[[Experiment], Plan]"
) -> "tuple[Plan, int]":
    """The best plan among candidates, and the number of candidates that the compiler accepted.

    The best is the fastest that fits, or else the one that needs least memory. Raises PlanError if none is accepted.
    """
    from rl_llm.runs.progress import Progress

    plans: list[Plan] = []
    rejected = None
    with Progress() as display, display.phase("meshes compiled", len(promising)) as phase:
        for done, one in enumerate(promising, 1):
            sizes = {name: getattr(one, name) for name in ("mesh", "micro_batches", "sampling_batches")}
            said = ", ".join(f"{name}={size}" for name, size in sizes.items())
            display.say(f"compiling for {said}; estimate: {one.gib:.0f} GiB per chip, {one.seconds:.1f} s a step ...")
            try:
                plans.append(plan_one(replace(experiment, **sizes)))
            except PlanError as error:  # about the part of the slice that a `sampler_mesh` leaves
                display.say(f"refused: {error}")
                rejected = error
            phase.update(done)
    if rejected and not plans:
        raise rejected
    if fitting := [plan for plan in plans if plan.fits]:
        return min(fitting, key=lambda plan: plan.cost.seconds), len(plans)
    return min(plans, key=lambda plan: max(need.peak for need in plan.needs.values())), len(plans)
