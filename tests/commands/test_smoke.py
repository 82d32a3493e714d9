"""`train --smoke` makes any experiment a run of seconds."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from program import EXPERIMENT, ROOT, rl_llm

from rl_llm.algorithms import DAPO
from rl_llm.commands.smoke import free_folder, make_small, value_at
from rl_llm.config import load_module, override
from rl_llm.experiment import Curriculum, Difficulty, Experiment, ResponseLength

TEXTS = {path: path.read_text() for path in sorted((ROOT / "experiments").rglob("*.py"))}
MODULES = [path for path, text in TEXTS.items() if "ABLATION =" in text or "STUDY =" in text]


def experiments_of(path: Path) -> dict[str, Experiment]:
    module = load_module(str(path))
    named = {**vars(module), **getattr(module, "ABLATION", {})}
    for scale, study in getattr(module, "STUDY", {}).items():
        named |= {f"{scale}/{name}": arm for name, arm in study.experiments.items()}
    return {name: value for name, value in named.items() if isinstance(value, Experiment)}


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_every_experiment_of_the_project_gets_small_and_its_overrides_repeat_it(path: Path):
    for name, experiment in experiments_of(path).items():
        small, assignments, replaced = make_small(experiment, [], 1)
        assert small.steps <= 4, name
        assert small.prompts_per_step * small.responses_per_prompt <= 64, name
        assert small.sampling.max_tokens <= 64, name
        assert small.model.width <= 32 if experiment.start is None else small.model == experiment.model, name
        again = override(experiment, assignments)
        assert replace(again, mesh=small.mesh, sampler_mesh=None, evaluation=small.evaluation) == small
        assert replaced.keys() == {one.partition("=")[0] for one in assignments}


def test_values_that_the_user_sets_stay():
    small, assignments, _ = make_small(override(EXPERIMENT, ["steps=5"]), ["steps=5"], 1)
    assert small.steps == 5
    assert not any(one.startswith("steps=") for one in assignments)


def test_the_model_of_a_start_stays():
    small, _, _ = make_small(replace(EXPERIMENT, start="somewhere"), [], 1)
    assert small.model == EXPERIMENT.model


def test_what_depends_on_the_number_of_steps_is_lowered_with_it():
    curriculum = Curriculum(Difficulty(0.5, steps=6), ResponseLength(8, steps=6))
    small, _, replaced = make_small(replace(EXPERIMENT, algorithm=DAPO, curriculum=curriculum), [], 1)
    assert (small.steps, small.curriculum.difficulty.steps, small.curriculum.length.steps) == (2, 1, 1)
    assert (replaced["steps"], value_at(small, "critic.pretraining_steps")) == (6, None)


def test_batches_divide_over_the_devices():
    for devices in (2, 3, 8):
        small, _, _ = make_small(replace(EXPERIMENT, prompts_per_step=480, train_problems=480), [], devices)
        assert (small.prompts_per_step // small.updates_per_rollout) % devices == 0


def test_smoke_runs_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    default = Path("runs/quick-seed0")
    assert free_folder(default, resume=False) == Path("runs/smoke/quick-seed0")
    Path("runs/smoke/quick-seed0").mkdir(parents=True)
    assert free_folder(default, resume=False) == Path("runs/smoke/quick-seed0-2")
    assert free_folder(default, resume=True) == Path("runs/smoke/quick-seed0")


@pytest.mark.slow
def test_a_smoke_run_says_what_it_changed_and_ends(tmp_path: Path):
    code, stdout, stderr = rl_llm("train", "experiments/quickstart.py", "--smoke", "--out", tmp_path / "run")
    assert code == 0, stderr
    said = next(line for line in stderr.splitlines() if line.startswith("smoke run: "))
    assert "steps=2 (was 48)" in said
    assert "model.width=32 (was 96)" in said
    assert re.search(r"reinforcement learning 2/2", stderr)
    record = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert "steps=2" in record["overrides"]
    code, _, stderr = rl_llm("train", "experiments/quickstart.py", "--smoke", "--resume", "--out", tmp_path / "run")
    assert code == 0, stderr
    assert "accuracy, sampled" in stdout
