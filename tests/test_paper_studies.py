"""Every study of the paper runs, at the scale at which nothing is learned."""

import json
from pathlib import Path

import pytest
from test_train import finish, start

from experiments.studies import STUDIES
from rl_llm.studies.study import load_study


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the policies that studies begin with, and what they compile."""
    return tmp_path_factory.mktemp("shared")


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_and_measures_what_its_hypotheses_are_about(name: str, shared: Path, tmp_path: Path):
    path, out = f"experiments/paper/{name}.py", tmp_path / "study"
    where = ("--out", out, "--shared", shared)
    code, _, stderr = finish(start("ablate", path, "--scale", "smoke", "--seeds", "1", *where), patience=1200)
    assert code == 0, stderr
    study, _ = load_study(path, "smoke")
    results = json.loads((out / "results.json").read_text())
    assert {arm: len(seeds) for arm, seeds in results["states"].items()} == dict.fromkeys(study.arms, 1)
    assert [verdict["hypothesis"]["claim"] for verdict in results["verdicts"]] == [
        one.claim for one in study.hypotheses
    ]
