"""TPU slices by name ("v6e:4x4"), and their devices as targets of compilation without a TPU."""

from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING

from launch.prices import CHIPS, Chip
from rl_llm.plan import PlanError

if TYPE_CHECKING:
    import jax

# Chips along each axis of the slices that Google Cloud rents (its pages on each generation). The two cores of a v5p
# chip act as one device. Those of a v4 chip do not when libtpu describes a topology by name, so v4 is left out.
SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}
ON_ONE_HOST = ("1x1", "2x2", "2x4", "2x2x1")  # all chips on one machine; larger slices have four on each
RESERVED_GIB = 0.75  # kept by the TPU runtime: libtpu compiles for 31.25 of a v6e's 32 GiB


@dataclass(frozen=True)
class Topology:
    """A slice: the kind of chip, and the chips along each axis."""

    chip: Chip
    shape: str

    @property
    def name(self) -> str:
        """The name in `--topology`, which is also libtpu's."""
        return f"{self.chip.name}:{self.shape}"

    @property
    def sides(self) -> tuple[int, ...]:
        """Chips along each axis."""
        return tuple(map(int, self.shape.split("x")))

    @property
    def chips(self) -> int:
        """Chips in all."""
        return prod(self.sides)

    @property
    def accepts_halves(self) -> bool:
        """Whether libtpu can be asked to compile for half of every host's chips.

        On flat slices from 8 x 8 on, no half is a block or surrounds one, and libtpu ends the process (seen for v6e 8x8
        and 8x16; it compiled other splits there). Elsewhere it reports an error instead, as for every split of v5e
        slices beyond 4x4, so asking is safe.
        """
        return len(self.sides) > 2 or min(self.sides) < 8

    @property
    def usable_gib(self) -> float:
        """Memory per chip that programs can use."""
        return self.chip.hbm_gib - RESERVED_GIB


def parse_topology(name: str) -> Topology:
    """The slice with a name. Raises PlanError listing the known ones."""
    kind, _, shape = name.partition(":")
    if kind not in SLICES or shape not in SLICES[kind]:
        known = "\n".join(f"  {kind}: {'  '.join(shapes)}" for kind, shapes in SLICES.items())
        raise PlanError(f"--topology {name}: unknown. Known, as KIND:SHAPE in chips:\n{known}")
    return Topology(CHIPS[kind], shape)


def topology_devices(topology: Topology) -> "list[jax.Device]":
    """The devices of a slice, for compilation only. Raises PlanError without the compiler."""
    if find_spec("libtpu") is None:
        raise PlanError("the TPU compiler is not installed: pip install 'rl-llm[tpu]' (Linux on x86-64)")
    from jax.experimental import topologies

    # libtpu assumes four chips per host, and a host's chips decide where a `sampler_mesh` lies.
    bounds = {"chips_per_host_bounds": (*topology.sides, 1, 1)[:3]} if topology.shape in ON_ONE_HOST else {}
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **bounds)
    return list(described.devices)
