"""Fields of components: walk them, and check their values against what their annotations declare."""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable
from operator import ge, gt, le, lt
from typing import Annotated, Any, Literal, Union

from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
UnitFloat = Annotated[float, Meta(ge=0, le=1)]  # [0, 1]
PositiveShare = Annotated[float, Meta(gt=0, le=1)]  # (0, 1]
Decay = Annotated[float, Meta(ge=0, lt=1)]  # [0, 1)
PositiveOrInfinite = Annotated[float, Meta(gt=0, extra={"infinite": True})]

_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "gt": (">", gt),
    "ge": (">=", ge),
    "lt": ("<", lt),
    "le": ("<=", le),
}


def is_component(value: Any) -> bool:
    """Whether it is a value of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def children(value: Any, annotation: Any) -> dict[str, tuple[Any, Any]]:
    """Fields of a component, or elements of a tuple: name -> (value, annotation)."""
    if isinstance(value, tuple):
        wanted = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else (Any, ...)
        wanted = wanted[:1] * len(value) if Ellipsis in wanted else wanted
        return {str(index): pair for index, pair in enumerate(zip(value, wanted, strict=True))}
    if not is_component(value):
        return {}
    hints = _hints(type(value))
    return {f.name: (getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value) if f.init}


@functools.lru_cache(maxsize=1024)
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def check_fields(value: Any) -> None:
    """Check every field of a component, and of its components, against its annotation.

    A `Literal` allows the values it names, and `Annotated[float, msgspec.Meta(gt=0, le=1)]` a range. A range of floats
    leaves out NaN and the infinities; `Meta(gt=0, extra={"infinite": True})` lets infinity in.

    Raises ValueError naming the place, the value and the allowed values.
    """
    _check(value, type(value).__name__, Any)


def _check(value: Any, place: str, annotation: Any) -> None:
    for name, (child, wanted) in children(value, annotation).items():
        where = f"{place}.{name}"
        choices, bounds = _choices(wanted), _bounds(wanted)
        if choices and child not in choices:
            hint = nearest(child, (choice for choice in choices if isinstance(choice, str)))
            raise ValueError(f"{where}={child!r} must be one of {', '.join(map(repr, choices))}{hint}")
        if bounds is not None and isinstance(child, int | float) and not _inside(child, bounds):
            raise ValueError(f"{where}={child!r} is out of range; expected {_range(bounds)}")
        _check(child, where, wanted)


def _choices(annotation: Any) -> tuple[Any, ...]:
    """All values of an annotation that names them; empty for any other."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal or annotation is types.NoneType:
        return arguments or (None,)
    if origin is Annotated:
        return _choices(arguments[0])
    members = [_choices(part) for part in arguments] if origin in (Union, types.UnionType) else []
    return sum(members, ()) if all(members) else ()


def _bounds(annotation: Any) -> Meta | None:
    """The range that an annotation declares for its numbers."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return next((part for part in arguments[1:] if isinstance(part, Meta) and _range(part)), None)
    members = map(_bounds, arguments) if origin in (Union, types.UnionType) else ()
    return next((bounds for bounds in members if bounds is not None), None)


def _inside(value: float, bounds: Meta) -> bool:
    finite = math.isfinite(value) or (value == math.inf and "infinite" in (bounds.extra or {}))
    limits = [(holds, getattr(bounds, name)) for name, (_, holds) in _BOUNDS.items()]
    return finite and all(limit is None or holds(value, limit) for holds, limit in limits)


def _range(bounds: Meta) -> str:
    limits = [(sign, getattr(bounds, name)) for name, (sign, _) in _BOUNDS.items()]
    return " and ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)


def describe(annotation: Any) -> str:
    """An annotation in words, e.g. `float > 0 and <= 1 | None`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return " ".join(filter(None, (describe(arguments[0]), _range(_bounds(annotation) or Meta()))))
    if origin in (Union, types.UnionType):
        return " | ".join(map(describe, arguments))
    if annotation is types.NoneType:
        return "None"
    return (
        annotation.__name__
        if isinstance(annotation, type) and not arguments
        else str(annotation).replace("typing.", "")
    )


def nearest(name: Any, names: Iterable[str]) -> str:
    """A question that can follow a wrong name, about the one of `names` most like it; empty where none is."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5) if isinstance(name, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""
