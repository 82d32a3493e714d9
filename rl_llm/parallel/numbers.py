"""Split a value into its numbers and its structure, so that programs are compiled for the structure alone."""

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Floats = tuple[Any, ...]

PLACEHOLDER = 0.5  # no int equals it, so a field that holds an int is another structure


def partition(value: T) -> tuple[Floats, T]:
    """Split a value of frozen dataclasses and tuples, such as an `Algorithm`, into its floats and its structure.

    The structure is the value with `PLACEHOLDER` for every float: values that differ in floats only have equal
    structures with equal hashes. Everything else is structure, None included, and so is a field with metadata
    {"static": True}, which decides how a program is built. A Python branch on another float fails when traced.
    Raises ValueError for a value without a hash, such as one with a list or an array in a field.
    """
    floats: list[float] = []

    def take(number: float) -> float:
        floats.append(float(number))
        return PLACEHOLDER

    structure = _map_floats(take, value)
    try:
        hash(structure)
    except TypeError as error:
        raise ValueError(
            f"{value!r} cannot be told from others ({error}), so no program can be compiled for it; make it of frozen "
            "dataclasses whose fields are numbers, strings, tuples and functions"
        ) from error
    return tuple(floats), structure


def combine(floats: Floats, structure: T) -> T:
    """Rebuild a value from `partition`'s results, without its constructor's checks: the floats may be tracers."""
    remaining = iter(floats)
    value: T = _map_floats(lambda _: next(remaining), structure)
    return value


def _map_floats(change: Callable[[float], Any], value: Any) -> Any:
    """Copy of a value with every float changed, in the order of its fields."""
    if isinstance(value, float):
        return change(value)
    if type(value) is tuple:
        return tuple(_map_floats(change, item) for item in value)
    if not is_dataclass(value) or isinstance(value, type) or type(value).__hash__ in (None, object.__hash__):
        return value  # not compared by value, so it stays as it is
    changed = copy.copy(value)
    for field in fields(value):
        if not field.metadata.get("static"):
            object.__setattr__(changed, field.name, _map_floats(change, getattr(value, field.name)))
    return changed
