"""Available hardware: TPU slices by generation and topology, and GPU nodes, with their hosts and chips.

Sources: Google Cloud's pages "Plan TPUs in GKE" (machine types, node labels, topologies), "TPU v4", "v5e", "v5p", "v6e"
(accelerator types and what their numbers count) and "TPU software versions" (runtime versions).
"""

import math
from dataclasses import dataclass

CHIPS_PER_HOST = 4  # in every slice of several hosts


class LaunchError(ValueError):
    """The request cannot be launched. The message names the value, the place and the remedy."""


@dataclass(frozen=True)
class Generation:
    """One TPU generation under its names in Google Cloud's services.

    `units_per_chip`: units per chip in the number of an accelerator type; v5p-32 counts TensorCores, two per chip.
    """

    name: str
    dimensions: int
    largest: int  # chips of the largest slice
    type_prefix: str
    units_per_chip: int
    node_label: str
    machine_prefix: str
    runtime: str


GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v4", 3, 4096, "v4", 2, "tpu-v4-podslice", "ct4p-hightpu", "tpu-ubuntu2204-base"),
        Generation("v5e", 2, 256, "v5litepod", 1, "tpu-v5-lite-podslice", "ct5lp-hightpu", "v2-alpha-tpuv5-lite"),
        Generation("v5p", 3, 6144, "v5p", 2, "tpu-v5p-slice", "ct5p-hightpu", "v2-alpha-tpuv5"),
        Generation("v6e", 2, 256, "v6e", 1, "tpu-v6e-slice", "ct6e-standard", "v2-alpha-tpuv6e"),
    )
}

FLAT_TOPOLOGIES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
SIDE_OF_A_CUBE = 4  # beyond the small ones, every side is a multiple of it
CHIPS_OF_ONE_HOST = 8  # 1, 4 or 8 chips of the flat generations hang on a single host

GPUS = {"a100": "A100", "a100-80gb": "A100-80GB", "h100": "H100", "h200": "H200", "b200": "B200"}
GPUS_PER_NODE = (1, 2, 4, 8)


@dataclass(frozen=True)
class TpuSlice:
    """A slice of one generation: `hosts` machines with `chips` chips in all, arranged as `topology`."""

    generation: Generation
    topology: str
    chips: int
    hosts: int

    @property
    def chips_per_host(self) -> int:
        """Local chips of each process."""
        return self.chips // self.hosts

    @property
    def accelerator_type(self) -> str:
        """The slice's name in the Cloud TPU API: v6e-16, v5litepod-16, v5p-32."""
        return f"{self.generation.type_prefix}-{self.chips * self.generation.units_per_chip}"

    @property
    def named_by_type(self) -> bool:
        """Whether the accelerator type determines the shape. It does not for v5p-512: 4x4x16 or 4x8x8."""
        cubes = self.chips // SIDE_OF_A_CUBE**3
        sides = range(1, cubes + 1)
        shapes = [(a, b) for a in sides for b in sides if cubes % (a * b) == 0 and a <= b <= cubes // (a * b)]
        return self.generation.dimensions == 2 or len(shapes) < 2

    @property
    def machine_type(self) -> str:
        """The machine type of its GKE node pool: ct6e-standard-4t."""
        return f"{self.generation.machine_prefix}-{self.chips_per_host}t"


@dataclass(frozen=True)
class GpuNodes:
    """`hosts` machines with `gpus_per_host` GPUs each; `model` is SkyPilot's name."""

    model: str
    hosts: int
    gpus_per_host: int

    @property
    def chips(self) -> int:
        """GPUs of all hosts."""
        return self.hosts * self.gpus_per_host


def hardware_of(accelerator: str, topology: str) -> TpuSlice | GpuNodes:
    """The hardware for an accelerator ("v6e", "h100") and a topology ("4x4"; for GPUs "NODESxGPUS").

    Raises LaunchError for an unknown accelerator or topology.
    """
    if accelerator in GENERATIONS:
        return _tpu_slice(GENERATIONS[accelerator], topology)
    if accelerator in GPUS:
        return _gpu_nodes(accelerator, topology)
    raise LaunchError(f"accelerator {accelerator!r} is unknown; expected one of {', '.join((*GENERATIONS, *GPUS))}")


def _tpu_slice(generation: Generation, topology: str) -> TpuSlice:
    if topology not in FLAT_TOPOLOGIES if generation.dimensions == 2 else not _is_cube(topology, generation.largest):
        raise LaunchError(f"{generation.name} has no topology {topology!r}; it has {_topologies(generation)}")
    chips = math.prod(_sides(topology))
    one_host = chips <= (CHIPS_OF_ONE_HOST if generation.dimensions == 2 else CHIPS_PER_HOST)
    return TpuSlice(generation, topology, chips, 1 if one_host else chips // CHIPS_PER_HOST)


def _sides(topology: str) -> list[int]:
    """The sides as numbers; empty unless written like 4x4x8."""
    sides = topology.split("x")
    return [int(side) for side in sides] if all(side.isdecimal() and side[0] != "0" for side in sides) else []


def _is_cube(topology: str, largest: int) -> bool:
    sides = _sides(topology)
    grown = len(sides) == 3 and sides == sorted(sides) and all(side % SIDE_OF_A_CUBE == 0 for side in sides)
    return topology in SMALL_CUBES or (grown and math.prod(sides) <= largest)


def _topologies(generation: Generation) -> str:
    if generation.dimensions == 2:
        return ", ".join(FLAT_TOPOLOGIES)
    return f"{', '.join(SMALL_CUBES)} and AxBxC with A <= B <= C, multiples of 4, up to {generation.largest} chips"


def _gpu_nodes(accelerator: str, topology: str) -> GpuNodes:
    sides = _sides(topology)
    if len(sides) != 2 or sides[1] not in GPUS_PER_NODE:
        counts = ", ".join(map(str, GPUS_PER_NODE))
        raise LaunchError(f"{accelerator} has no topology {topology!r}: write NODESxGPUS with {counts} GPUs, as in 2x8")
    return GpuNodes(GPUS[accelerator], *sides)
