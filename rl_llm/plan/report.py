"""Reports of a plan: tables for the terminal, and JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rl_llm.plan.collectives import by_kind
from rl_llm.plan.planning import Plan
from rl_llm.plan.programs import GIB
from rl_llm.plan.topology import RESERVED_GIB


def show(plan: Plan, console: Console) -> None:
    """Print a plan."""
    mesh, topology = plan.experiment.mesh, plan.topology
    console.print(
        f"{topology.name}, {topology.chips} chips of {topology.chip.hbm_gib:g} GiB ({RESERVED_GIB} reserved by the "
        f"runtime); mesh data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor}, "
        f"micro_batches={plan.experiment.micro_batches} sampling_batches={plan.experiment.sampling_batches}",
        highlight=False,
    )
    console.print(Group(_memory(plan), _communication(plan), _time(plan)))
    console.print(Text("\n".join(_summary(plan))))


def _memory(plan: Plan) -> Table:
    table = Table("GiB per chip", *plan.needs, title="memory", title_justify="left")
    rows = {
        "parameters": "parameters",
        "optimizer and other state": "state",
        "batch": "batch",
        "KV cache": "cache",
        "copy of the weights for sampling": "copied",
        "temporaries (including these two)": "temporaries",
        "peak": "peak",
    }
    for title, name in rows.items():
        table.add_row(title, *(f"{getattr(need, name):.2f}" for need in plan.needs.values()))
    table.add_row("available", *(f"{plan.topology.usable_gib:.2f}" for _ in plan.needs))
    compiled = (
        f"{program.seconds_to_compile:.0f} s" if program.failure is None else "out of memory"
        for program in plan.programs.values()
    )
    table.add_row("compiled", *compiled)
    return table


def _communication(plan: Plan) -> Table:
    table = Table("program", "collective", "times", "GiB sent", title="communication per chip", title_justify="left")
    for name, program in plan.programs.items():
        once = [one for one in program.collectives if not one.open_loops]
        each = [one for one in program.collectives if one.open_loops]
        for title, found in ((name, once), (f"{name}, one iteration of each token loop", each)):
            for kind, (times, sent) in by_kind(found).items():
                table.add_row(title, kind, str(times), f"{sent / GIB:.3f}")
    return table


def _time(plan: Plan) -> Table:
    table = Table(
        "seconds", "compute", "memory", "network", "roofline", "bound by", title="one step", title_justify="left"
    )
    for name, phase in plan.cost.phases.items():
        times = (phase.compute, phase.memory, phase.network, phase.seconds)
        table.add_row(name, *(f"{seconds:.2f}" for seconds in times), phase.bound)
    return table


def _summary(plan: Plan) -> list[str]:
    cost, chip, e = plan.cost, plan.topology.chip, plan.efficiency
    hours = cost.seconds * cost.steps / 3600
    lines = [
        f"assumed: {e.compute:.0%} of peak FLOP/s, {e.memory:.0%} of memory and {e.network:.0%} of network "
        f"bandwidth; mean response {e.length:.0%} of the longest",
        f"step: {cost.flops:.3g} FLOPs, {cost.seconds:.1f} s, {cost.tokens / cost.seconds:,.0f} response tokens/s"
        + (", sampling and learning side by side" if cost.side_by_side else ""),
        f"run: {cost.steps} steps, {hours:.1f} h, {cost.chip_hours:,.0f} chip-hours, "
        f"${chip.dollars(cost.chip_hours):,.0f} on demand, ${chip.dollars(cost.chip_hours, spot=True):,.0f} spot "
        f"({chip.as_of}); evaluations, warm start, compilation and restarts are extra",
    ]
    lines += [f"{name}: {p.failure}" for name, p in plan.programs.items() if p.failure]
    lines.append("fits" if plan.fits else f"does not fit. First change: {plan.advice}")
    return lines


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values."""
    cost = plan.cost
    return {
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "mesh": asdict(plan.experiment.mesh),
        "micro_batches": plan.experiment.micro_batches,
        "sampling_batches": plan.experiment.sampling_batches,
        "fits": plan.fits,
        "advice": plan.advice,
        "usable_gib": plan.topology.usable_gib,
        "gib_per_chip": {name: asdict(need) for name, need in plan.needs.items()},
        "collectives": {
            name: {
                "once": by_kind([one for one in program.collectives if not one.open_loops]),
                "each_token": by_kind([one for one in program.collectives if one.open_loops]),
            }
            for name, program in plan.programs.items()
        },
        "seconds_to_compile": {name: program.seconds_to_compile for name, program in plan.programs.items()},
        "efficiency": asdict(plan.efficiency),
        "seconds": {name: asdict(phase) for name, phase in cost.phases.items()},
        "step_seconds": cost.seconds,
        "step_flops": cost.flops,
        "tokens_per_second": cost.tokens / cost.seconds,
        "chip_hours": cost.chip_hours,
        "dollars": plan.topology.chip.dollars(cost.chip_hours),
        "dollars_spot": plan.topology.chip.dollars(cost.chip_hours, spot=True),
    }
