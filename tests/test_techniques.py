"""Techniques in whole runs: what they need is made, is carried from step to step, and survives an interruption."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from test_train import (
    ROOT,
    WARM_STEPS,
    Finished,
    finish,
    outcome,
    rl_llm,
    start,
    steps_done,
    wait_until,
    without_time,
)

from rl_llm import algorithms
from rl_llm.algorithms import GRPO_KL, Reference
from rl_llm.config import load_experiment

FILE = "tests/data/techniques.py"
EVERYTHING = load_experiment(f"{ROOT / FILE}:everything")[1]
RECIPES = sorted(name for name, value in vars(algorithms).items() if isinstance(value, algorithms.Algorithm))


def train(folder: Path, name: str, *arguments: str) -> Finished:
    code, stdout, stderr = rl_llm("train", f"{FILE}:{name}", "--out", folder, *arguments)
    assert code == 0, stderr
    return Finished(folder, stdout, stderr)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return train(tmp_path_factory.mktemp("everything") / "run", "everything")


def test_the_divergence_is_measured_from_the_reference(run: Finished):
    """It grows from update to update, and falls where the reference was set to the policy, after the second step."""
    divergence = [line["policy/kl"] for line in run.metrics[WARM_STEPS:]]
    assert all(math.isfinite(value) and value >= 0 for value in divergence)
    assert divergence[0] > 0, "the second update of a step is made by another policy than the reference"
    assert divergence[1] > divergence[0]
    assert divergence[2] < divergence[1]


def test_the_sampler_is_behind_the_learner(run: Finished, tmp_path: Path):
    """Staleness 2 samples steps 1 to 3 with the first parameters, staleness 1 only steps 1 and 2."""
    fresh = train(tmp_path / "run", "everything", "--set", "staleness=1")
    tokens = [[line["tokens/generated"] for line in each.metrics[WARM_STEPS:]] for each in (run, fresh)]
    assert tokens[0][:2] == tokens[1][:2]
    assert tokens[0][2:] != tokens[1][2:]


def test_all_that_is_carried_survives_an_interruption(run: Finished, tmp_path: Path):
    folder = tmp_path / "run"
    process = start("train", f"{FILE}:everything", "--out", folder, "--set", "checkpointing.every=1")
    wait_until(process, lambda: steps_done(folder) > WARM_STEPS)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    assert WARM_STEPS < steps_done(folder) < WARM_STEPS + EVERYTHING.steps
    resumed = train(folder, "everything", "--resume")
    assert without_time(resumed.metrics) == without_time(run.metrics)
    assert outcome(resumed.summary) == outcome(run.summary)


def test_a_run_with_carried_state_can_be_evaluated(run: Finished):
    code, stdout, stderr = rl_llm("evaluate", run.folder)
    assert code == 0, stderr
    assert json.loads(stdout)["accuracy"] == run.summary["accuracy_after"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RECIPES, "dr_grpo", "remax", "following"])
def test_a_recipe_runs(tmp_path: Path, name: str):
    finished = train(tmp_path / "run", name)
    for line in finished.metrics:
        assert math.isfinite(line["loss"])
        assert line["update/skipped"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": GRPO_KL}, r"KLPenalty need batch.ref_logp, which this run does not make"),
        ({"reference": Reference()}, r"reference=Reference\(.*\) cannot act: no component"),
        ({"staleness": -1}, r"Experiment.staleness must be at least 0, not -1"),
    ],
)
def test_what_cannot_act_is_refused(changes: dict, message: str):
    base = load_experiment(str(ROOT / FILE))[1]
    with pytest.raises(ValueError, match=message):
        replace(base, **changes)


def test_a_correction_needs_a_sampler_that_differs():
    with pytest.raises(ValueError, match=r"ImportanceWeight cannot act where the sampler is the policy itself"):
        replace(EVERYTHING, staleness=0)
    assert replace(EVERYTHING, staleness=0, sampling=replace(EVERYTHING.sampling, top_k=3))
