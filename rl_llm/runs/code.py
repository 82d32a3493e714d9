"""The code in the folder of a run or study: its copies, its record, and what has changed since.

code/ has every file as it first ran, code.1/, code.2/, ... files that were changed later. The digests are in
experiment.json or the ledger's event `registered`, and in its events `code_changed` and `code_added`.
"""

import ast
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rl_llm.config.source import Code, sha256
from rl_llm.runs.files import write_atomically
from rl_llm.runs.ledger import Ledger

CODE = "code"
ACCEPT = "--accept-code-changes"
EVENTS = ("registered", "code_changed", "code_added")  # whose data may have `code`
LINES = 20  # of a diff that are shown
Digests = Mapping[str, str | None]  # SHA-256 by file name; None without a source file
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class CodeChange:
    """A file that is not as recorded. `text` names the changed classes and functions and shows a short diff."""

    name: str
    was: str | None
    now: str | None
    text: str


def recorded_code(record: Mapping[str, Any], ledger: Path) -> dict[str, str | None] | None:
    """Code of a run or study as begun and as accepted since; None if it was not recorded.

    record: content of experiment.json; empty for a study. The ledger's chain is not verified, and its last line may be
    incomplete. Raises ValueError naming a damaged ledger.
    """
    lines = ledger.read_bytes().split(b"\n")[:-1] if ledger.exists() else []
    try:
        entries = [entry for line in lines if (entry := json.loads(line))["event"] in EVENTS]
        found = [record.get("code"), *(entry["data"].get("code") for entry in entries)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{ledger} is damaged: {error}") from error
    known = [digests for digests in found if digests is not None]
    return {name: digest for digests in known for name, digest in digests.items()} if known else None


def code_changes(folder: Path, recorded: Digests | None, code: Code) -> list[CodeChange]:
    """Files that differ from those recorded in a folder, in more than comments, docstrings and layout.

    A file that is only here or there is no change by itself: either another file changed its imports, or it defines
    nothing that the fingerprint names.
    """
    changes, files = [], _as_recorded(code.files, recorded)
    for name, was in (recorded or {}).items():
        before, after = saved_code(folder, name, was), files.get(name)
        now = None if after is None else sha256(after)
        if name not in files or now == was:
            continue
        if before is None or after is None:
            changes.append(CodeChange(name, was, now, f"{name} (there is no copy to compare with)"))
        elif ast.dump(_tree(before)) != ast.dump(_tree(after)):
            changes.append(CodeChange(name, was, now, _describe(name, before, after)))
    return changes


def refusal(folder: Path, changes: Sequence[CodeChange]) -> str:
    """Message for code that has changed since it was recorded in a folder."""
    return (
        f"{folder} was made by other code. Changed since then:\n{in_words(changes)}\nRestore these files (copies are "
        f"in {folder / CODE}), choose another --out, or go on with {ACCEPT}: the ledger will say so"
    )


def in_words(changes: Sequence[CodeChange]) -> str:
    """All changes, indented."""
    return "\n".join(f"  {line}" for change in changes for line in change.text.splitlines())


def take_code(folder: Path, ledger: Ledger, recorded: Digests | None, code: Code) -> list[str]:
    """Copy code into the folder, and enter changed and unrecorded files in its ledger; returns notes for the user."""
    changes, files = code_changes(folder, recorded, code), _as_recorded(code.files, recorded)
    for name, content in files.items():
        if content is not None and saved_code(folder, name, sha256(content)) is None:
            place = next(place for place in _places(folder, name) if not place.exists())
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, content)
    known = recorded is not None or not files
    if changes:
        was, now = ({change.name: getattr(change, when) for change in changes} for when in ("was", "now"))
        ledger.append("code_changed", code=now, was=was, commit=code.commit)
    if added := {name: now for name, now in Code(files).digests.items() if name not in (recorded or {})}:
        ledger.append("code_added", code=added, commit=code.commit)
    unseen = ", ".join(name for name, content in files.items() if content is None)
    return [
        *([f"accepted code changes:\n{in_words(changes)}"] if changes else []),
        *([f"{folder} recorded no code before this resume: earlier changes cannot be seen"] * (not known)),
        *([f"{unseen} has no source file: changes of its code cannot be seen"] if unseen else []),
    ]


def saved_code(folder: Path, name: str, digest: str | None) -> bytes | None:
    """Copy of a file with this digest; None if the folder has none."""
    for place in _places(folder, name):
        if not place.is_file():
            return None
        if sha256(content := place.read_bytes()) == digest:
            return content
    return None


def _places(folder: Path, name: str) -> Iterator[Path]:
    return (folder / (f"{CODE}.{version}" if version else CODE) / name for version in count())


def _as_recorded(files: Mapping[str, bytes | None], recorded: Digests | None) -> dict[str, bytes | None]:
    """Files by their recorded names: `studies/one.py` is `one.py` if the command was given in another folder."""

    def name_of(name: str) -> str:
        alike = (one for one in recorded or () if f"/{one}".endswith(f"/{name}") or f"/{name}".endswith(f"/{one}"))
        return name if name in (recorded or ()) else next(alike, name)

    return {name_of(name): content for name, content in files.items()}


def _tree(content: bytes) -> ast.AST:
    """Syntax tree without docstrings; a constant for a file that is not Python."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return ast.Constant(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | Definition):
            node.body = node.body[ast.get_docstring(node) is not None :]
    return tree


def _describe(name: str, before: bytes, after: bytes) -> str:
    """Names of the changed classes and functions, and a short diff."""
    old, new = (
        {(node.name, ast.dump(node)) for node in ast.walk(_tree(text)) if isinstance(node, Definition)}
        for text in (before, after)
    )
    names = ", ".join(sorted({part for part, _ in old ^ new}))
    first, second = (text.decode(errors="replace").splitlines() for text in (before, after))
    diff = list(difflib.unified_diff(first, second, n=1, lineterm=""))[2:]
    more = [f"... {len(diff) - LINES} more lines"] if len(diff) > LINES else []
    return "\n    ".join([f"{name}: {names}" if names else name, *diff[:LINES], *more])
