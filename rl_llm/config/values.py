"""Experiments as values: override their fields, write them as JSON, fingerprint and compare them.

All functions accept any frozen dataclass of plain values (bool, int, float, str, Path, None), tuples, and further
dataclasses ("components"). The command line changes plain values; Python changes structure.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import inspect
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast

import msgspec

from rl_llm.config.fields import children, describe_type, is_component, nearest

_Value = TypeVar("_Value")

# Constants that JSON lacks or spells differently from Python.
_CONSTANTS = {"none": None, "true": True, "false": False, "inf": math.inf, "-inf": -math.inf}


class OverrideError(ValueError):
    """A `--set` assignment that cannot be made. The message names the place, the reason and the remedy."""


class _Assignment(typing.NamedTuple):
    original: str
    path: tuple[str, ...]
    text: str

    def refuse(self, reason: str) -> OverrideError:
        return OverrideError(f"--set {self.original}: {reason}")


def override(value: _Value, assignments: Sequence[str]) -> _Value:
    """Return `value` with all assignments applied, e.g. `["sampling.temperature=0.7", "seed=3"]`.

    A path walks the fields of the actual components, and tuples by index. The text is one of none/true/false/inf, JSON,
    or plain text, whichever first fits the field's annotation. An integer fits a float field; no other type is
    converted. A component whose annotation brings presets, `Annotated[Layout, PRESETS]`, is set by the name of one.
    Assignments are applied together, so a component checks its final values only.
    Raises `OverrideError` for an unknown name, a wrong type, structure instead of a plain value, a place set twice, or
    values that a component refuses (a ValueError of its `__post_init__`).
    """
    parsed = [_parse(assignment) for assignment in assignments]
    for index, second in enumerate(parsed):
        for first in parsed[:index]:
            if all(a == b for a, b in zip(first.path, second.path, strict=False)):
                raise second.refuse(f"--set {first.original} already sets this place; keep one of them")
    return cast(_Value, _assign(value, type(value), parsed, 0, value)) if parsed else value


def _parse(assignment: str) -> _Assignment:
    place, equals, text = assignment.partition("=")
    path = tuple(place.strip().split("."))
    if not equals or not all(part.isidentifier() or part.isdecimal() for part in path):
        raise OverrideError(f"--set {assignment}: expected NAME=VALUE, e.g. sampling.temperature=0.7")
    return _Assignment(assignment, path, text.strip())


def _assign(value: Any, annotation: Any, assignments: Sequence[_Assignment], depth: int, root: Any) -> Any:
    """Rebuild `value` with the assignments inside it; the first `depth` parts of their paths lead to it."""
    if len(assignments[0].path) == depth:  # then it is the only one, as no two assignments overlap
        return _convert(assignments[0], value, annotation)
    inside = children(value, annotation)
    changed = {}
    for part in dict.fromkeys(assignment.path[depth] for assignment in assignments):
        below = [assignment for assignment in assignments if assignment.path[depth] == part]
        if part not in inside:
            kind = type(value).__name__ if inside else repr(value)
            where = f"{'.'.join(below[0].path[:depth])} ({kind})" if depth else kind
            if value is None and (made := _in_python(assignments, annotation, depth)):
                raise below[0].refuse(f"{where} has no fields, and only Python changes structure; {made}")
            hint = _elsewhere(below[0].path[depth:], inside, root)
            listing = f"; it has: {', '.join(inside)}" if inside else ""
            raise below[0].refuse(f"{where} has no {part!r}{hint}{listing}")
        changed[part] = _assign(*inside[part], below, depth + 1, root)
    if isinstance(value, tuple):
        return tuple(changed.get(str(index), item) for index, item in enumerate(value))
    try:
        return dataclasses.replace(value, **changed)
    except ValueError as error:
        texts = " ".join(f"--set {assignment.original}" for assignment in assignments)
        raise OverrideError(f"{texts}: {type(value).__name__} refuses it: {error}") from error


def _convert(assignment: _Assignment, current: Any, annotation: Any) -> Any:
    """Convert the text of an assignment to the annotated type."""
    place, text = ".".join(assignment.path), assignment.text
    presets = _presets(annotation)
    if text in presets:
        return presets[text]
    wanted = None if is_component(current) else plain_type(annotation)
    if wanted in (None, types.NoneType):
        names = ", ".join(f"{place}.{name}" for name in children(current, annotation))
        now = type(current).__name__ if names else repr(current)
        made = _in_python([assignment], annotation, len(assignment.path)) if current is None else ""
        made = made or f"use dataclasses.replace in the experiment's file{names and f', or set a value in it: {names}'}"
        if presets:
            made = f"give the name of a preset{nearest(text, presets)}: {', '.join(presets)}; or {made}"
        raise assignment.refuse(f"{place} is structure (now {now}), and only Python changes structure; {made}")
    candidates: list[Any] = [_CONSTANTS[text.lower()]] if text.lower() in _CONSTANTS else []
    with contextlib.suppress(msgspec.DecodeError):
        candidates.append(msgspec.json.decode(text))
    for candidate in [*candidates, text]:
        with contextlib.suppress(msgspec.ValidationError):
            return msgspec.convert(candidate, wanted, dec_hook=lambda kind, raw: kind(raw))
    raise assignment.refuse(f"expected {describe_type(wanted)}, got {text!r}")


def _presets(annotation: Any) -> Mapping[str, Any]:
    """Values by name that stand beside a component's type: `Annotated[Layout, PRESETS]`."""
    beside = getattr(annotation, "__metadata__", ())
    return next((part for part in beside if isinstance(part, Mapping)), {})


