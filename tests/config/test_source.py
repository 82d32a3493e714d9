"""The code of an experiment: which files belong to it, and as of which commit."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_loading import write  # noqa: F401 (a fixture)

from rl_llm.config import ExperimentError, code_of, load_experiment, source
from rl_llm.config.source import commit_of, imports_of, sha256

EXPERIMENT = """
from dataclasses import dataclass
import numpy, parts.rewards
from rl_llm.rewards import components

@dataclass(frozen=True)
class Trial:
    reward: object

base = Trial(parts.rewards.Length())
"""
REWARD = """
from dataclasses import dataclass
from . import near

@dataclass(frozen=True)
class Length:
    def __call__(self):
        from parts.late import later
        return near.score() + later()
"""


@pytest.fixture(autouse=True)
def clean_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no file of this clone's rl_llm had been edited."""
    monkeypatch.setattr(source, "edited_files", frozenset)


@pytest.fixture
def spec(write: Callable[..., Path]) -> str:  # noqa: F811
    """An experiment with its reward in a package beside it."""
    write("parts/__init__.py", "")
    write("parts/rewards.py", REWARD)
    write("parts/near.py", "def score(): return 1")
    write("parts/late.py", "import deep\ndef later(): return 1")
    write("deep.py", "import json, parts")
    write("unused.py", "x = 1")
    return str(write("chosen.py", EXPERIMENT))


def test_the_code_is_the_file_and_all_it_imports_but_no_installed_package(spec: str):
    """A module that is imported later, within a function, belongs to it."""
    code = code_of(spec, load_experiment(spec)[1])
    assert set(code.files) == {"chosen.py", "deep.py", *(f"parts/{name}.py" for name in PARTS)}
    assert code.files["parts/rewards.py"] == REWARD.encode()
    assert code.digests["deep.py"] == sha256(b"import json, parts")
    assert "parts.late" not in sys.modules


PARTS = ("__init__", "late", "near", "rewards")


def test_a_file_that_changed_after_its_import_is_refused(spec: str):
    """This process would go on with the old code, and a grading process that it starts would run the new."""
    value = load_experiment(spec)[1]
    code_of(spec, value)
    near = Path(spec).parent / "parts" / "near.py"
    near.write_text("def score(): return 2")
    with pytest.raises(ExperimentError, match=r"near\.py has changed since this process imported it"):
        code_of(spec, value)


def test_a_component_that_no_import_statement_names_belongs_to_the_code(write: Callable[..., Path]):  # noqa: F811
    write("plugin.py", "class Score: pass")
    path = write("dynamic.py", SOURCE_OF_DYNAMIC)
    assert set(code_of(str(path), load_experiment(str(path))[1]).files) == {"dynamic.py", "plugin.py"}


SOURCE_OF_DYNAMIC = """
import importlib
from dataclasses import dataclass

@dataclass(frozen=True)
class Trial:
    kind: type

base = Trial(getattr(importlib.import_module("plug" + "in"), "Score"))
"""


def test_a_module_that_is_imported_under_a_constant_name_belongs_to_the_code():
    text = b"import importlib as i\ni.import_module('near.score')\n__import__('far')\ni.import_module(name)"
    assert set(imports_of(text, "one.py")) == {"importlib", "near", "near.score", "far"}


def test_a_class_without_a_file_is_recorded_as_such(write: Callable[..., Path]):  # noqa: F811
    """As in a notebook or at a prompt."""
    path = write("typed.py", "import numpy")
    names: dict = {"__name__": "typed_at_a_prompt"}
    exec("class Score: pass", names)
    code = code_of(str(path), [names["Score"], np.mean, len])
    assert code.digests == {"typed.py": sha256(b"import numpy"), "typed_at_a_prompt": None}


def test_the_commit_is_marked_dirty_if_files_changed(tmp_path: Path):
    """Otherwise a run would name code that it did not run. New and ignored files are in no commit."""
    file = tmp_path / "run.py"
    file.write_text("1")
    (tmp_path / ".gitignore").write_text("ignored.py")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "First"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    clean = commit_of(tmp_path, [file])
    assert clean is not None
    assert len(clean) == 40
    for name in ("new.py", "ignored.py"):
        (tmp_path / name).write_text("1")
        assert commit_of(tmp_path, [file, tmp_path / name]) == f"{clean}-dirty"
    assert commit_of(tmp_path) == commit_of(tmp_path, [file]) == clean
    file.write_text("2")
    assert commit_of(tmp_path) == commit_of(tmp_path, [file]) == f"{clean}-dirty"
    assert commit_of(tmp_path.parent) is None
