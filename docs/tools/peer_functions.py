"""Counterparts of each technique in other frameworks, read from peers.toml: for docs/techniques.md and the tests."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

Function = tuple[str, str]  # (peer, name)


@dataclass(frozen=True)
class Same:
    """Peers' functions and our equivalent: an expression in the names of their parameters."""

    component: str
    functions: tuple[Function, ...]
    ours: str


@dataclass(frozen=True)
class LeftOut:
    """Cases of a peer's function (patterns of names) that are not reproduced, and why."""

    component: str
    function: Function
    cases: tuple[str, ...]
    why: str


@cache
def entries() -> dict[str, Any]:
    """Contents of peers.toml."""
    return tomllib.loads(Path(__file__).with_name("peers.toml").read_text())


def versions() -> dict[str, str]:
    """Versions of the peers that were run."""
    return dict(entries()["versions"])


def components() -> list[str]:
    """Names of the components in the file."""
    return [name for name in entries() if name not in ("versions", "functions")]


def same() -> list[Same]:
    """All equivalents, in the file's order; peers with one expression for a component are merged."""
    found: list[Same] = []
    for component in components():
        by_expression: dict[str, tuple[Function, ...]] = {}
        for key, value in entries()[component].items():
            if key not in ("differ", "left_out"):
                by_expression[value] = by_expression.get(value, ()) + functions_of(key)
        found += [Same(component, functions, ours) for ours, functions in by_expression.items()]
    return found


def plain() -> dict[Function, str]:
    """Peers' functions that are a plain function here, with its name below rl_llm."""
    return {function: ours for key, ours in entries()["functions"].items() for function in functions_of(key)}


def left_out() -> list[LeftOut]:
    """All left-out cases, in the file's order."""
    return [
        LeftOut(component, functions_of(entry["function"])[0], tuple(entry["cases"]), one_line(entry["why"]))
        for component in components()
        for entry in entries()[component].get("left_out", [])
    ]


def reasons(names: Iterable[str]) -> dict[str, str]:
    """Reasons of the cases with these names that are left out."""
    return {
        name: entry.why
        for name in names
        for entry in left_out()
        if any(fnmatchcase(name, pattern) for pattern in entry.cases)
    }


def functions_of(key: str) -> tuple[Function, ...]:
    """ "verl f, g" -> (("verl", "f"), ("verl", "g"))."""
    peer, _, names = key.partition(" ")
    return tuple((peer, name) for name in names.split(", "))


def section(component: str) -> str:
    """Section on the peers under a component."""
    lines = [
        f"* {listed(entry.functions)}: `{entry.ours.removesuffix(' else None')}`"
        for entry in same()
        if entry.component == component
    ]
    differ = entries().get(component, {}).get("differ", "")
    text = ["Peers:", *([] if lines else ["not compared."]), *differ.split()]
    lines += [
        wrapped(f"* not reproduced: {listed([entry.function])} (`{'`, `'.join(entry.cases)}`): {entry.why}", "  ")
        for entry in left_out()
        if entry.component == component
    ]
    return "\n" + "\n\n".join(part for part in (wrapped(" ".join(text)), "\n".join(lines)) if part) + "\n"


def plain_section() -> str:
    """Section on peers' functions without a component."""
    lines = [f"* {listed([function])}: `rl_llm.{ours}`" for function, ours in plain().items()]
    return "\n## Peers' functions without a component\n\n" + "\n".join(lines) + "\n"


def listed(functions: Iterable[Function]) -> str:
    """Peers with their functions; a peer is named once."""
    by_peer: dict[str, list[str]] = {}
    for peer, name in functions:
        by_peer.setdefault(peer, []).append(f"`{name}`")
    return ", ".join(f"{peer} {', '.join(names)}" for peer, names in by_peer.items())


def wrapped(text: str, indent: str = "") -> str:
    """Prose in lines of at most 120 characters."""
    return fill(text, 120, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def one_line(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())
