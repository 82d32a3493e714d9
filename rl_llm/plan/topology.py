"""TPU slices by name ("v6e:4x4"), as meshes to compile for where there is no TPU."""

from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING

from launch.prices import CHIPS, Chip
from rl_llm.plan.errors import PlanError

if TYPE_CHECKING:
    import jax

# Chips along each axis of a slice that Google Cloud rents (its pages on each generation). Cores: a v5p chip's two work
# as one device; those of a v4 chip do not where libtpu describes a topology by its name, so v4 is not planned for.
SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}
ON_ONE_HOST = ("1x1", "2x2", "2x4", "2x2x1")  # all chips on one machine; larger slices have four on each
RESERVED_GIB = 0.75  # what the TPU runtime keeps of a chip's memory: libtpu compiles for 31.25 of a v6e's 32 GiB


@dataclass(frozen=True)
class Topology:
    """A slice: the kind of chip and how many of them lie along each axis."""

    chip: Chip
    shape: str

    @property
    def name(self) -> str:
        """As `--topology` has it; also what libtpu calls it."""
        return f"{self.chip.name}:{self.shape}"

    @property
    def chips(self) -> int:
        """How many there are."""
        return prod(map(int, self.shape.split("x")))

    @property
    def takes_halves(self) -> bool:
        """Whether libtpu may be asked to compile for half of every host's chips. On flat slices from 8 x 8 on no half
        makes a block or lies around one, and it ends the process (so it did for v6e 8x8 and 8x16; other splits it took
        there). Where it says no instead, as of v5e slices beyond 4x4, whatever the split, it can be asked.
        """
        sides = tuple(map(int, self.shape.split("x")))
        return len(sides) > 2 or min(sides) < 8

    @property
    def usable_gib(self) -> float:
        """Memory of a chip that programs can have."""
        return self.chip.hbm_gib - RESERVED_GIB


def topology(name: str) -> Topology:
    """The slice of a name. Raises PlanError listing the known ones."""
    kind, _, shape = name.partition(":")
    if kind not in SLICES or shape not in SLICES[kind]:
        known = "\n".join(f"  {kind}: {'  '.join(shapes)}" for kind, shapes in SLICES.items())
        raise PlanError(f"--topology {name}: unknown. Known, as KIND:SHAPE in chips:\n{known}")
    return Topology(CHIPS[kind], shape)


def devices(slice_: Topology) -> "list[jax.Device]":
    """The devices of a slice, to compile for and not to run on. Raises PlanError without the compiler."""
    if find_spec("libtpu") is None:
        raise PlanError("the TPU compiler is not installed: pip install 'rl-llm[tpu]' (Linux on x86-64)")
    from jax.experimental import topologies

    # By itself libtpu takes a host to have four chips. Who has which decides where a `sampler_mesh` lies.
    sides = tuple(map(int, slice_.shape.split("x")))
    bounds = {"chips_per_host_bounds": (*sides, 1, 1)[:3]} if slice_.shape in ON_ONE_HOST else {}
    described = topologies.get_topology_desc(platform="tpu", topology_name=slice_.name, **bounds)
    return list(described.devices)
