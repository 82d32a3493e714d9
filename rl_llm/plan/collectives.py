"""The collectives of a compiled program, read from its HLO text: kind, mesh axes, bytes and count."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
BYTES |= {"f64": 8, "s64": 8, "u64": 8}

_HEAD = re.compile(r"^(ENTRY )?(%[\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLS = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=(%[\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_WHILE = re.compile(r" while\(.*condition=(%[\w.\-]+), body=(%[\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Collective:
    """One collective over some mesh axes: the bytes that a chip sends per execution, and the number of executions.

    `depth` is the number of enclosing loops, and `name` the JAX operation it comes from. `open_loops` of those loops
    have no fixed trip count (they stop on a condition on data); `times` counts one iteration of each.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: int
    depth: int
    open_loops: int
    name: str

    @property
    def total(self) -> float:
        """Bytes sent in all executions."""
        return self.bytes * self.times


def read_collectives(text: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """Read the collectives from a compiled program's HLO text.

    `mesh_shape` gives the sizes of the mesh axes, in the order in which partitions are numbered.
    """
    computations, entry = _computations(text)
    found = []

    def visit(name: str, times: int, depth: int, open_loops: int) -> None:
        for line in computations.get(name, ()):
            if match := _COLLECTIVE.search(line):
                one = _collective(line, match, mesh_shape)
                if name.startswith("%all-reduce-scatter"):  # each chip keeps one shard of the sum: half the traffic
                    one = replace(one, kind="reduce-scatter", bytes=one.bytes / 2)
                found.append(replace(one, times=times, depth=depth, open_loops=open_loops))
            if loop := _WHILE.search(line):
                trips = _trips(computations.get(loop[1], []))
                visit(loop[2], times * (trips or 1), depth + 1, open_loops + (trips is None))
                continue
            for called in _called(line):
                visit(called, times, depth, open_loops)

    visit(entry, 1, 0, 0)
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation by name, and the name of the entry computation."""
    computations: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
        elif current:
            computations[current].append(line)
    return computations, entry


def _called(line: str) -> Iterator[str]:
    if _COLLECTIVE.search(line):  # calls only the reduction of two numbers
        return
    yield from _CALLS.findall(line)
    for branches in _BRANCHES.findall(line):
        yield from re.findall(r"%[\w.\-]+", branches)


def _trips(condition: list[str]) -> int | None:
    """Trip count of a loop that compares its counter with a constant; None for any other condition."""
    constants = dict(re.findall(r"(%[\w.\-]+) = s32\[\]\S* constant\((\d+)\)", "\n".join(condition)))
    root = next((line for line in condition if "ROOT" in line), "")
    compared = re.search(r" compare\(\S+, (%[\w.\-]+)\), direction=LT", root)
    return int(constants[compared[1]]) if compared and compared[1] in constants else None


def _collective(line: str, match: re.Match[str], mesh_shape: Mapping[str, int]) -> Collective:
    kind, shapes = match[2], _SHAPE.findall(match[1])
    if match[3] and kind in ("all-gather", "collective-permute"):  # (inputs, outputs, ...)
        shapes = shapes[1:2]
    size = sum(BYTES.get(dtype, 0) * prod(map(int, filter(None, dims.split(",")))) for dtype, dims in shapes)
    group = _first_group(line, prod(mesh_shape.values()))
    n = len(group) if kind != "collective-permute" else 2
    sent = {
        "all-gather": size * (n - 1) / n,
        "all-reduce": 2 * size * (n - 1) / n,
        "reduce-scatter": size * (n - 1),
        "all-to-all": size * (n - 1) / n,
        "collective-permute": size,
    }[kind]
    coordinates = np.unravel_index(group, tuple(mesh_shape.values()))
    axes = tuple(name for name, along in zip(mesh_shape, coordinates, strict=True) if len(set(along.tolist())) > 1)
    name = _OP_NAME.search(line)
    return Collective(kind, axes, sent, 1, 0, 0, name[1] if name else "")


def _first_group(line: str, partitions: int) -> list[int]:
    """The partitions in the first group. HLO lists them, or gives a reshaped and transposed range or mesh axes."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
        return [int(pairs[1]), int(pairs[2])]
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return [int(number) for number in listed[1].split(",")]
    if ranged := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line):
        return _range(ranged[3]).reshape(int(ranged[1]), int(ranged[2]))[0].tolist()
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed[1])}
        order = _range(meshed[2]) if meshed[2] else np.arange(prod(sizes.values()))
        along = re.findall(r"'(\w+)'", meshed[3])
        index = tuple(slice(None) if name in along else 0 for name in sizes)
        return order.reshape(tuple(sizes.values()))[index].ravel().tolist()
    return list(range(partitions))


def _range(text: str) -> np.ndarray:
    """ "[4,4]T(1,0)" -> the numbers from 0, reshaped to 4 x 4, transposed and flattened."""
    dims = [int(size) for size in re.findall(r"\d+", text.partition("]")[0])]
    numbers = np.arange(prod(dims)).reshape(dims)
    order = re.search(r"T\(([\d,]+)\)", text)
    return (numbers.transpose([int(axis) for axis in order[1].split(",")]) if order else numbers).ravel()


def by_kind(found: list[Collective]) -> dict[str, tuple[int, float]]:
    """ "all-gather over data" -> (executions, bytes that a chip sends in all of them), most bytes first."""
    sums: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for one in found:
        name = f"{one.kind} over {'+'.join(one.axes) or 'nothing'}"
        sums[name] = (sums[name][0] + one.times, sums[name][1] + one.total)
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))
