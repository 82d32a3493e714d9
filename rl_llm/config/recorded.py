"""Rebuild an experiment from its record, the inverse of `to_json`. A record can name classes, and nothing is called.

Only dataclasses of this package and of installed packages are made, each where its annotation allows it. A record that
names anything else needs its experiment's file, which is code: see `rl_llm.config.trust`.
"""

import dataclasses
import functools
import importlib
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Union

import msgspec

from rl_llm.config.fields import children, describe_type, field_types, missing_members
from rl_llm.config.source import PACKAGE, is_library, module_file
from rl_llm.config.values import plain_type

_DATACLASS = re.compile(r"^@(?:\w+\.)?dataclass\b.*\n(?:@.*\n)*class (\w+)", re.MULTILINE)


class NeedsFileError(ValueError):
    """A record that names a function, or a class outside this package and the installed ones."""


def from_json(recorded: Any, annotation: Any, place: str = "experiment") -> Any:
    """Rebuild a value with this annotation from what `to_json` made of it.

    Raises NeedsFileError if that takes more than installed dataclasses, ValueError naming the place and the value for
    one that does not fit its annotation or that a component refuses.
    """
    options = list(_options(annotation))
    mapping = next((one for one in options if typing.get_origin(one) is Mapping), None)
    if isinstance(recorded, dict) and "class" in recorded and mapping is None:
        return _component(recorded, options, place)
    several = next((one for one in options if one is Any or typing.get_origin(one) is tuple), None)
    if isinstance(recorded, list) and several is not None:
        items = children(tuple(recorded), several).items()
        return tuple(from_json(item, wanted, f"{place}.{index}") for index, (item, wanted) in items)
    wanted = Any if Any in options or mapping is not None else plain_type(annotation)
    if wanted is None and isinstance(recorded, str) and not all(map(dataclasses.is_dataclass, options)):
        raise NeedsFileError(f"{place} is {recorded}")
    candidates = [float(recorded)] if recorded in ("inf", "-inf", "nan") else []
    for candidate in [*candidates, recorded] if wanted is not None else []:
        try:
            return msgspec.convert(candidate, wanted, dec_hook=lambda kind, raw: kind(raw))
        except (msgspec.ValidationError, TypeError):
            continue
    raise ValueError(f"{place} is {recorded!r}; expected {describe_type(annotation)}")


def _component(recorded: Mapping[str, Any], options: list[Any], place: str) -> Any:
    """Make a dataclass whose values are recorded, if one of the annotations allows its class."""
    kind = _installed_class(str(recorded["class"]), place)
    if not any(_allows(one, kind) for one in options):
        raise ValueError(f"{place} is a {recorded['class']}; expected {' | '.join(map(describe_type, options))}")
    fields, types = {field.name for field in dataclasses.fields(kind) if field.init}, field_types(kind)
    if unknown := recorded.keys() - fields - {"class"}:
        raise ValueError(f"{place}: {recorded['class']} has no {', '.join(sorted(unknown))}")
    given = {name: from_json(recorded[name], types[name], f"{place}.{name}") for name in fields & recorded.keys()}
    return kind(**given)


def _installed_class(name: str, place: str) -> type:
    """Find an installed dataclass by its recorded name. A module is imported only if its text defines the class."""
    module, _, bare = name.rpartition(".")
    module = module or _own_classes().get(bare, "")
    file = module_file(module) if module else None
    if file is None or not is_library(file) or bare not in _dataclasses(file):
        raise NeedsFileError(f"{place} is a {name}")
    kind = getattr(importlib.import_module(module), bare)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise NeedsFileError(f"{place} is a {name}")
    return kind


@functools.cache
def _own_classes() -> dict[str, str]:
    """Modules of this package's dataclasses by class name, from the text of its files."""
    files = {file: file.relative_to(PACKAGE.parent).with_suffix("").parts for file in sorted(PACKAGE.rglob("*.py"))}
    return {name: ".".join(parts) for file, parts in files.items() for name in _dataclasses(file)}


def _dataclasses(file: Path) -> list[str]:
    return _DATACLASS.findall(file.read_text(encoding="utf-8", errors="replace"))


def _options(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, without what stands beside them in `Annotated`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    inside = arguments if origin is Union or isinstance(annotation, type(int | None)) else ()
    inside = arguments[:1] if origin is Annotated else inside
    if inside:
        yield from (one for part in inside for one in _options(part))
    else:
        yield annotation


def _allows(annotation: Any, kind: type) -> bool:
    """Whether a component of this class may stand here: a subclass, or one with all members of a protocol."""
    if not isinstance(annotation, type):
        return False
    if getattr(annotation, "_is_protocol", False):
        return not missing_members(kind, annotation)
    return issubclass(kind, annotation)
