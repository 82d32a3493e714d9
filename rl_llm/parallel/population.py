"""Populations: many ordinary runs, each in its own thread, whose programs run as one program for all members.

The threads take turns. A member runs until it calls a program (`program`); there it waits and the next one runs. When
all remaining members wait, the call that most of them have made is executed: one thread passes their arguments to the
program mapped over members (`jax.vmap`), and each gets its own results. Nothing can deadlock: a member that is a
rollout ahead, or was resumed at another step, waits until others make the same call, or computes alone. Empty places
are filled with copies, so a program is compiled once for the initial number of members, and a member's results do not
depend on who is left.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, partial, wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

MEMBER_AXIS = "population"
Output = TypeVar("Output")


class PopulationError(RuntimeError):
    """A program cannot run for the members of a population. The message says why, and what to do instead."""


@dataclass
class _Call:
    """A member's pending call of a program."""

    arguments: tuple
    done: bool = False
    result: Any = None
    error: Exception | None = None


@dataclass
class Population:
    """`size` members, `left` of them still running. A member holds `turn` while it runs."""

    size: int
    left: int
    resources: ExitStack
    turn: threading.Condition = field(default_factory=lambda: threading.Condition(threading.Lock()))
    waiting: dict[Hashable, tuple["Program", list[_Call]]] = field(default_factory=dict)
    shared: dict[Hashable, Any] = field(default_factory=dict)

    def call(self, called: "Program", arguments: tuple) -> Any:
        """Call a program and wait until it has run for all members that call it."""
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        call = _Call(arguments)
        self.waiting.setdefault((id(called), tree, shapes), (called, []))[1].append(call)
        while not call.done:
            if sum(len(calls) for _, calls in self.waiting.values()) == self.left:
                self._execute()
            else:
                self.turn.wait()
        if call.error is not None:
            raise PopulationError(str(call.error)) from call.error
        return call.result

    def _execute(self) -> None:
        """Execute the call that most members wait for; on a tie, the first one made."""
        key = max(self.waiting, key=lambda key: len(self.waiting[key][1]))
        called, calls = self.waiting.pop(key)
        results: Sequence[Any] = [None] * len(calls)
        failure: Exception | None = None
        try:
            results = called.run_members([call.arguments for call in calls], self.size)
        except NotImplementedError as error:
            why = f"{called.name} cannot be mapped over a population ({error}); run its members one by one"
            failure = PopulationError(f"{why} (--population 1)")
        except Exception as error:  # from the compiler or a device; every member raises it
            failure = error
        for call, result in zip(calls, results, strict=True):
            call.result, call.error, call.done = result, failure, True
        self.turn.notify_all()


_OF_THREAD: ContextVar[Population | None] = ContextVar("population", default=None)
_MAPPED: ContextVar[bool] = ContextVar("mapped", default=False)


@dataclass(frozen=True, eq=False)
class Program:
    """A jitted function, made by `program`. Calls by members of a population are merged into one."""

    name: str
    alone: Any
    mapped: Any
    options: Mapping[str, Any]

    def __call__(self, *arguments: Any) -> Any:
        population = _OF_THREAD.get()
        return self.alone(*arguments) if population is None else population.call(self, arguments)

    def compilations(self) -> int:
        """Number of times it was compiled for single runs, once per set of shapes."""
        return int(self.alone._cache_size())

    def run_members(self, members: Sequence[tuple], size: int) -> Sequence[Any]:
        """Run for the arguments of up to `size` members; returns their results in order."""
        filled = [*members, *[members[-1]] * (size - len(members))]
        donated = self.options.get("donate_argnums")
        stacked = [
            jax.tree.map(partial(_stacked, i == donated), *parts) for i, parts in enumerate(zip(*filled, strict=True))
        ]
        results, structure = jax.tree.flatten(self.mapped(*stacked))
        placed, same = self.options.get("out_shardings"), jax.tree.unflatten(structure, results)
        shardings = jax.tree.leaves(jax.tree.broadcast(placed, same)) if placed is not None else [None] * len(results)
        unstacked = [_unstack(sharding)(x) for x, sharding in zip(results, shardings, strict=True)]
        return [jax.tree.unflatten(structure, [part[i] for part in unstacked]) for i in range(len(members))]


