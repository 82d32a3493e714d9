"""The code of an experiment: its file, the files of its components, and all that they import.

Installed packages and the standard library are left out. So is this package, whose commit is recorded, except for files
of a git clone that no commit has as they are. Not followed are modules that code imports by `importlib` under a
computed name, and data files that code reads by itself.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from rl_llm.config.fields import is_component
from rl_llm.config.loading import ExperimentError, file_of, find_file, make_importable

PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARY = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_INSTALLED = [PACKAGE, *(Path(folder).resolve() for folder in (*_LIBRARY, site.getusersitepackages()))]


@dataclasses.dataclass(frozen=True)
class Code:
    """Source files by the path of their module as imported (None without a file).

    `commit` and `path` are those of the experiment's own file.
    """

    files: Mapping[str, bytes | None] = dataclasses.field(default_factory=dict)
    commit: str | None = None
    path: Path | None = None

    @property
    def digests(self) -> dict[str, str | None]:
        """SHA-256 of each file."""
        return {name: None if text is None else sha256(text) for name, text in sorted(self.files.items())}


NO_CODE = Code()


def sha256(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def code_of(spec: str, value: Any) -> Code:
    """Find the code of an experiment or a study `value` that was loaded from `spec`.

    Follows the import statements from the file of `spec` and from the modules of all classes and functions in `value`.
    Raises ExperimentError if a file has changed since this process loaded it: other processes would run other code.
    """
    path = Path(file_of(spec)).resolve()
    loaded = ((name, getattr(module, "__file__", None) or "") for name, module in list(sys.modules.items()))
    own = (name for name, file in loaded if file.endswith(path.name) and Path(file).resolve() == path)
    components = {name: module_file(name) for name in _modules(value) if name not in sys.stdlib_module_names}
    files: dict[str, bytes | None] = {name: None for name, file in components.items() if file is None}  # of a notebook
    places: list[Path] = []
    begin = {name: file for name, file in components.items() if file} | {next(own, path.stem): path}
    if edited := edited_files():
        begin["rl_llm.train"] = PACKAGE / "train.py"  # a run uses all that it imports
    folders = _INSTALLED[1:] if edited else _INSTALLED
    for name, file, key, content in _follow(begin, lambda file: _is_installed(file, folders)):
        if file.is_relative_to(PACKAGE) and file not in edited:
            continue
        if (module := sys.modules.get(name)) and content != _first_read(file, module):
            raise ExperimentError(f"{file} has changed since this process imported it; run the command again")
        places.append(file)
        files[key] = content
    return Code(files, commit_of(path.parent, places), path)


def files_of(spec: str) -> dict[Path, bytes]:
    """Files that importing `spec` would run, the packages around it included; nothing is imported to find them.

    Raises ExperimentError if the file of `spec` is missing.
    """
    path = find_file(file_of(spec))
    parts = make_importable(path)
    around = (path.parents[level] / "__init__.py" for level in range(len(parts) - 1))
    begin = {".".join(parts[: len(parts) - 1 - level]): file for level, file in enumerate(around) if file.is_file()}
    found = _follow({**begin, ".".join(parts): path}, is_library)
    return {file: content for _, file, _, content in found}


def _follow(begin: Mapping[str, Path], skip: Callable[[Path], bool]) -> Iterator[tuple[str, Path, str, bytes]]:
    """Yield modules and all that they import: name, file, path of the module as imported, and content."""
    waiting, seen = dict(begin), set()
    while waiting:
        name, file = waiting.popitem()
        if not skip(file) and file not in seen:
            seen.add(file)
            content, is_package = file.read_bytes(), file.name == "__init__.py"
            key = "/".join(file.parts[-1 - is_package - name.count(".") :])
            yield name, file, key, content
            waiting |= {one: found for one in imports_of(content, key) if (found := module_file(one))}


def commit_of(folder: Path, files: Sequence[Path] = ()) -> str | None:
    """Commit of a folder's git repository, or None; with `-dirty` if one of the files, or of all tracked, differs."""
    commit, top = _git(folder, "rev-parse", "HEAD").strip(), _top(folder)
    inside = [str(file) for file in files if file.is_relative_to(top)]
    chosen = ("--ignored", "--", *inside) if inside else ("--untracked-files=no",)
    dirty = _git(folder, "status", "--porcelain", *chosen)
    return f"{commit}-dirty" if commit and dirty else commit or None


def edited_files() -> frozenset[Path]:
    """Files of this package that its git clone has in no commit as they are; none if it is installed otherwise."""
    if _is_installed(PACKAGE, _INSTALLED[1:]):
        return frozenset()
    all_kinds = ("--no-renames", "--ignored", "--untracked-files=all")
    found, top = _git(PACKAGE, "status", "--porcelain", "-z", *all_kinds, "--", ".", ":!*.pyc"), _top(PACKAGE)
    return frozenset(top / line[3:] for line in found.split("\0") if line)


def _git(folder: Path, *arguments: str) -> str:
    try:
        return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def _top(folder: Path) -> Path:
    return Path(_git(folder, "rev-parse", "--show-toplevel").strip()).resolve()


def _modules(value: Any) -> Iterator[str]:
    """Yield the names of the modules that define the classes and functions in a value."""
    if is_component(value):
        yield from (kind.__module__ for kind in type(value).__mro__)
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping | tuple | list):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from _modules(child)
    elif isinstance(value, type) or inspect.isroutine(value):
        yield value.__module__ or "builtins"


@functools.cache
def imports_of(content: bytes, name: str) -> tuple[str, ...]:
    """Every module that a file `parts/near.py` may import, at any depth, and the packages around it."""
    package, found = ".".join(Path(name).parent.parts), list[str]()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # an extension module
        return ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = node.args[:1] if called in ("import_module", "__import__") else []
            found += [str(name.value) for name in given if isinstance(name, ast.Constant)]
    return tuple({one[:end]: None for one in found for end, sign in enumerate(one + ".") if sign == "."})


def module_file(name: str) -> Path | None:
    """File of a module, which is not imported to find it; None if it has none."""
    top, *parts = name.split(".")
    place = getattr(sys.modules.get(name), "__file__", None)
    if name not in sys.modules:
        try:
            spec: ModuleSpec | None = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
        for part in parts:
            inside = spec.submodule_search_locations if spec else None
            # By its last name alone: a folder without __init__.py would look for its parent, which is not imported.
            spec = PathFinder.find_spec(part, inside) if spec and inside else None
        place = spec.origin if spec else None
    return Path(place).resolve() if place and Path(place).is_file() else None


def is_library(file: Path) -> bool:
    """Whether a file belongs to this package, an installed one or Python, in the folders of this interpreter."""
    return any(map(file.is_relative_to, _INSTALLED))


def _is_installed(file: Path, folders: Sequence[Path] = _INSTALLED) -> bool:
    return any(map(file.is_relative_to, folders)) or bool({"site-packages", "dist-packages"} & set(file.parts))


@functools.cache
def _first_read(file: Path, loaded: ModuleType) -> bytes:
    return file.read_bytes()
