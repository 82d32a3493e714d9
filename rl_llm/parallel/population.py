"""Runs that are made as one population: each is an ordinary run in a thread of its own, and what all of them compute is
one program on the device, for all members at once.

The threads take turns. A member runs alone until it calls a program (`program`); there it waits, and the next one runs.
When all that are left wait, the call that most of them have made is carried out: one thread gives their arguments to
the program mapped over members (`jax.vmap`), and each gets its own results. So nothing can wait for ever, whatever
members do: one that is a rollout ahead, or was resumed at another step, waits until the others call what it calls, or
computes alone. Places that nobody takes are filled with copies: a program is compiled once, for the members that there
were to begin with, and what a member gets does not depend on who else is left.
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
Result = TypeVar("Result")


class PopulationError(RuntimeError):
    """A program could not be run for the members of a population. The message says why, and what to do instead."""


@dataclass
class _Call:
    """A member's call of a program, while the member waits for it."""

    arguments: tuple
    done: bool = False
    result: Any = None
    error: Exception | None = None


@dataclass
class Population:
    """`size` members, of which `left` have not ended. Its members hold `turn` while they run."""

    size: int
    left: int
    resources: ExitStack
    turn: threading.Condition = field(default_factory=lambda: threading.Condition(threading.Lock()))
    waiting: dict[Hashable, tuple["Program", list[_Call]]] = field(default_factory=dict)
    shared: dict[Hashable, Any] = field(default_factory=dict)

    def call(self, called: "Program", arguments: tuple) -> Any:
        """Wait until it is carried out for all that call it."""
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        call = _Call(arguments)
        self.waiting.setdefault((id(called), tree, shapes), (called, []))[1].append(call)
        while not call.done:
            if sum(len(calls) for _, calls in self.waiting.values()) == self.left:
                self._carry_out()
            else:
                self.turn.wait()
        if call.error is not None:
            raise PopulationError(str(call.error)) from call.error
        return call.result

    def _carry_out(self) -> None:
        """The call that most members wait for; of several, the one that was made first."""
        key = max(self.waiting, key=lambda key: len(self.waiting[key][1]))
        called, calls = self.waiting.pop(key)
        try:
            results = called.of_members([call.arguments for call in calls], self.size)
        except NotImplementedError as error:
            why = f"{called.name} cannot be mapped over a population ({error}): run its members one by one"
            for call in calls:
                call.error = PopulationError(f"{why} (--population 1)")
        except Exception as error:  # of a compiler or a device, and every member's own
            for call in calls:
                call.error = error
        else:
            for call, result in zip(calls, results, strict=True):
                call.result = result
        for call in calls:
            call.done = True
        self.turn.notify_all()


_OF_THREAD: ContextVar[Population | None] = ContextVar("population", default=None)
_MAPPED: ContextVar[bool] = ContextVar("mapped", default=False)


@dataclass(frozen=True, eq=False)
class Program:
    """A jitted function, made by `program`. A call by a member of a population is one call with those of the others."""

    name: str
    alone: Any
    mapped: Any
    options: Mapping[str, Any]

    def __call__(self, *arguments: Any) -> Any:
        population = _OF_THREAD.get()
        return self.alone(*arguments) if population is None else population.call(self, arguments)

    def lower(self, *arguments: Any) -> Any:
        """As of a jitted function."""
        return self.alone.lower(*arguments)

    def eval_shape(self, *arguments: Any) -> Any:
        """As of a jitted function."""
        return self.alone.eval_shape(*arguments)

    def compilations(self) -> int:
        """How often it was compiled for one run: for other shapes."""
        return int(self.alone._cache_size())

    def of_members(self, members: Sequence[tuple], size: int) -> Sequence[Any]:
        """The results of the arguments of up to `size` members, in their order."""
        filled = [*members, *[members[-1]] * (size - len(members))]
        donated = self.options.get("donate_argnums")
        stacked = [
            jax.tree.map(partial(_stacked, i == donated), *of_all) for i, of_all in enumerate(zip(*filled, strict=True))
        ]
        results, structure = jax.tree.flatten(self.mapped(*stacked))
        placed, same = self.options.get("out_shardings"), jax.tree.unflatten(structure, results)
        shardings = jax.tree.leaves(jax.tree.broadcast(placed, same)) if placed is not None else [None] * len(results)
        parts = [_taken_apart(sharding)(x) for x, sharding in zip(results, shardings, strict=True)]
        return [jax.tree.unflatten(structure, [part[i] for part in parts]) for i in range(len(members))]


def _stacked(donated: bool, *parts: Any) -> Any:
    """The leaves of all members as one. What was donated is gone."""
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
    """On the device once, as the numbers of a population are the same at every step."""
    return _stack(*parts)


@lru_cache
def _taken_apart(sharding: Any) -> Any:
    return jax.jit(tuple, out_shardings=sharding)


def program(function: Callable, **options: Any) -> Program:
    """`jax.jit` of a function of positional arguments, with the options of `jax.jit`: for one run, and for members of a
    population.

    Their arguments are stacked before it, leaf by leaf, and their results taken apart after it, by programs of a line:
    runs hold what they hold when they are alone, and this one takes as long to compile for many as for one. (With
    stacking inside, an update of 69 arrays took XLA 7 s of a CPU for one member, 27 s for 8, 79 s for 32.)
    """

    @wraps(function)
    def mapped(*arguments: Any) -> Any:
        token = _MAPPED.set(True)
        try:
            return jax.vmap(function, axis_name=MEMBER_AXIS)(*arguments)
        finally:
            _MAPPED.reset(token)

    # The shardings are those of one run: a population's device is one, so that it does not matter that its axis is one
    # more.
    return Program(function.__name__, jax.jit(function, **options), jax.jit(mapped, **options), options)


def any_member(flag: jax.Array) -> jax.Array:
    """Whether a flag is set in any member of the population that a program is traced for; elsewhere the flag.

    A loop or a branch that hangs on it stays one for all. On a flag of each member's own, `jax.vmap` computes both
    branches, and at every step of a loop chooses between the old and the new of all that it carries.
    """
    return jax.lax.pmax(flag.astype(jnp.int32), MEMBER_AXIS) > 0 if _MAPPED.get() else flag


def is_member() -> bool:
    """Whether this thread runs a member of a population."""
    return _OF_THREAD.get() is not None


@contextmanager
def others_run() -> Iterator[None]:
    """In its body a member waits for what is no program, and the others run."""
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
def shared(resource: AbstractContextManager[Result], key: Hashable) -> Iterator[Result]:
    """A resource, entered; for members of a population the one that the first of them entered under the key, which ends
    with the population.
    """
    population = _OF_THREAD.get()
    if population is None:
        with resource as entered:
            yield entered
        return
    if key not in population.shared:
        population.shared[key] = population.resources.enter_context(resource)
    yield population.shared[key]


def run_together(members: Sequence[Callable[[], Result]]) -> list[Result]:
    """What each member, run as one of a population, gives; raises what one of them raises when all have ended."""
    with ExitStack() as resources, ThreadPoolExecutor(len(members), thread_name_prefix="member") as threads:
        population = Population(len(members), len(members), resources)

        def run(member: Callable[[], Result]) -> Result:
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
