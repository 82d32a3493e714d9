"""Every study of the paper runs at smoke scale, where nothing is learned."""

import json
from pathlib import Path

import pytest
from program import rl_llm

from experiments.studies import STUDIES
from rl_llm.commands.ablate import train_members
from rl_llm.studies.folder import COMPILED, members, open_study
from rl_llm.studies.report import write_results
from rl_llm.studies.runner import StudySchedule
from rl_llm.studies.study import load_study

REPRESENTATIVE = "t5_clipped_tokens"  # it has an objective and metrics of its own
nightly = pytest.mark.nightly("test_study.py loads every study at every scale; a representative runs")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for the policies that studies start from."""
    return tmp_path_factory.mktemp("shared")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == REPRESENTATIVE else nightly) for name in STUDIES]
)
def test_a_study_runs_and_gives_a_verdict_on_each_hypothesis(name: str, shared: Path, tmp_path: Path):
    """The steps of `rl-llm ablate`, one member after another."""
    path, out = f"experiments/paper/{name}.py", tmp_path / "study"
    study, prefix = load_study(path, "smoke")
    open_study(out, study, path, "smoke", 1, False, shared=shared)
    plan = StudySchedule(out, prefix, members(study, out, 1, shared), train_members, [None], shared / COMPILED)
    for member in plan.members:
        code, _, stderr = (0, "", "") if member.done else rl_llm("train", *plan.command(member))
        assert code == 0, stderr
    write_results(out, study, plan.members)
    results = json.loads((out / "results.json").read_text())
    assert {arm: len(seeds) for arm, seeds in results["states"].items()} == dict.fromkeys(study.arms, 1)
    assert [verdict["hypothesis"]["claim"] for verdict in results["verdicts"]] == [
        one.claim for one in study.hypotheses
    ]
