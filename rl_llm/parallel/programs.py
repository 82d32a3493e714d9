"""Compiled programs: jit a function for a mesh and remember it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from rl_llm.parallel.mesh import Placeable, over_batch, replicated, weight_shardings
from rl_llm.parallel.numbers import Floats, combine, partition
from rl_llm.parallel.population import Program, program

PROGRAMS = 256  # compiled programs that are remembered, of all kinds together

ROWS, SAME = "rows", "same"  # layouts: the leading axis over the data-parallel devices; everything on every device


class Layout(Protocol):
    """The shardings of one argument, described by a hashable value."""

    def shardings(self, mesh: Mesh) -> Any:
        """Return a pytree of NamedShardings, or a prefix of one."""


@dataclass(frozen=True)
class WeightLayout:
    """Layout of the weights of a table, as a tuple of (path, weight)."""

    table: tuple[tuple[str, Placeable], ...]

    def shardings(self, mesh: Mesh) -> dict:
        return weight_shardings(mesh, dict(self.table))


def laid_out(table: Mapping[str, Placeable]) -> WeightLayout:
    """Layout of a weight table such as `weight_table(config)`."""
    return WeightLayout(tuple(table.items()))


@dataclass(frozen=True)
class BoundProgram:
    """A jitted program together with the floats that it takes as its first argument."""

    program: Program
    floats: Floats

    def __call__(self, *arguments: Any) -> Any:
        # Inside another program it is inlined, because only a top-level program may have compiler options.
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
            return self.program.alone.__wrapped__(self.floats, *arguments)
        return self.program(self.floats, *arguments)

    def lower(self, *arguments: Any) -> Any:
        """Lower the program, as `jax.jit(...).lower` does."""
        return self.program.alone.lower(self.floats, *arguments)

    def eval_shape(self, *arguments: Any) -> Any:
        """Shapes of the results, as `jax.jit(...).eval_shape` gives them."""
        return self.program.alone.eval_shape(self.floats, *arguments)


def compile_program(
    function: Callable,
    mesh: Mesh,
    static: tuple = (),
    numbers: tuple = (),
    *,
    inputs: tuple | None = None,
    outputs: Any = None,
    donate: int | None = None,
) -> BoundProgram:
    """Jit `function(*static, *numbers, *arguments)` as a program of `arguments`; it compiles at its first call.

    `static` values are compiled in. The floats of `numbers` become arguments (see `partition`), so values that differ
    in floats only share one program. `inputs` and `outputs` give the layout of each argument and of the results: ROWS,
    SAME, a `Layout`, or None (JAX decides). `donate` is the index of the argument whose buffers the results may reuse.
    """
    floats, structure = partition(numbers)
    _, layouts = partition((inputs, outputs))
    return BoundProgram(_compile(function, mesh, static, structure, layouts, donate), floats)


@lru_cache(maxsize=PROGRAMS)
def _compile(
    function: Callable, mesh: Mesh, static: tuple, structure: tuple, layouts: tuple[Any, Any], donate: int | None
) -> Program:
    inputs, outputs = _shardings(layouts, mesh)

    @wraps(function)
    def on_mesh(floats: Floats, *arguments: Any) -> Any:
        # While it is traced, JAX knows the mesh: fused attention and experts, which XLA cannot split, look it up.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*static, *combine(floats, structure), *arguments)

    return program(
        on_mesh,
        in_shardings=None if inputs is None else (replicated(mesh), *inputs),
        out_shardings=outputs,
        donate_argnums=None if donate is None else donate + 1,
        compiler_options=compiler_options(mesh),
    )


def _shardings(layout: Any, mesh: Mesh) -> Any:
    if isinstance(layout, tuple):
        return tuple(_shardings(part, mesh) for part in layout)
    if layout is None:
        return None
    return {ROWS: over_batch, SAME: replicated}[layout](mesh) if isinstance(layout, str) else layout.shardings(mesh)


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """XLA options for the mesh's platform.

    On CPU, YNNPACK fusions are off for products and reductions: they slow down the small shapes that a CPU trains.
    experiments/benchmarks/rl_step.py measures it with and without.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if on_cpu else {}
