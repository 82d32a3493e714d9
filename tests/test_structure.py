"""Rules a reader can rely on: allowed imports, sizes, docstrings, no machine paths."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "rl_llm").rglob("*.py"))
LAUNCH = sorted((ROOT / "launch").rglob("*.py"))
PYTHON = [
    path for top in ("rl_llm", "experiments", "launch", "docs", "tests") for path in sorted((ROOT / top).rglob("*.py"))
]
TEXTS = [
    path
    for folder in (".ci", "docs", "experiments", "launch", "requirements", "rl_llm", "tests")
    for path in (*(ROOT / folder).rglob("*"), *ROOT.glob("*"))
    if path.is_file() and path.suffix in ("", ".py", ".toml", ".md", ".lock", ".sh", ".yaml", ".jinja", ".json")
]

# Each room of rl_llm and the rooms it may import. Two tiers, and the laboratory on top of them.
LABORATORY = {
    "__main__": "cli",
    "cli": "commands config plan",
    "commands": "config evaluation experiment export learner model parallel plan prepare prng problem reports rewards "
    "rollout runs sampler studies tasks train watching",
    "evaluation": "algorithms config experiment learner model parallel prng problem rollout runs sampler tasks",
    "studies": "algorithms config experiment learner parallel plan reports rewards runs",
    "reports": "runs",
    "export": "model",
    "watching": "runs",
    "plan": "experiment learner model parallel prepare prng runs sampler types update",
}
KNOWS_THE_EXPERIMENT = {
    "train": "experiment learner parallel prng problem rewards rollout runs types update",
    "prepare": "experiment model parallel prng problem rollout runs tasks",
    "update": "algorithms experiment learner model parallel prng problem rollout runs types",
    "rollout": "algorithms experiment learner model parallel prng problem rewards runs sampler types",
    "runs": "config experiment learner model parallel problem rewards sampler types",
    "experiment": "algorithms config learner model parallel prng problem rewards sampler tasks",
}
KNOWS_ARRAYS_ONLY = {
    "learner": "algorithms config model parallel prng problem types",
    "sampler": "config model parallel prng types",
    "algorithms": "config types",
    "model": "config parallel",
    "rewards": "problem",
    "tasks": "config problem",
    "parallel": "config",
    "config": "",
    "problem": "",
    "prng": "",
    "types": "",
}
TIERS = (KNOWS_ARRAYS_ONLY, KNOWS_THE_EXPERIMENT, LABORATORY)
MAY_IMPORT = {room: set(allowed.split()) for tier in TIERS for room, allowed in tier.items()}
SIDE_BY_SIDE = {"model", "algorithms", "rewards", "tasks"}  # rooms to add to: none needs another
MODULES_AT_THE_TOP = 12
CORE_LINES = 18_500  # everything but the laboratory

# Folders of tests/ that hold no tests of a room: data, oracles from other libraries, programs that made the data.
TESTS_SHARE = {"data", "peers", "tools"}

# Grading workers import these in new processes, so they must load fast.
WITHOUT_JAX = (
    "rl_llm/__init__.py",
    "rl_llm/problem.py",
    "rl_llm/config",
    "rl_llm/tasks",
    "rl_llm/rewards",
)

LINES_PER_FILE = {
    "rl_llm": 300,
    "experiments": 300,
    "launch": 300,
    "docs": 300,
    "tests": 450,  # they contain tables of cases
}
LINES_PER_FUNCTION = 60


def test_every_room_has_its_row_in_the_table():
    assert {top_name(path) for path in PACKAGE} - {"__init__"} == set(MAY_IMPORT)


def test_rooms_import_only_what_the_table_allows():
    forbidden = [
        f"{short(path)} imports rl_llm.{imported}"
        for path in PACKAGE
        for imported in imports_of_the_package(path) - {top_name(path)}
        if imported not in MAY_IMPORT.get(top_name(path), set())
    ]
    assert forbidden == []


def test_the_table_allows_no_import_that_nothing_needs():
    used = {room: set() for room in MAY_IMPORT}
    for path in PACKAGE:
        used.get(top_name(path), set()).update(imports_of_the_package(path))
    assert {room: allowed - used[room] for room, allowed in MAY_IMPORT.items() if allowed - used[room]} == {}


def test_the_table_has_no_circle():
    assert tuple(TopologicalSorter(MAY_IMPORT).static_order()), "raises CycleError"


def test_no_tier_imports_from_a_tier_above():
    for height, tier in enumerate(TIERS):
        reachable = set().union(*TIERS[: height + 1])
        assert [room for room in tier if not MAY_IMPORT[room] <= reachable] == []


def test_model_algorithms_rewards_and_tasks_do_not_import_each_other():
    assert [room for room in SIDE_BY_SIDE if MAY_IMPORT[room] & SIDE_BY_SIDE] == []


def test_few_modules_stay_at_the_top():
    top = {path.stem for path in (ROOT / "rl_llm").glob("*.py")} - {"__init__", "__main__"}
    assert len(top) <= MODULES_AT_THE_TOP, sorted(top)


def test_the_core_stays_small():
    core = [path for path in PACKAGE if top_name(path) not in LABORATORY]
    assert sum(len(path.read_text().splitlines()) for path in core) <= CORE_LINES


def test_every_folder_of_tests_is_a_room():
    folders = {path.name for path in (ROOT / "tests").iterdir() if list(path.rglob("*.py"))}
    folders = {name for name in folders if (ROOT / "tests" / name).is_dir()}
    assert folders - TESTS_SHARE <= {*MAY_IMPORT, "docs", "experiments", "launch"}


def test_the_package_imports_neither_experiments_nor_tests():
    outward = [short(path) for path in PACKAGE if {"experiments", "tests"} & {n[0] for n in imported_names(path)}]
    assert outward == []


def test_launch_and_the_package_share_only_exit_codes_and_prices():
    assert set().union(*(imports_of_the_package(path) for path in LAUNCH)) == {"cli"}
    taken = {names[:2] for path in PACKAGE for names in imported_names(path) if names[0] == "launch"}
    assert taken <= {("launch", "prices")}


def test_grading_workers_do_not_import_jax():
    modules = [module_name(path) for path in PACKAGE if short(path).startswith(WITHOUT_JAX)]
    assert len(modules) > len(WITHOUT_JAX)
    program = f"import sys, {', '.join(modules)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_files_are_short():
    long = {
        short(path): lines
        for path in PYTHON
        if (lines := len(path.read_text().splitlines())) > LINES_PER_FILE[short(path).split("/")[0]]
    }
    assert long == {}


def test_functions_are_short():
    long = {
        f"{short(path)}:{node.name}": lines
        for path in PYTHON
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > LINES_PER_FUNCTION
    }
    assert long == {}


def test_every_module_has_a_docstring():
    assert [short(path) for path in PYTHON if not ast.get_docstring(parse(path))] == []


def test_every_public_function_and_class_has_a_docstring():
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
        r"(?<![\w.~*)}-])/(root|home|Users|work|opt|tmp|var|mnt)/",  # absolute paths
        r"(pypi|pythonhosted|github|npmjs)\.(org|com)/(simple|packages)",  # addresses of one registry
        r"file:/{2}",
    ],
)
def test_no_file_names_a_machine_or_registry(pattern: str):
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
    """Room of a file: `model` for rl_llm/model/layers.py."""
    return path.relative_to(ROOT / "rl_llm").with_suffix("").parts[0]


def imported_names(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield every name imported anywhere in a file, as a tuple of its dotted parts."""
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
