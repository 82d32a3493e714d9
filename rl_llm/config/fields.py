"""Fields of components: annotations of ranges (`PositiveInt`, ...), and checks of values against annotations."""

import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Iterable
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

_LIMITS = (("gt", ">", gt), ("ge", ">=", ge), ("lt", "<", lt), ("le", "<=", le))


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
    kind: Any = type(value)
    hints = field_types(kind)
    return {f.name: (getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value) if f.init}


@functools.lru_cache(maxsize=1024)
def field_types(kind: type) -> dict[str, Any]:
    """Annotations of a class by field name."""
    return typing.get_type_hints(kind, include_extras=True)


def missing_members(kind: Any, protocol: type) -> list[str]:
    """Names of a protocol's members that a class, or a value, lacks. Reads no property."""
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    members = {*vars(protocol), *inspect.get_annotations(protocol)}
    names = {name for name in members if name == "__call__" or name[0] != "_"}
    return [name for name in sorted(names - fields) if inspect.getattr_static(kind, name, None) is None]


def check_fields(value: Any) -> None:
    """Check every field of a component, and of its components, against its annotation.

    A `Literal` allows the values it names, and `Annotated[float, msgspec.Meta(gt=0, le=1)]` a range. A range of floats
    leaves out NaN and the infinities; `Meta(gt=0, extra={"infinite": True})` lets infinity in. Raises ValueError naming
    the place, the value and the allowed values.
    """
    _check(value, type(value).__name__, Any)


class Checked:
    """Base of a dataclass that calls `check_fields` when it is made."""

    def __post_init__(self) -> None:
        check_fields(self)


def _check(value: Any, place: str, annotation: Any) -> None:
    for name, (child, wanted) in children(value, annotation).items():
        where = f"{place}.{name}"
        if not _allows(wanted, child):
            choices = _choices(wanted)
            if not choices:
                raise ValueError(f"{where}={child!r} is out of range; expected {_range(wanted)}")
            hint = nearest(child, (choice for choice in choices if isinstance(choice, str)))
            raise ValueError(f"{where}={child!r} must be one of {', '.join(map(repr, choices))}{hint}")
        _check(child, where, wanted)


def _allows(annotation: Any, value: Any) -> bool:
    """Whether the choices and ranges of an annotation allow a value. Types are not checked."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_allows(part, value) for part in arguments)
    if origin is Annotated:
        return _allows(arguments[0], value) and all(_inside(one, value) for one in arguments if isinstance(one, Meta))
    if origin is Literal:
        return value in arguments
    if annotation is types.NoneType:
        return value is None
    return not (dataclasses.is_dataclass(annotation) and isinstance(value, int | float))


def _inside(bounds: Meta, value: Any) -> bool:
    limits = [(getattr(bounds, name), holds) for name, _, holds in _LIMITS if getattr(bounds, name) is not None]
    if not limits or not hasattr(value, "__float__"):
        return not limits
    finite = math.isfinite(value) or (value == math.inf and "infinite" in (bounds.extra or {}))
    return finite and all(holds(value, limit) for limit, holds in limits)


def _choices(annotation: Any) -> tuple[Any, ...]:
    """All values of an annotation that names them; empty for any other."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal or annotation is types.NoneType:
        return arguments or (None,)
    members = [_choices(part) for part in arguments] if origin in (Union, types.UnionType) else []
    return sum(members, ()) if all(members) else ()


def _range(annotation: Any) -> str:
    """Choices and ranges of an annotation in words, e.g. `> 0 and <= 1 or None`; empty if it has none."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, Meta):
        limits = [(sign, getattr(annotation, name)) for name, sign, _ in _LIMITS]
        return " and ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)
    if origin in (Annotated, Union, types.UnionType):
        return " or ".join(filter(None, map(_range, arguments)))
    return ", ".join(map(repr, _choices(annotation)))


def describe_type(annotation: Any) -> str:
    """An annotation in words, e.g. `float > 0 and <= 1 | None`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return f"{describe_type(arguments[0])} {_range(annotation)}".strip()
    if origin in (Union, types.UnionType):
        return " | ".join(map(describe_type, arguments))
    if isinstance(annotation, type) and not arguments:
        return annotation.__name__.replace("NoneType", "None")
    return str(annotation).replace("typing.", "")


def nearest(name: Any, names: Iterable[str]) -> str:
    """Suggest the one of `names` that is most similar to a wrong name, as a question; empty if none is."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5) if isinstance(name, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""
