"""What other frameworks have for each technique, read from peers.toml: for docs/techniques.md and for the tests."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

Function = tuple[str, str]  # of which peer, by which name


@dataclass(frozen=True)
class Same:
    """Peers' functions and what of ours returns the same: an expression in the names of their parameters."""

    component: str
    functions: tuple[Function, ...]
    ours: str


@dataclass(frozen=True)
class LeftOut:
    """Cases of a peer's function (patterns of their names) that are not reproduced, and why."""

    component: str
    function: Function
    cases: tuple[str, ...]
    why: str


@cache
def told() -> dict[str, Any]:
    """The file as it stands."""
    return tomllib.loads(Path(__file__).with_name("peers.toml").read_text())


def versions() -> dict[str, str]:
    """The peers' versions whose functions were run."""
    return dict(told()["versions"])


def components() -> list[str]:
    """The names of the components that the file has something to say of."""
    return [name for name in told() if name not in ("versions", "functions")]


def same() -> list[Same]:
    """All of them, in the file's order; peers with the same expression for a component come together."""
    found: list[Same] = []
    for component in components():
        by_expression: dict[str, tuple[Function, ...]] = {}
        for key, value in told()[component].items():
            if key not in ("differ", "left_out"):
                by_expression[value] = by_expression.get(value, ()) + functions_of(key)
        found += [Same(component, functions, ours) for ours, functions in by_expression.items()]
    return found


def plain() -> dict[Function, str]:
    """The peers' functions that are a function here and no component, with its name below rl_llm."""
    return {function: ours for key, ours in told()["functions"].items() for function in functions_of(key)}


def left_out() -> list[LeftOut]:
    """All of them, in the file's order."""
    return [
        LeftOut(component, functions_of(entry["function"])[0], tuple(entry["cases"]), one_line(entry["why"]))
        for component in components()
        for entry in told()[component].get("left_out", [])
    ]


def reasons(names: Iterable[str]) -> dict[str, str]:
    """Of the cases by these names, those that are left out, with the reason."""
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
    """What the page says of the peers under a component."""
    lines = [
        f"* {listed(entry.functions)}: `{entry.ours.removesuffix(' else None')}`"
        for entry in same()
        if entry.component == component
    ]
    differ = told().get(component, {}).get("differ", "")
    text = ["Peers:", *([] if lines else ["not compared."]), *differ.split()]
    lines += [
        wrapped(f"* not reproduced: {listed([entry.function])} (`{'`, `'.join(entry.cases)}`): {entry.why}", "  ")
        for entry in left_out()
        if entry.component == component
    ]
    return "\n" + "\n\n".join(part for part in (wrapped(" ".join(text)), "\n".join(lines)) if part) + "\n"


def plain_section() -> str:
    """What the page says of the peers' functions that no component stands for."""
    lines = [f"* {listed([function])}: `rl_llm.{ours}`" for function, ours in plain().items()]
    return "\n## Peers' functions that no component stands for\n\n" + "\n".join(lines) + "\n"


def listed(functions: Iterable[Function]) -> str:
    """Peers with their functions, each peer named once in a row."""
    by_peer: dict[str, list[str]] = {}
    for peer, name in functions:
        by_peer.setdefault(peer, []).append(f"`{name}`")
    return ", ".join(f"{peer} {', '.join(names)}" for peer, names in by_peer.items())


def wrapped(text: str, indent: str = "") -> str:
    """Prose in lines of at most 120 letters."""
    return fill(text, 120, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def one_line(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())