def plain_type(annotation: Any) -> Any:
    """Reduce an annotation to the types that a command line can write, or to None if there are none."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal or annotation in (bool, int, float, str, Path, types.NoneType):
        return annotation
    if origin is Annotated:
        return None if plain_type(arguments[0]) is None else annotation
    if origin in (Union, types.UnionType):
        members = tuple(part for part in map(plain_type, arguments) if part is not None)
        if str in members:  # a path is written as text too: msgspec accepts no union with Path
            members = tuple(part for part in members if part is not Path)
        return Union[members] if members else None  # noqa: UP007 (the members are known only here)
    if origin is tuple and all(part is Ellipsis or plain_type(part) == part for part in arguments):
        return annotation
    return None


def _in_python(assignments: Sequence[_Assignment], annotation: Any, depth: int) -> str:
    """Python lines that replace a None by a component with the assigned values; empty if no class fits."""
    kind: Any = next((part for part in typing.get_args(annotation) if dataclasses.is_dataclass(part)), None)
    parents = assignments[0].path[:depth]
    if kind is None or not all(map(str.isidentifier, parents)):
        return ""
    hints, values, missing = typing.get_type_hints(kind, include_extras=True), {}, dataclasses.MISSING
    for assignment in assignments:
        name = "".join(assignment.path[depth : depth + 1])  # empty for `model.lora=8`
        if name and name not in hints:
            raise assignment.refuse(f"{kind.__name__} has no {name!r}{nearest(name, hints)}")
        if name and len(assignment.path) == depth + 1:
            values[name] = repr(_convert(assignment, None, hints[name]))
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is missing]
    made = f"{kind.__name__}({', '.join(f'{n}={v}' for n, v in (dict.fromkeys(needed, '...') | values).items())})"
    for level in range(depth, 0, -1):
        made = f"replace({'.'.join(('base', *parents[: level - 1]))}, {parents[level - 1]}={made})"
    imports = f"from dataclasses import replace\n  from {kind.__module__} import {kind.__name__}"
    return f"in the experiment's file:\n  {imports}\n  base = {made}"


def _elsewhere(path: Sequence[str], inside: Iterable[str], root: Any) -> str:
    """Suggest the nearest name here or, if it is closer, elsewhere: `optimizer.learning_rate` for `learning_rat`."""
    here = list(inside)
    for wanted in (path, path[:1]):
        places: dict[str, list[str]] = {}
        for place in _places(root, ""):
            places.setdefault(".".join(place.split(".")[-len(wanted) :]), []).append(place)
        close = difflib.get_close_matches(".".join(wanted), [*here, *places], n=1, cutoff=0.6)
        if close and close[0] not in here:
            return f" (did you mean {' or '.join(map(repr, places[close[0]]))}?)"
    return nearest(path[0], here)


def _places(value: Any, prefix: str) -> Iterator[str]:
    for name, (child, _) in children(value, Any).items():
        yield prefix + name
        yield from _places(child, f"{prefix}{name}.")


def to_json(value: Any) -> Any:
    """Encode `value` as JSON: a component becomes `{"class": NAME, field: ...}`.

    NAME is the bare class name for this package's classes, so moving one to another module changes no record, and
    `module.Name` for everyone else's. Tuples become lists, functions and classes their NAME, paths, infinities and NaN
    strings. Raises TypeError for any other value, ValueError for two classes or functions of one NAME, with the place.
    """
    return _encode(value, "value", {}, naming=False)


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of an experiment, as 64 hexadecimal digits.

    Fields with metadata {"fingerprint": False} are left out: the result of a run does not depend on them (mesh,
    folders). Equal values have equal fingerprints, 1 and 1.0 included.
    """
    canonical = json.dumps(_encode(value, "value", {}, naming=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _encode(value: Any, place: str, names: dict[str, Any], *, naming: bool) -> Any:
    """Encode as JSON; with `naming` for a fingerprint. `names` collects classes and functions by recorded name."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        written = value if math.isfinite(value) else str(value)
        return int(value) if naming and value.is_integer() else written
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, tuple | list):
        return [_encode(item, f"{place}[{index}]", names, naming=naming) for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _encode(item, f"{place}[{key!r}]", names, naming=naming) for key, item in value.items()}
    if is_component(value):
        encoded = {"class": _recorded_name(type(value), place, names)}
        for field in dataclasses.fields(value):
            if field.metadata.get("fingerprint", True) or not naming:
                item = getattr(value, field.name)
                encoded[field.name] = _encode(item, f"{place}.{field.name}", names, naming=naming)
        return encoded
    # Lambdas and local functions are refused: two of them would share a name.
    if (isinstance(value, type) or inspect.isroutine(value)) and "<" not in value.__qualname__:
        return _recorded_name(value, place, names)
    raise TypeError(f"{place} is {value!r} ({type(value).__name__}), which cannot be recorded in JSON")


def _recorded_name(item: Any, place: str, names: dict[str, Any]) -> str:
    """Name of a class or function in records, independent of the module where the package keeps it."""
    package = __name__.partition(".")[0]
    ours = str(item.__module__).partition(".")[0] == package
    name = item.__qualname__ if ours else f"{item.__module__}.{item.__qualname__}"
    other = names.setdefault(name, item)
    if other != item:
        raise ValueError(
            f"{place}: {item.__module__} and {other.__module__} both define {name!r}, so records cannot tell them "
            "apart; rename one of the two"
        )
    return name


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """List differences of two results of `to_json`, e.g. `algorithm.objective.high: 0.2 -> 0.28`."""
    if isinstance(first, dict) and isinstance(second, dict) and first.get("class") == second.get("class"):
        pairs = [(key, first.get(key, "absent"), second.get(key, "absent")) for key in {**first, **second}]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(first, second, strict=True))]
    elif first == second and isinstance(first, bool) == isinstance(second, bool):
        return []
    else:
        return [f"{place}: {_show(first)} -> {_show(second)}"]
    prefix = f"{place}." if place else ""
    return [line for name, one, other in pairs for line in differences(one, other, prefix + name)]


def _show(value: Any) -> str:
    """Format JSON like Python: `Clip(low=0.2, high=0.28)`."""
    if isinstance(value, dict):
        fields = [f"{key}={_show(item)}" for key, item in value.items() if key != "class"]
        return f"{value.get('class', '').rpartition('.')[2]}({', '.join(fields)})"
    return f"[{', '.join(map(_show, value))}]" if isinstance(value, list) else str(value)
