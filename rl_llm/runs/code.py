"""The code in the folder of a run or study: its copies, its record, and what has changed since.

code/ has every file as it first ran, code.1/, code.2/, ... files that were changed later. Their digests are in
experiment.json or the ledger's event `registered`, and in its events `code_recorded` (null for a file that is gone).
"""

import ast
import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count, takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from rl_llm.config.source import PACKAGE, Code, imports_of, sha256
from rl_llm.config.trust import remember
from rl_llm.runs.files import read_records, write_atomically
from rl_llm.runs.ledger import Ledger

CODE = "code"
OURS = f"{PACKAGE.name}/"  # files of a clone of this package
ACCEPT = "--accept-code-changes"
LINES = 20  # of a diff that are shown
Digests = Mapping[str, str | None]  # SHA-256 by file name; None without a source file
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def recorded_code(record: Mapping[str, Any], ledger: Path) -> dict[str, str | None] | None:
    """Code of a run or study as begun and as accepted since; None if it was not recorded.

    record: content of experiment.json; empty for a study. The ledger's chain is not verified, and its last line may be
    incomplete. Raises ValueError naming a damaged ledger.
    """
    try:
        entries = read_records(ledger) if ledger.exists() else []
        data = [entry["data"] for entry in entries if entry["event"] in ("registered", "code_recorded")]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{ledger} is damaged: {error}") from error
    known = [digests["code"] for digests in (record, *data) if "code" in digests]
    return {name: digest for digests in known for name, digest in digests.items()} if known else None


def code_changes(folder: Path, recorded: Digests | None, code: Code) -> dict[str, str]:
    """Files that differ from those recorded in a folder, in more than comments, docstrings and layout.

    Each comes with the names of its changed classes and functions and a short diff. A file that is only here or there
    is a change if a file that is the same on both sides imports its module, or if the module has two files. Otherwise
    another file changed its imports, or it defines nothing that the fingerprint names. A file of rl_llm that is only
    here is a change: it was as committed, and has been edited since.
    """
    changes, known, files = {}, recorded or {}, _as_recorded(code.files, recorded)
    for name, was in known.items():
        after = files.get(name)
        if name in files and was != (after if after is None else sha256(after)):
            copy = saved_copy(folder, name, was)
            if copy is None or after is None:
                changes[name] = f"  {name} (there is no copy to compare with)"
            elif ast.dump(_tree(copy.read_bytes())) != ast.dump(_tree(after)):
                changes[name] = _describe(name, copy, after)
    same = known.keys() & files.keys() - changes.keys()
    imported = {found for name in same for found in imports_of(files[name] or b"", name)}
    modules = Counter(map(_module, {**known, **files}))
    for name in sorted(known.keys() ^ files.keys()):
        if (known.get(name) or files.get(name)) is not None and ((m := _module(name)) in imported or modules[m] > 1):
            changes[name] = f"  {name} is {'new' if name in files else 'gone'}: the import of {m} has another result"
        elif recorded is not None and name not in known and name.startswith(OURS):
            changes[name] = f"  {name} was as committed and has been edited since, or is in no commit (see git diff)"
    return changes


def refusal(folder: Path, changes: Mapping[str, str]) -> str:
    """Message for code that has changed since it was recorded in a folder."""
    listed = "\n".join(changes.values())
    return (
        f"{folder} was made by other code. Changed since then:\n{listed}\nRestore these files (each copy is "
        f"named after ---), choose another --out, or go on with {ACCEPT}: the ledger will say so"
    )


def take_code(folder: Path, ledger: Ledger, recorded: Digests | None, code: Code) -> list[str]:
    """Copy code into the folder, enter changed and unrecorded files in its ledger; returns notes for the user.

    The user runs this code, so folders that name it may run it again (`config.trust`).
    """
    changes, files = code_changes(folder, recorded, code), _as_recorded(code.files, recorded)
    known, now = recorded or {}, Code(files).digests
    new = {name: now.get(name) for name in {**now, **changes} if name in changes or name not in known}
    for name, content in files.items():
        kept = name not in new and now[name] != known[name]  # other comments or docstrings only
        if content is not None and not kept and saved_copy(folder, name, now[name]) is None:
            place = next(place for place in _places(folder, name) if not place.exists())
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, content)
    if new:
        was = {name: known.get(name) for name in changes}
        ledger.append("code_recorded", code=new, was=was, commit=code.commit)
    try:
        remember(files.values(), code.path)
        forgotten = ""
    except OSError as error:
        forgotten = f"this code is not remembered as yours ({error}): commands on {folder} will ask for --trust"
    unseen = ", ".join(name for name, content in files.items() if content is None)
    notes = {
        "\n".join(["accepted code changes:", *changes.values()]): changes,
        f"{folder} recorded no code before this resume: earlier changes cannot be seen": files and recorded is None,
        f"{unseen} has no source file: changes of its code cannot be seen": unseen,
        forgotten: forgotten,
    }
    return [note for note, holds in notes.items() if holds]


def saved_copy(folder: Path, name: str, digest: str | None) -> Path | None:
    """Copy of a file with this digest; None if the folder has none."""
    copies = takewhile(Path.is_file, _places(folder, name))
    return next((copy for copy in copies if sha256(copy.read_bytes()) == digest), None)


def _places(folder: Path, name: str) -> Iterator[Path]:
    return (folder / (f"{CODE}.{version}" if version else CODE) / name for version in count())


def _as_recorded(files: Mapping[str, bytes | None], recorded: Digests | None) -> dict[str, bytes | None]:
    """Files by their recorded names: `studies/one.py` is `one.py` if the command was given in another folder.

    A recorded file of rl_llm may have been committed since, or taken back, and is then read from its place.
    """
    known = recorded or {}
    ours = ((name, PACKAGE.parent / name) for name in known if name.startswith(OURS))
    named: dict[str, bytes | None] = {name: path.read_bytes() for name, path in ours if path.is_file()}
    named |= {name: content for name, content in files.items() if name in known}
    for name in files.keys() - named.keys():
        free = (one for one in known if one not in named)
        alike = (one for one in free if f"/{one}".endswith(f"/{name}") or f"/{name}".endswith(f"/{one}"))
        named[min(((abs(len(one) - len(name)), one) for one in alike), default=(0, name))[1]] = files[name]
    return named


def _module(name: str) -> str:
    """Module of a file: `parts.near` for `parts/near.py`, `parts/near/__init__.py` and `parts/near.abi3.so`."""
    path = PurePosixPath(name)
    return ".".join([*path.parent.parts, path.name.partition(".")[0]]).removesuffix(".__init__")


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


def _describe(name: str, copy: Path, after: bytes) -> str:
    """Names of the changed classes and functions, and a short diff of the copy and the file as it is."""
    before = copy.read_bytes()
    old, new = (
        {(node.name, ast.dump(node)) for node in ast.walk(_tree(text)) if isinstance(node, Definition)}
        for text in (before, after)
    )
    names = ", ".join(sorted({part for part, _ in old ^ new}))
    first, second = (text.decode(errors="replace").splitlines() for text in (before, after))
    diff = list(difflib.unified_diff(first, second, str(copy), name, n=1, lineterm=""))
    more = [f"... {len(diff) - LINES} more lines"] if len(diff) > LINES else []
    return "\n      ".join([f"  {name}: {names}" if names else f"  {name}", *diff[:LINES], *more])
