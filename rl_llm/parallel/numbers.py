"""The numbers of a value apart from its structure: a program is compiled for the structure and takes the numbers as
arguments, so that experiments which differ in numbers share it.
"""

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

from flax import struct

T = TypeVar("T")

PROGRAMS = 32  # of each kind are remembered, by what they were compiled for
PLACEHOLDER = 0.5  # no int is equal to it, so a field that holds one is another structure


@struct.dataclass
class Numbers(Generic[T]):
    """A value made of frozen dataclasses and tuples, such as an `Algorithm` or a `Learner`, as a pytree whose leaves
    are its floats; `structure` is the value with `PLACEHOLDER` in their places: equal, and with the same hash, for all
    values that differ in floats only.

    What is not a float, None included, is structure. So is a field with metadata {"static": True}, whose number decides
    what is computed; without it a Python branch on a number is refused when a program is traced. Dataclasses need no
    registration.
    """

    floats: tuple[Any, ...]
    structure: T = struct.field(pytree_node=False)

    @classmethod
    def of(cls, value: T) -> "Numbers[T]":
        """Raises ValueError for a value that has no hash, as a list or an array in a field has none."""
        floats: list[float] = []

        def take(number: float) -> float:
            floats.append(float(number))
            return PLACEHOLDER

        structure = _with(take, value)
        try:
            hash(structure)
        except TypeError as error:
            raise ValueError(
                f"{value!r} cannot be told from others ({error}), so no program can be compiled for it: make it of "
                "frozen dataclasses whose fields are numbers, strings, tuples and functions"
            ) from error
        return cls(tuple(floats), structure)

    @property
    def value(self) -> T:
        """The value with these floats, which may be traced. No constructor runs: they check numbers, not tracers."""
        floats = iter(self.floats)
        made: T = _with(lambda _: next(floats), self.structure)
        return made


def _with(change: Callable[[float], Any], value: Any) -> Any:
    """A value whose floats were changed, in the order of its fields."""
    if isinstance(value, float):
        return change(value)
    if type(value) is tuple:
        return tuple(_with(change, item) for item in value)
    if not is_dataclass(value) or isinstance(value, type) or type(value).__hash__ in (None, object.__hash__):
        return value  # what is not compared by value stays what it is
    changed = copy.copy(value)
    for field in fields(value):
        if not field.metadata.get("static"):
            object.__setattr__(changed, field.name, _with(change, getattr(value, field.name)))
    return changed
