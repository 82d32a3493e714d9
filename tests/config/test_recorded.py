"""Experiments rebuilt from their records: every value comes back, and a record calls nothing."""

import sys
from typing import Any

import pytest

from rl_llm.algorithms import Clip
from rl_llm.config import load_module, to_json
from rl_llm.config.recorded import NeedsFileError, from_json
from rl_llm.experiment import Experiment

TECHNIQUES = {
    name: value
    for file in ("techniques", "tiny", "suites")
    for name, value in vars(load_module(f"tests/data/{file}.py")).items()
    if isinstance(value, Experiment)
}
NOT_CLASSES = [
    "subprocess.Popen",  # no dataclass
    "os.system",
    "builtins.eval",
    "main",  # functions of this package
    "rl_llm.cli.main",
    "antigravity.geohash",  # opens a browser when it is imported
    "this.d",
    "nowhere.Task",
    "",
    ".",
    "..",
]


def recorded(**changes: Any) -> dict[str, Any]:
    return {**to_json(TECHNIQUES["cold"]), **changes}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_record_gives_the_experiment_back(name: str):
    assert from_json(to_json(TECHNIQUES[name]), Experiment) == TECHNIQUES[name]


@pytest.mark.parametrize("name", NOT_CLASSES)
@pytest.mark.parametrize("place", ["task", "optimizer"])
def test_a_name_that_is_no_installed_dataclass_is_not_even_imported(name: str, place: str):
    before = set(sys.modules)
    with pytest.raises(NeedsFileError, match=rf"experiment\.{place} is a"):
        from_json(recorded(**{place: {"class": name, "args": ["touch", "x"]}}), Experiment)
    assert {module for module in set(sys.modules) - before if module in ("antigravity", "this", "nowhere")} == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"class": "AdamW", "learning_rate": 0.1}}, r"experiment\.task is a AdamW; expected Task"),
        ({"optimizer": {"class": "Subject", "folder": "x"}}, r"experiment\.optimizer is a Subject; expected AdamW"),
        ({"steps": "many"}, r"experiment\.steps is 'many'; expected int"),
        ({"steps": [6]}, r"experiment\.steps is \[6\]; expected int"),
        ({"steps": 0}, r"experiment\.steps is 0; expected int >= 1"),
        ({"mesh": None}, r"experiment\.mesh is None; expected MeshShape"),
        ({"model": "ModelConfig"}, r"experiment\.model is 'ModelConfig'; expected ModelConfig"),
        ({"new_field": 1}, r"experiment: Experiment has no new_field"),
        ({"class": "AdamW"}, r"experiment is a AdamW; expected Experiment"),
    ],
)
def test_a_value_that_does_not_fit_is_named(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        from_json(recorded(**changes), Experiment)


def test_an_infinite_value_comes_back():
    objective = Clip(0.2, float("inf"))
    assert from_json(to_json(objective), Clip) == objective