def _stacked(donated: bool, *parts: Any) -> Any:
    """Stack the leaves of all members; donated ones are deleted."""
    if not donated and all(isinstance(part, float) for part in parts):
        return _stacked_floats(parts)
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.stack(parts)
    stacked = _stack(*parts)
    for part in parts:
        if donated and isinstance(part, jax.Array):
            part.delete()
    return stacked


@jax.jit
def _stack(*parts: jax.Array) -> jax.Array:
    return jnp.stack(parts)


@lru_cache(maxsize=1024)
def _stacked_floats(parts: tuple[float, ...]) -> Any:
    """Stack floats on the device once, since a population's numbers are the same at every step."""
    return _stack(*parts)


@lru_cache
def _unstack(sharding: Any) -> Any:
    return jax.jit(tuple, out_shardings=sharding)


def program(function: Callable, **options: Any) -> Program:
    """Jit a function of positional arguments, for single runs and for members of a population.

    `options` are those of `jax.jit`. Members' arguments are stacked before the program, leaf by leaf, and results are
    unstacked after it, by one-line programs. So members hold the same arrays as single runs, and compile time does not
    grow with their number. (With stacking inside, an update of 69 arrays took XLA 7 CPU-seconds for one member, 27 for
    8 and 79 for 32.)
    """

    @wraps(function)
    def mapped(*arguments: Any) -> Any:
        token = _MAPPED.set(True)
        try:
            return jax.vmap(function, axis_name=MEMBER_AXIS)(*arguments)
        finally:
            _MAPPED.reset(token)

    # A population has one device, so the shardings of a single run serve although there is one more axis.
    return Program(function.__name__, jax.jit(function, **options), jax.jit(mapped, **options), options)


def any_member(flag: jax.Array) -> jax.Array:
    """Whether a flag is set in any member of the population being traced; outside a population, the flag itself.

    Loops and branches on it stay single. On a flag per member, `jax.vmap` computes both branches, and selects the whole
    carry at every step of a loop.
    """
    return jax.lax.pmax(flag.astype(jnp.int32), MEMBER_AXIS) > 0 if _MAPPED.get() else flag


def is_member() -> bool:
    """Whether this thread runs a member of a population."""
    return _OF_THREAD.get() is not None


@contextmanager
def others_run() -> Iterator[None]:
    """Let other members run while this one waits for something that is not a program."""
    population = _OF_THREAD.get()
    if population is None:
        yield
        return
    population.turn.release()
    try:
        yield
    finally:
        population.turn.acquire()


@contextmanager
def shared(resource: AbstractContextManager[Output], key: Hashable) -> Iterator[Output]:
    """Enter a resource; members of a population share the one first entered under `key`, until the population ends."""
    population = _OF_THREAD.get()
    if population is None:
        with resource as entered:
            yield entered
        return
    if key not in population.shared:
        population.shared[key] = population.resources.enter_context(resource)
    yield population.shared[key]


def run_together(members: Sequence[Callable[[], Output]]) -> list[Output]:
    """Run members as one population and return their results; raises an error of a member once all have ended."""
    with ExitStack() as resources, ThreadPoolExecutor(len(members), thread_name_prefix="member") as threads:
        population = Population(len(members), len(members), resources)

        def run(member: Callable[[], Output]) -> Output:
            with population.turn:
                token = _OF_THREAD.set(population)
                try:
                    return member()
                finally:
                    _OF_THREAD.reset(token)
                    population.left -= 1
                    population.turn.notify_all()

        futures = [threads.submit(run, member) for member in members]
        return [future.result() for future in futures]
