"""Rules that a reader can count on: directions of imports, sizes, docstrings, no trace of a machine."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "rl_llm").rglob("*.py"))
LAUNCH = sorted((ROOT / "launch").rglob("*.py"))
PYTHON = [path for top in ("rl_llm", "experiments", "launch", "tests") for path in sorted((ROOT / top).rglob("*.py"))]
TEXTS = [
    path
    for folder in (".ci", "docs", "experiments", "launch", "requirements", "rl_llm", "tests")
    for path in (*(ROOT / folder).rglob("*"), *ROOT.glob("*"))
    if path.is_file() and path.suffix in ("", ".py", ".toml", ".md", ".lock", ".sh", ".yaml", ".jinja", ".json")
]

# From the top to the bottom. A module imports only from layers below its own, or from its own layer.
LAYERS = (
    {"catalogue", "cli", "__main__"},
    {"verbs"},
    {"studies"},
    {"plan", "train_rl"},
    {"collect", "evaluation", "learning", "prepare"},
    {"fields", "observe", "scoring", "stored", "train_sft"},
    {"engine", "recorded"},
    {"run", "text"},
    {"saved"},
    {"experiment"},
    {"combination"},
    {"curriculum", "learner", "packing", "sampler", "supervision"},
    {"state"},
    {"critic"},
    {"gradient", "likelihood", "optimizer"},
    {"model", "algorithms", "rewards", "tasks", "runs"},
    {"types", "problem", "config", "loading", "mesh", "transfer", "noise", "hosts", "numbers", "population"},
)
ROOMS = LAYERS[-2]  # these do not import each other either

# Grading workers are new processes that import these: they must start fast.
WITHOUT_JAX = (
    "rl_llm/__init__.py",
    "rl_llm/problem.py",
    "rl_llm/config.py",
    "rl_llm/config/loading.py",
    "rl_llm/tasks",
    "rl_llm/rewards",
)

LINES_PER_FILE = {"rl_llm": 300, "experiments": 300, "launch": 300, "tests": 450}  # tests hold tables of cases
LINES_PER_FUNCTION = 60
MAIN_LOOPS = {("rl_llm/train.py", "reinforce"): 80}


def test_every_module_has_a_layer():
    unplaced = {top_name(path) for path in PACKAGE} - set().union(*LAYERS) - {"__init__"}
    assert not unplaced, "say in LAYERS where these belong"


def test_modules_import_only_from_below():
    level = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    upward = [
        f"{short(path)} imports rl_llm.{imported}"
        for path in PACKAGE
        for imported in imports_of_the_package(path)
        if level.get(imported, len(LAYERS)) < level.get(top_name(path), -1)
    ]
    assert upward == []


def test_the_rooms_do_not_import_each_other():
    across = [
        f"{short(path)} imports rl_llm.{imported}"
        for path in PACKAGE
        for imported in imports_of_the_package(path)
        if {top_name(path), imported} <= ROOMS and imported != top_name(path)
    ]
    assert across == []


def test_the_package_imports_neither_experiments_nor_tests():
    outward = [short(path) for path in PACKAGE if {"experiments", "tests"} & {n[0] for n in imported_names(path)}]
    assert outward == []


def test_launching_and_the_package_share_exit_codes_and_prices():
    assert set().union(*(imports_of_the_package(path) for path in LAUNCH)) == {"cli"}
    taken = {names[:2] for path in PACKAGE for names in imported_names(path) if names[0] == "launch"}
    assert taken <= {("launch", "prices")}


def test_grading_workers_need_not_import_jax():
    modules = [module_name(path) for path in PACKAGE if short(path).startswith(WITHOUT_JAX)]
    assert len(modules) > len(WITHOUT_JAX)
    program = f"import sys, {', '.join(modules)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_files_are_short_enough_to_read():
    long = {
        short(path): lines
        for path in PYTHON
        if (lines := len(path.read_text().splitlines())) > LINES_PER_FILE[short(path).split("/")[0]]
    }
    assert long == {}


def test_functions_are_short_enough_to_read():
    long = {
        f"{short(path)}:{node.name}": lines
        for path in PYTHON
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef)
        if (lines := (node.end_lineno or 0) - node.lineno + 1)
        > MAIN_LOOPS.get((short(path), node.name), LINES_PER_FUNCTION)
    }
    assert long == {}


def test_the_main_loops_with_more_room_exist():
    for path, name in MAIN_LOOPS:
        if (ROOT / path).exists():
            assert name in {getattr(node, "name", "") for node in parse(ROOT / path).body}


def test_every_module_says_what_it_is():
    assert [short(path) for path in PYTHON if not ast.get_docstring(parse(path))] == []


def test_everything_public_says_what_it_does():
    silent = [
        f"{short(path)}:{node.name}"
        for path in (*PACKAGE, *LAUNCH)
        for node in parse(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if not ast.get_docstring(node)
    ]
    assert silent == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?<![\w.~*)}-])/(root|home|Users|work|opt|tmp|var|mnt)/",  # folders of one machine
        r"(pypi|pythonhosted|github|npmjs)\.(org|com)/(simple|packages)",  # the host of one registry
        r"file:/{2}",
    ],
)
def test_no_file_knows_the_machine_it_was_written_on(pattern: str):
    found = [
        f"{short(path)}:{number}: {line.strip()}"
        for path in sorted(set(TEXTS))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert found == []


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def top_name(path: Path) -> str:
    """The module or folder of the package that a file belongs to: `model` for rl_llm/model/layers.py."""
    return path.relative_to(ROOT / "rl_llm").with_suffix("").parts[0]


def imported_names(path: Path) -> Iterator[tuple[str, ...]]:
    """Every name that a file imports, at any depth of it, as its dotted parts."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = (*start, *(node.module.split(".") if node.module else ()))
            yield from ((*module, alias.name) for alias in node.names)


def imports_of_the_package(path: Path) -> set[str]:
    return {name[1] for name in imported_names(path) if name[0] == "rl_llm" and len(name) > 1}
