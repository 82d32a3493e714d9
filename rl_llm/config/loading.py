"""Load experiments, which are values in Python files."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from rl_llm.config.fields import is_component, nearest


class ExperimentError(ValueError):
    """An experiment that cannot be loaded. The message names what is missing and what exists."""


def load_experiment(spec: str, kind: type = object) -> tuple[str, Any]:
    """Load `path/to/file.py[:NAME]` as (NAME, value). NAME is `base` by default.

    NAME is a variable of the file, a key of its ABLATION, or SCALE/NAME for an experiment of its STUDY. A file below
    the current folder is imported relative to it, another relative to its own folder, so that its neighbours are found,
    also by worker processes. That folder is appended to `sys.path`, where it hides no installed module.
    Raises `ExperimentError` if the file or NAME is missing, the import fails, or the value is not a `kind`.
    """
    path = file_of(spec)
    name = spec[len(path) + 1 :] or "base"
    if not path.endswith(".py"):
        raise ExperimentError(f"{spec} is not an experiment; expected path/to/file.py or path/to/file.py:NAME")
    module = load_module(path)
    ablation = getattr(module, "ABLATION", {})
    studies = getattr(module, "STUDY", {})
    studied = {f"{scale}/{key}": item for scale in studies for key, item in studies[scale].experiments.items()}
    everything = {**studied, **ablation, **vars(module)}
    held = {key: item for key, item in everything.items() if is_component(item) and isinstance(item, kind)}
    if name not in held:
        given = f"{name} is {everything[name]!r}" if name in everything else f"there is no {name!r}"
        listing = ", ".join(held) or "no experiment"
        raise ExperimentError(f"{spec}: {given}{nearest(name, held)}; {path} has: {listing}")
    if name in ablation and ablation[name] != held[name]:
        raise ExperimentError(f"{spec}: {name} is a variable and a key of ABLATION, with different values; rename one")
    return name, held[name]


def file_of(spec: str) -> str:
    """The file in `path/to/file.py[:NAME]`."""
    return spec if spec.endswith(".py") else spec.rpartition(":")[0]


def load_module(path: str) -> types.ModuleType:
    """Import a Python file. Raises ExperimentError if there is none or its import fails."""
    return _import(find_file(path))


def find_file(path: str) -> Path:
    """The absolute path of a Python file. Raises ExperimentError if there is none."""
    file = Path(path)
    if file.suffix != ".py":
        raise ExperimentError(f"{path} is not a Python file; expected path/to/file.py")
    if not file.is_file():
        hint = nearest(file.name, [found.name for found in file.parent.glob("*.py")])
        raise ExperimentError(f"{path}: there is no file {file}{hint}")
    return file.resolve()


def make_importable(path: Path) -> tuple[str, ...]:
    """Let Python find a file and its neighbours; returns the names of the packages around it and its own."""
    root = Path.cwd() if path.is_relative_to(Path.cwd()) else path.parent
    if str(root) not in sys.path:
        sys.path.append(str(root))
    importlib.invalidate_caches()
    return path.relative_to(root).with_suffix("").parts


def _import(path: Path) -> types.ModuleType:
    name = ".".join(parts := make_importable(path))
    try:
        found = importlib.util.find_spec(name) if all(part.isidentifier() for part in parts) else None
        if found is not None and found.origin is not None and Path(found.origin).resolve() == path:
            return importlib.import_module(name)
        return _import_alone(path)
    except (Exception, SystemExit) as error:  # whatever the file raises is an error in the file
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        raise ExperimentError(f"{path}, line {line}: {type(error).__name__}: {error}") from error


def _import_alone(path: Path) -> types.ModuleType:
    """Import a file under a name made from its content, because another module has its own name."""
    name = f"{path.stem.replace('.', '_')}_{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None, path  # noqa: PT018
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
