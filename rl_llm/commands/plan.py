"""`rl-llm plan`: what an experiment needs of a TPU slice, without one."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from rl_llm.commands.common import UsageError, add_experiment, load, share
from rl_llm.plan.environment import compile_only
from rl_llm.plan.errors import PlanError

SUMMARY = "what an experiment needs of a TPU slice, without one"
FITS, DOES_NOT_FIT = 0, 1
COMPILED = 4  # candidates of a search, the most promising ones

EXAMPLES = """examples:
  rl-llm plan experiments/qwen3_4b_gsm8k.py:paper --topology v6e:4x4
  rl-llm plan experiments/qwen3_4b_gsm8k.py:paper --topology v5p:2x2x4 --mesh data=1,fsdp=4,tensor=4 --json plan.json
  rl-llm plan experiments/qwen3_4b_gsm8k.py:paper --topology v6e:8x8 --search

exit codes: 0 fits, 1 does not fit, 2 wrong usage"""


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add_experiment(parser)
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="a TPU slice, as in v6e:4x4")
    parser.add_argument("--mesh", metavar="AXIS=N,...", help="mesh to plan for (default: the experiment's)")
    parser.add_argument("--search", action="store_true", help="try meshes and micro-batches, and recommend one")
    parser.add_argument(
        "--candidates", type=int, metavar="N", help=f"how many of the search's are compiled (default: {COMPILED})"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="RL steps of the run (default: the experiment's)")
    for name, default, what in (
        ("compute", 0.4, "peak FLOP/s"),
        ("memory", 0.7, "memory bandwidth"),
        ("network", 0.7, "network bandwidth"),
    ):
        helped = f"share of the {what} that is reached (default: {default})"
        parser.add_argument(f"--{name}-efficiency", type=share, default=default, metavar="SHARE", help=helped)
    parser.add_argument(
        "--mean-length",
        type=share,
        default=1.0,
        metavar="SHARE",
        help="mean response length as a share of the longest (default: 1, as if all were)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there, too")


def parse_mesh(text: str) -> Any:
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
    """Compile an experiment's own programs for a TPU slice on this machine, and say what they need of every chip, what
    they send, how long a step must take and what the run costs.

    Needs the TPU compiler, pip install 'rl-llm[tpu]', and no TPU. The weights of a teacher or of a reward model, which
    other runs have, are not counted.
    """
    try:
        return _run(arguments)
    except PlanError as error:
        raise UsageError(str(error)) from error


def _run(arguments: argparse.Namespace) -> int:
    from rl_llm.plan.topology import devices, topology

    slice_ = topology(arguments.topology)
    _check_chosen_once(arguments)
    if arguments.candidates is not None and not (arguments.search and arguments.candidates >= 1):
        raise PlanError(f"--candidates {arguments.candidates}: a number of at least 1, with --search")
    if arguments.steps is not None and arguments.steps < 1:
        raise PlanError(f"--steps must be at least 1, not {arguments.steps}")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise PlanError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    compile_only()
    from rich.console import Console

    from rl_llm.plan.cost import Efficiency
    from rl_llm.plan.report import as_json, show

    _, experiment = load(arguments.experiment, arguments.overrides)
    parts = devices(slice_)
    efficiency = Efficiency(
        arguments.compute_efficiency, arguments.memory_efficiency, arguments.network_efficiency, arguments.mean_length
    )
    if arguments.search:
        plan, count = _search(experiment, slice_, parts, efficiency, arguments)
    else:
        plan, count = _single(experiment, arguments, slice_, parts, efficiency), 1
    console = Console()
    show(plan, console)
    if arguments.search:
        shape = plan.experiment.mesh
        console.print(
            f"recommended, of {count} that were compiled: --mesh data={shape.data},fsdp={shape.fsdp},"
            f"tensor={shape.tensor} --set micro_batches={plan.experiment.micro_batches} --set "
            f"sampling_batches={plan.experiment.sampling_batches}",
            highlight=False,
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(plan), indent=2) + "\n")
    return FITS if plan.fits else DOES_NOT_FIT


def _check_chosen_once(arguments: argparse.Namespace) -> None:
    """What --search or --mesh chooses must not be set, too: that would say nothing."""
    if arguments.search and arguments.mesh:
        raise PlanError(f"--search chooses the mesh: leave out --mesh {arguments.mesh}")
    chosen = ("mesh", "micro_batches", "sampling_batches") if arguments.search else ("mesh",) if arguments.mesh else ()
    for override in arguments.overrides:
        if (name := override.partition("=")[0].partition(".")[0].strip()) in chosen:
            by = "--search" if arguments.search else "--mesh"
            raise PlanError(f"{by} chooses {name}: leave out --set {override}")


def _single(experiment: Any, arguments: argparse.Namespace, slice_: Any, parts: Any, efficiency: Any) -> Any:
    """The plan for one mesh."""
    from rl_llm.plan.planning import make_plan, on_mesh
    from rl_llm.runs.progress import Progress

    shape = parse_mesh(arguments.mesh) if arguments.mesh else experiment.mesh
    with Progress() as display:
        return make_plan(
            on_mesh(experiment, shape),
            slice_,
            parts,
            efficiency,
            lambda name: display.say(f"compiling {name} ..."),
            arguments.steps,
        )


def _search(
    experiment: Any, slice_: Any, parts: Any, efficiency: Any, arguments: argparse.Namespace
) -> tuple[Any, int]:
    """The fastest plan that fits among the most promising candidates, or the one that fails by least; and how many
    were compiled. Raises PlanError where the compiler refuses all.
    """
    from rl_llm.plan.planning import make_plan, on_mesh
    from rl_llm.plan.search import candidates
    from rl_llm.runs.progress import Progress

    promising = candidates(experiment, slice_, efficiency)[: arguments.candidates or COMPILED]
    plans: list[Any] = []
    refused = None
    with Progress() as display, display.phase("meshes compiled", len(promising)) as phase:
        for done, one in enumerate(promising, 1):
            display.say(
                f"compiling for {one.mesh}, micro_batches={one.micro_batches}, sampling_batches="
                f"{one.sampling_batches}; by a guess {one.gib:.0f} GiB of a chip and {one.seconds:.1f} s a step ..."
            )
            planned = on_mesh(experiment, one.mesh, one.micro_batches, one.sampling_batches)
            try:
                plans.append(make_plan(planned, slice_, parts, efficiency, steps=arguments.steps))
            except PlanError as error:  # of a part of the slice that a `sampler_mesh` leaves
                display.say(f"refused: {error}")
                refused = error
            phase.update(done)
    if refused and not plans:
        raise refused
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: plan.cost.seconds), len(plans)
    return min(plans, key=lambda plan: max(need.peak for need in plan.needs.values())), len(plans)
