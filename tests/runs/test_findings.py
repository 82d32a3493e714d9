"""Findings: each is raised for its own problem, none for a healthy run, and a resumed run finds the same."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from program import CACHE, ROOT, WARM_STEPS, Finished, train

from rl_llm.runs.curves import AccuracyPoint, Sampled
from rl_llm.runs.findings import CHECKS, find, find_all
from rl_llm.runs.ledger import Ledger

STEPS, EVERY = 60, 10
SAMPLED = Sampled(prompts=48, samples=8)
SETTINGS = (  # a limit of 3 tokens truncates; visible from step 10 on, evaluated at step 12
    *("--set", "sampling.max_tokens=3", "--set", "steps=12", "--set", "evaluation.every=3"),
    *("--set", "checkpointing.every=1"),
)
Line = dict[str, Any]


def learned(done: float) -> float:
    """A healthy learning curve from 0.4 to 0.95; `done` is the finished share of the run."""
    return 0.4 + 0.55 / (1 + np.exp(5 - 14 * done))


def run_of(**changes: Callable[[float], float]) -> list[Line]:
    """Lines of a warm start and RL with noise; healthy except for the metrics given in `changes`."""
    noise = np.random.default_rng(0).normal(scale=0.02, size=(STEPS, 2))
    lines: list[Line] = [{"step": step, "phase": "warm_start", "loss": 1.0} for step in range(1, 4)]
    for step in range(STEPS):
        done = step / (STEPS - 1)
        skill = learned(done) + noise[step, 0]
        healthy = {
            "reward/mean": skill,
            "reward/accuracy": skill,
            "reward/std": np.sqrt(learned(done) * (1 - learned(done))),
            "reward/zero_variance_groups": 0.1 + 0.7 * done,
            "component/accuracy": skill,
            "response/length": 15 + 25 * learned(done),
            "response/truncated": 0.02,
            "policy/entropy": 0.5 * np.exp(-3 * done),
            "update/skipped": 0.0,
        }
        if (step + 1) % EVERY == 0:
            healthy["evaluation/accuracy"] = learned(done) + noise[step, 1]
        given = {name.replace("__", "/"): float(course(done)) for name, course in changes.items()}
        if (step + 1) % EVERY:
            given.pop("evaluation/accuracy", None)
        lines.append({"step": 4 + step, "phase": "rl", **healthy, **given})
    return lines


def named(lines: list[Line], sampled: Sampled = SAMPLED) -> list[str]:
    return [finding.name for finding in find_all(lines, sampled)]


def flat(value: float) -> Callable[[float], float]:
    return lambda done: value


def falling(done: float) -> float:
    return 0.6 - 0.25 * max(done - 0.4, 0) / 0.6


def rising(done: float) -> float:
    return 0.6 + 0.05 * done


def wavy(done: float) -> float:
    """About one half, varying from step to step."""
    return 0.5 + 0.02 * np.sin(300 * done)


UNWELL: dict[str, tuple[dict[str, Callable[[float], float]], list[str]]] = {
    "overfitting": (
        {"evaluation__accuracy": falling, **dict.fromkeys(("reward__accuracy", "reward__mean"), rising)},
        ["fell from 0.6", "to 0.421", "train_problems"],
    ),
    "overfitting, from the first on": (
        {"evaluation__accuracy": flat(0.2), "reward__accuracy": learned, "reward__mean": learned},
        ["problems is 0.200", "train_problems"],
    ),
    "accuracy_lost": (
        {"evaluation__accuracy": falling, "reward__accuracy": falling, "reward__mean": falling},
        ["to 0.421", "learning rate"],
    ),
    "reward_misleads": (
        {
            "reward__mean": lambda done: wavy(done) + done,
            "component__format": flat(1.0),
            "component__brevity": lambda done: wavy(done) + done,
            **dict.fromkeys(("reward__accuracy", "evaluation__accuracy", "component__accuracy"), wavy),
        },
        ["did not follow", "components moved: brevity by +0."],
    ),
    "length_runs_away": (
        {
            "response__length": lambda done: 100 + 300 * done,
            **dict.fromkeys(("reward__mean", "reward__accuracy", "evaluation__accuracy"), wavy),
        },
        ["SoftOverlong", "no better"],
    ),
    "truncation": ({"response__truncated": flat(0.4)}, ["40% of responses", "sampling.max_tokens"]),
    "exploration_ended": (
        {
            "policy__entropy": lambda done: 0.5 * np.exp(-12 * done),
            "reward__zero_variance_groups": lambda done: 0.1 + 0.7 * done,
            **dict.fromkeys(("reward__mean", "reward__accuracy", "evaluation__accuracy"), wavy),
        },
        ["nats per token", "Clip.high"],
    ),
    "no_signal": (
        {
            "reward__zero_variance_groups": flat(0.97),
            **dict.fromkeys(("reward__mean", "reward__accuracy", "evaluation__accuracy"), flat(0.01)),
        },
        ["97% of groups", "Curriculum.difficulty"],
    ),
    "updates_skipped": ({"update__skipped": lambda done: float(done > 0.9)}, ["not finite"]),
    "ungraded": (
        {"grading__ok": flat(62), "grading__error": flat(1), "grading__timeout": flat(1)},
        ["3.1% of the responses", "(error ", ", timeout ", "samples.jsonl"],
    ),
}


def test_every_check_has_a_case():
    assert {name.partition(",")[0] for name in UNWELL} == {test.__name__ for test in CHECKS}


def test_a_healthy_run_has_no_findings():
    assert named(run_of()) == []


@pytest.mark.parametrize("name", UNWELL)
def test_a_finding_is_raised_once_with_its_numbers_and_a_remedy(name: str):
    changes, said = UNWELL[name]
    (finding,) = find_all(run_of(**changes), SAMPLED)
    assert finding.name == name.partition(",")[0]
    assert [text for text in said if text not in finding.text] == []


def test_a_finding_names_the_first_evaluation_that_shows_it():
    (finding,) = find_all(run_of(response__truncated=lambda done: 0.9 * (done > 0.4)), SAMPLED)
    assert (
        finding.step == 30
    )  # of RL, without the 3 of the warm start: responses are truncated in 6 of the RL steps 21 to 30


EXCUSED: dict[str, tuple[dict[str, Callable[[float], float]], Sampled]] = {
    "a reward that goes on to brevity where nearly all is right": (
        {
            "reward__mean": lambda done: wavy(done) + done,
            **dict.fromkeys(("reward__accuracy", "evaluation__accuracy"), lambda done: wavy(done) + 0.45),
        },
        SAMPLED,
    ),
    "length that accuracy pays for": (
        {"response__length": lambda done: 10 + 900 * learned(done)},
        SAMPLED,
    ),
    "easy problems to train on first": (
        {
            "evaluation__accuracy": flat(0.5),
            "curriculum__problems": lambda done: 100 + 400 * done,
            **dict.fromkeys(("reward__accuracy", "reward__mean"), flat(0.9)),
        },
        SAMPLED,
    ),
    "a limit that a curriculum widens": (
        {"response__truncated": flat(0.4), "curriculum__max_tokens": lambda done: 16 + 60 * done},
        SAMPLED,
    ),
    "low entropy of a policy that is right": (
        {
            "policy__entropy": flat(0.001),
            **dict.fromkeys(("reward__accuracy", "reward__mean", "evaluation__accuracy"), flat(0.95)),
        },
        SAMPLED,
    ),
    "rewards that nothing is learned from": (
        {"reward__zero_variance_groups": flat(1.0)},
        Sampled(48, 8, rewarded=False),
    ),
    "responses that are not the policy's own": (
        {"response__truncated": flat(1.0), "reward__zero_variance_groups": flat(1.0)},
        Sampled(48, 8, own=False),
    ),
    "a fall within the error of few samples": (
        {"evaluation__accuracy": falling, "reward__accuracy": falling, "reward__mean": falling},
        Sampled(8, 4),
    ),
    "training problems that become harder": (
        {
            "reward__mean": falling,
            "reward__accuracy": falling,
            "evaluation__accuracy": flat(float("nan")),
            "curriculum__solved": lambda done: 100 * done,
        },
        SAMPLED,
    ),
}


@pytest.mark.parametrize("what", EXCUSED)
def test_excused_runs_have_no_finding(what: str):
    changes, sampled = EXCUSED[what]
    assert named(run_of(**changes), sampled) == []


def collapsing(course: Callable[[float], float]) -> list[Line]:
    """A run of 16 steps, evaluated every second step, with `course` as training and validation accuracy.

    Responses come from the policy before a step's update, evaluations from the policy after it.
    """
    lines = run_of()[3:19]
    for step, line in enumerate(lines):
        line.pop("evaluation/accuracy", None)
        line |= dict.fromkeys(("reward/mean", "reward/accuracy"), course(step / 16))
        line |= {"evaluation/accuracy": course((step + 1) / 16)} if step % 2 else {}
    return lines


COLLAPSES: dict[str, Callable[[float], float]] = {
    "from the start on": lambda done: 0.65 * (1 - done),
    "at once, in the middle": lambda done: 0.4 + 0.4 * done if done < 0.6 else 0.2,
    "at once, right before an evaluation": lambda done: 0.4 + 0.4 * done if done < 14 / 16 else 0.2,
}


@pytest.mark.parametrize("when", COLLAPSES)
@pytest.mark.parametrize("prompts", [32, 256])
def test_a_fast_collapse_is_not_mistaken_for_overfitting(when: str, prompts: int):
    assert named(collapsing(COLLAPSES[when]), Sampled(prompts, samples=8)) == ["accuracy_lost"]


@pytest.mark.parametrize(("reward", "found"), [(4.0, {"accuracy_lost", "reward_misleads"}), (0.0, {"accuracy_lost"})])
def test_a_reward_may_lead_at_first_and_mislead_later(reward: float, found: set[str]):
    """For example longer responses, which are right more often until they get truncated."""
    lines = collapsing(lambda done: 0.35 + 0.5 * done if done < 0.6 else 0.65 - 1.2 * (done - 0.6))
    for step, line in enumerate(lines):
        line |= {"reward/mean": 3 + reward * step / 16 + 0.1 * (step % 2), "reward/std": 1.5}
    assert set(named(lines)) == found


def test_a_loss_of_accuracy_names_the_best_checkpoint_or_the_field_that_keeps_it():
    lines = collapsing(COLLAPSES["at once, in the middle"])
    kept, lost = (find(lines, Sampled(256, 8, keeps_best=keeps))[0].text for keeps in (True, False))
    best = max(lines, key=lambda line: line.get("evaluation/accuracy", 0.0))["step"]
    advice = "has the best validation accuracy: rl-llm export RUN --step"
    assert kept.endswith(f"The checkpoint of RL step {best - 3} (step {best} with the warm start) {advice} {best}")
    alone = [{**line, "step": line["step"] - 3} for line in lines]  # without a warm start
    told = find(alone, Sampled(256, 8, keeps_best=True))[0].text
    assert told.endswith(f"The checkpoint of RL step {best - 3} {advice} {best - 3}")
    assert lost.endswith("The best one is kept with checkpointing.keep_best=True and evaluation.every")


def test_overfitting_does_not_hide_a_later_loss_of_accuracy():
    both = dict.fromkeys(("reward__accuracy", "reward__mean"), lambda done: 0.95 if done < 0.6 else 0.8)
    lines = run_of(evaluation__accuracy=lambda done: 0.8 if done < 0.6 else 0.3, **both)
    assert named(lines, Sampled(prompts=200, samples=8)) == ["overfitting", "accuracy_lost"]


def test_without_validation_the_training_accuracy_is_used():
    lines = run_of(reward__mean=falling, reward__accuracy=falling, evaluation__accuracy=flat(float("nan")))
    assert named(lines) == ["accuracy_lost"]


def test_a_run_without_rl_steps_has_no_findings():
    assert find_all([], SAMPLED) == find_all(run_of()[:3], SAMPLED) == find(run_of()[:3], SAMPLED) == []


@given(st.lists(st.floats(0, 1), min_size=20, max_size=60))
def test_a_reward_equal_to_accuracy_never_misleads(course: list[float]):
    lines = run_of()[3:]
    for line, right in zip(lines, course, strict=False):
        line |= {"reward/mean": 2 * right - 1, "reward/accuracy": right}
    assert "reward_misleads" not in named(lines[: len(course)])


@given(st.integers(0, 2**32 - 1), st.integers(1, STEPS // EVERY))
def test_find_all_repeats_the_findings_made_during_the_run(seed: int, evaluations: int):
    """So a resumed run repeats the findings of its own lines."""
    walk = np.random.default_rng(seed).normal(scale=0.1, size=(STEPS, 3)).cumsum(axis=0)
    lines = run_of()
    for line, moved in zip(lines[3:], walk, strict=True):
        accuracy, truncated, right = np.clip(0.5 + moved, 0, 1)
        line |= {"response/truncated": truncated, "reward/accuracy": right}
        line |= {"evaluation/accuracy": accuracy} if "evaluation/accuracy" in line else {}
    end = 3 + EVERY * evaluations
    known: dict[str, int] = {}
    for steps in range(3 + EVERY, end + 1, EVERY):
        for finding in find(lines[:steps], SAMPLED):
            known.setdefault(finding.name, finding.step)
    assert {finding.name: finding.step for finding in find_all(lines[:end], SAMPLED)} == known


@pytest.mark.parametrize(("then", "now"), [(0.3, 0.4), (0.0, 1.0), (0.5, 0.5)])
def test_the_error_of_a_difference_matches_simulation(then: float, now: float):
    draws = np.random.default_rng(0).binomial(400, (then, now), size=(20_000, 2)) / 400
    difference, error = AccuracyPoint(2, now, 400).difference(AccuracyPoint(1, then, 400))
    assert difference == pytest.approx(now - then)
    assert error == pytest.approx((draws[:, 1] - draws[:, 0]).std(), rel=0.02, abs=0.004)


def quickstart(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run the quickstart (minutes) and return its summary; it is compiled as users compile, since a long run gains."""
    command = [sys.executable, "-m", "rl_llm", "train", "experiments/quickstart.py", "--out", str(folder), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | CACHE | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.nightly("each finding is silent on recorded metrics of healthy runs; tiny runs have the parts of this one")
def test_the_quickstart_has_no_findings(tmp_path: Path):
    summary = quickstart(tmp_path / "run")
    assert (summary["findings"], summary["accuracy_after"] > 0.9) == ([], True)


@pytest.mark.nightly("the finding is raised by recorded metrics")
def test_the_quickstart_on_few_problems_overfits(tmp_path: Path):
    few = ("train_problems=48", "warm_start.steps=300", "warm_start.gate.minimum=0", "optimizer.learning_rate=2e-3")
    summary = quickstart(tmp_path / "run", *(part for change in (*few, "steps=20") for part in ("--set", change)))
    assert "overfitting" in [finding["name"] for finding in summary["findings"]]


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run with mostly truncated responses."""
    return train(tmp_path_factory.mktemp("cut_off") / "run", *SETTINGS)


def events(run: Finished) -> list[Line]:
    return [entry["data"] for entry in Ledger.verify(run.folder / "ledger.jsonl") if entry["event"] == "finding"]


@pytest.mark.slow
def test_a_run_prints_records_and_reports_its_findings(cut_off: Finished):
    (finding,) = cut_off.summary["findings"]
    assert (finding["name"], finding["step"]) == ("truncation", 12)
    assert events(cut_off) == [finding]
    assert cut_off.stderr.count(finding["text"]) == 1
    assert "findings    truncation (RL step 12)" in cut_off.stdout
    assert finding["text"] in (cut_off.folder / "report.html").read_text()


@pytest.mark.slow
def test_a_resumed_run_finds_the_same_and_records_it_once(cut_off: Finished, tmp_path: Path):
    """It resumes from a checkpoint before the finding, which is already in the ledger."""
    folder = tmp_path / "run"
    shutil.copytree(cut_off.folder, folder)
    (folder / "summary.json").unlink()
    for step in (WARM_STEPS + 11, WARM_STEPS + 12):
        shutil.rmtree(folder / "checkpoints" / str(step))
    resumed = train(folder, *SETTINGS, "--resume")
    assert f"resuming {folder} at step {WARM_STEPS + 10}" in resumed.stderr
    assert json.dumps(resumed.summary["findings"]) == json.dumps(cut_off.summary["findings"])
    assert events(resumed) == events(cut_off)
