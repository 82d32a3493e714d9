"""Experiments from Python files."""

import pickle
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rl_llm.config import ExperimentError, fingerprint, load_experiment

SOURCE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Trial:
    high: float

base = Trial(0.2)
count = 3
ABLATION = {"high_0.28": Trial(0.28), "high_0.32": Trial(0.32)}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Writes a file into a new folder; the modules imported from it are forgotten after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def write_file(name: str, source: str = SOURCE) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return path

    yield write_file
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_a_name_is_base_or_a_variable_or_an_arm(write: Callable[..., Path]):
    path = write("clip_higher.py", SOURCE + "wide = Trial(0.5)")
    assert load_experiment(str(path))[0] == "base"
    assert load_experiment(f"{path}:base")[1].high == 0.2
    assert load_experiment(f"{path}:wide")[1].high == 0.5
    name, value = load_experiment(f"{path}:high_0.28")
    assert (name, value.high) == ("high_0.28", 0.28)


def test_an_experiment_of_a_study_is_named_with_its_scale(write: Callable[..., Path]):
    studies = "from types import SimpleNamespace\nSTUDY = {'cpu': SimpleNamespace(experiments={'wide': Trial(0.7)})}"
    path = write("study.py", SOURCE + studies)
    name, value = load_experiment(f"{path}:cpu/wide")
    assert (name, value.high) == ("cpu/wide", 0.7)


def test_an_experiment_below_the_current_folder_imports_the_others(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    folder = write("studies_of_a_test/first.py").parent
    write("studies_of_a_test/second.py", "from studies_of_a_test.first import base")
    monkeypatch.chdir(folder.parent)
    _, value = load_experiment("studies_of_a_test/second.py")
    assert type(value).__module__ == "studies_of_a_test.first"
    assert type(load_experiment("studies_of_a_test/first.py")[1]) is type(value)
    assert pickle.loads(pickle.dumps(value)) == value


def test_a_file_with_the_name_of_another_module_is_loaded_and_hides_nothing(write: Callable[..., Path]):
    first = load_experiment(str(write("random.py")))[1]
    again = load_experiment(str(write("elsewhere/random.py")))[1]
    assert first.high == 0.2
    assert sys.modules["random"] is random
    assert fingerprint(first) == fingerprint(again)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("clip_higher.py:cpu/wide", ["there is no 'cpu/wide'"]),
        ("clip_hihger.py", ["no file", "did you mean 'clip_higher.py'?"]),
        ("nowhere/clip_higher.py", ["no file"]),
        ("clip_higher", ["path/to/file.py"]),
        ("clip_higher.txt:base", ["path/to/file.py"]),
        ("clip_higher.py:hihg_0.28", ["no 'hihg_0.28'", "did you mean 'high_0.28'?", "high_0.32, base"]),
        ("clip_higher.py:count", ["count is 3", "clip_higher.py has: high_0.28"]),
        ("clip_higher.py:Trial", ["Trial is <class"]),
        ("empty.py", ["no 'base'", "no experiment"]),
        ("both.py", ["base is a variable and a key of ABLATION, with different values"]),
    ],
)
def test_a_wrong_name_lists_what_exists(write: Callable[..., Path], spec: str, parts: list[str], tmp_path: Path):
    write("clip_higher.py")
    write("empty.py", "")
    write("both.py", SOURCE + "ABLATION['base'] = Trial(0.9)")
    with pytest.raises(ExperimentError) as caught:
        load_experiment(str(tmp_path / spec))
    for part in parts:
        assert part in str(caught.value)


def test_an_experiment_of_another_kind_is_refused(write: Callable[..., Path]):
    with pytest.raises(ExperimentError, match="base is"):
        load_experiment(str(write("clip_higher.py")), kind=int)


def test_a_file_name_may_hold_dots(write: Callable[..., Path]):
    assert load_experiment(str(write("clip.v2.py")))[1].high == 0.2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nraise ValueError('no such tokenizer')", "line 2: ValueError: no such tokenizer"),
        ("x = 1\n\nif x", "line 3: SyntaxError"),
        ("def f():\n    return 1 / 0\n\nf()", "line 2: ZeroDivisionError"),
        ("import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import json\njson.loads('')", "line 2: JSONDecodeError"),
        ("import sys\nsys.exit(0)", "line 2: SystemExit: 0"),
    ],
)
def test_an_error_in_a_file_names_its_line(write: Callable[..., Path], source: str, message: str):
    path = write("failing.py", source)
    with pytest.raises(ExperimentError) as caught:
        load_experiment(str(path))
    assert f"{path}, {message}" in str(caught.value)
