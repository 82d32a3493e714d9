"""A whole run of the tiny experiment: the files it writes, that it repeats bit for bit, and what it refuses."""

import json
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from program import (
    EXPERIMENT,
    ROOT,
    STEPS,
    TINY,
    WARM_STEPS,
    Finished,
    finish,
    outcome,
    rl_llm,
    start,
    steps_done,
    train,
    uninterrupted,
    wait_until,
    without_time,
)

from rl_llm.algorithms import Clip
from rl_llm.model import Initialization
from rl_llm.problem import problem_id
from rl_llm.runs.files import read_records
from rl_llm.runs.ledger import Ledger
from rl_llm.sampler import Sampling
from rl_llm.types import Max, Mean
from rl_llm.update.step import merge_update_metrics

HOSTILE = "tests/data/hostile.py"

RL_KEYS = {
    *("reward/mean", "reward/accuracy", "reward/std", "reward/std_centered", "reward/zero_variance_groups"),
    *("response/length", "response/length_right", "response/length_wrong"),
    *("response/truncated", "response/looping"),
    *("policy/ratio", "policy/ratio_max", "policy/clip_low", "policy/clip_high", "policy/entropy", "loss"),
    *("update/gradient_norm", "update/skipped", "update/learning_rate"),
    *("agreement/mean", "agreement/max", "agreement/kl"),
    *("tokens/generated", "tokens/total", "flops/generate", "flops/update", "flops/total"),
    "component/accuracy",
    *("grading/ok", "grading/error", "grading/timeout", "grading/crashed"),
    *("time/generate", "time/grade", "time/update", "time/step"),
}
SHARES = (
    *("reward/mean", "reward/accuracy", "reward/zero_variance_groups", "response/truncated", "response/looping"),
    *("policy/clip_low", "policy/clip_high", "update/skipped"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return uninterrupted(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, tuple[int, str, str], int]:
    """The same run again, the outcome of a second process that wants its folder meanwhile, and the first one's id."""
    folder = tmp_path_factory.mktemp("again") / "run"
    process = start("train", TINY, "--out", folder, "--set", "checkpointing.every=1")
    wait_until(process, (folder / ".holder.json").exists)
    process.send_signal(signal.SIGSTOP)  # however slow the second is, the first is not done before it
    refused = rl_llm("train", TINY, "--out", folder, "--resume")
    process.send_signal(signal.SIGCONT)
    code, stdout, stderr = finish(process)
    assert code == 0, stderr
    return Finished(folder, stdout, stderr), refused, process.pid


def test_the_run_folder_has_the_documented_files(run: Finished):
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("experiment.json", "code", "metrics.jsonl", "samples.jsonl", "ledger.jsonl", "checkpoints"),
        *("report.html", "summary.json", "tensorboard"),
    }


def checkpoints(run: Finished) -> list[str]:
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def test_the_newest_checkpoints_and_the_best_are_kept(run: Finished, again: tuple):
    """The best, of step 18, is saved besides those of every fifth step, and outlives newer ones."""
    accuracies = {line["step"]: line.get("evaluation/accuracy", 0.0) for line in run.metrics}
    best = max(accuracies, key=lambda step: accuracies[step])
    assert run.summary["best"] == {"step": best, "accuracy": accuracies[best], "kept": True}
    assert best == 18
    assert checkpoints(run) == ["18", "20", "22"]
    assert checkpoints(again[0]) == ["18", "20", "21", "22"]


def test_standard_output_shows_the_outcome_and_the_folder(run: Finished):
    assert f"{run.summary['accuracy_after']:.1%}" in run.stdout
    assert str(run.folder) in run.stdout
    assert str(run.folder / "report.html") in run.stdout


def test_progress_goes_to_standard_error_with_samples_of_both_policies(run: Finished):
    for text in ("warm start 16/16", "reinforcement learning 6/6", "before RL:", "after RL:", "<answer>"):
        assert text in run.stderr
    assert "tokens/s" in run.stderr
    assert "left" in run.stderr


def test_a_run_prints_no_warning(run: Finished):
    assert "warning" not in run.stderr.lower()


def test_the_record_of_the_experiment_is_complete(run: Finished):
    record = json.loads((run.folder / "experiment.json").read_text())
    assert {"fingerprint", "tokenizer", "versions", "python", "devices", "commit"} <= set(record)
    edits = {name for name in record["code"] if name.startswith("rl_llm/")}  # in this clone
    assert set(record["code"]) - edits == {TINY}
    assert (run.folder / "code" / TINY).read_bytes() == (ROOT / TINY).read_bytes()
    assert (record["spec"], record["overrides"], record["seed"]) == (TINY, [], 0)
    assert record["experiment"]["sampling"]["max_tokens"] == 16
    assert {"jax", "jaxlib", "optax", "orbax-checkpoint", "numpy"} <= set(record["versions"])
    assert {"math-verify", "sympy"} <= set(record["versions"])  # of the extra `math`: they decide grades


def test_every_step_has_one_line(run: Finished):
    assert [line["step"] for line in run.metrics] == list(range(1, STEPS + 1))
    assert [line["phase"] for line in run.metrics] == ["warm_start"] * WARM_STEPS + ["rl"] * EXPERIMENT.steps


def test_every_rl_line_has_every_metric_as_a_finite_number(run: Finished):
    for line in run.metrics[WARM_STEPS:]:
        assert set(line) - {"evaluation/accuracy"} == RL_KEYS | {"step", "phase"}
        assert all(math.isfinite(value) for name, value in line.items() if name != "phase")


def test_sampler_and_learner_agree_in_every_step(run: Finished):
    """test_learner.py shows that a difference would be seen: here the two may agree to the bit."""
    for line in run.metrics[WARM_STEPS:]:
        assert 0 <= line["agreement/mean"] <= line["agreement/max"] <= 2e-5
        assert 0 <= line["agreement/kl"] <= 1e-9


def test_metrics_are_in_range(run: Finished):
    for line in run.metrics[WARM_STEPS:]:
        assert all(0.0 <= line[name] <= 1.0 for name in SHARES)
        assert 1.0 <= line["response/length"] <= EXPERIMENT.sampling.max_tokens
        assert 0.0 < line["policy/entropy"] <= math.log(EXPERIMENT.model.vocabulary)
        assert line["policy/ratio"] == pytest.approx(1.0, abs=0.2)
        assert line["policy/ratio_max"] >= line["policy/ratio"]
        assert line["tokens/generated"] == pytest.approx(32 * line["response/length"])
        assert line["reward/accuracy"] == line["reward/mean"]  # the accuracy is the only component of the reward
        assert sum(line[f"grading/{status}"] for status in ("ok", "error", "timeout", "crashed")) == 32


def test_the_run_really_learns(run: Finished):
    """Otherwise the tests that compare runs would compare untrained states."""
    lines = run.metrics[WARM_STEPS:]
    assert all(line["update/gradient_norm"] > 0 and line["reward/std"] > 0 for line in lines)
    assert any(line["policy/ratio_max"] > 1.001 for line in lines)
    assert run.metrics[WARM_STEPS - 1]["loss"] < 0.7 * run.metrics[0]["loss"]


def test_the_learning_rate_warms_up_and_falls(run: Finished):
    """The rate of each step's last update: 12 RL updates, 2 of them warm-up."""
    rates = [line["update/learning_rate"] for line in run.metrics]
    assert rates[:2] == pytest.approx([1.5e-2, 3e-2])
    assert rates[WARM_STEPS:] == pytest.approx([1e-2 * (1 - max(0, 2 * step - 1) / 10) for step in range(6)])


def test_totals_add_up(run: Finished):
    tokens, flops = 0, 0.0
    for line in run.metrics:
        tokens += line.get("tokens/generated", 0)
        flops += line.get("flops/generate", 0.0) + line.get("flops/update", 0.0)
        assert (line["tokens/total"], line["flops/total"]) == (tokens, pytest.approx(flops))
    assert (run.summary["tokens_generated"], run.summary["flops"]) == (tokens, pytest.approx(flops))


def test_validation_accuracy_is_measured_at_the_configured_steps(run: Finished):
    steps = [line["step"] - WARM_STEPS for line in run.metrics if "evaluation/accuracy" in line]
    assert steps == [2, 4, 6]


def test_the_summary_agrees_with_the_ledger(run: Finished):
    events = {(entry["event"], entry["data"].get("when")): entry["data"] for entry in ledger(run)}
    for when in ("before", "after"):
        for name in ("accuracy", "greedy", "response_length"):
            assert run.summary[f"{name}_{when}"] == events["evaluated", when][name]
    assert run.summary["skill"] == events["gate", None]["skill"]
    assert run.summary["state_sha256"] == events["finished", None]["state_sha256"]


def test_the_summary_has_the_fields_that_studies_read(run: Finished):
    assert {"accuracy_before", "accuracy_after", "wall_seconds", "state_sha256"} <= set(run.summary)
    assert (run.summary["seed"], run.summary["steps"], run.summary["updates_skipped"]) == (0, STEPS, 0)
    assert len(run.summary["state_sha256"]) == 64
    assert run.summary["wall_seconds"] > run.summary["time"]["step"] > 0


def test_the_ledger_is_intact_and_the_summary_records_its_head(run: Finished):
    entries = ledger(run)
    events = ["started", "first_checkpoint", "gate", "evaluated", "evaluated", "finished"]
    assert [entry["event"] for entry in entries] == events
    assert entries[-1]["sha256"] == run.summary["ledger_head"]


def test_samples_before_during_and_after_rl_are_graded_responses(run: Finished):
    samples = read_records(run.folder / "samples.jsonl")
    places = [(sample["when"], sample["step"]) for sample in samples]
    during = [("training", WARM_STEPS + step) for step in (2, 4, 6) for _ in range(2)]
    assert places == [("before", WARM_STEPS)] * 8 + during + [("after", STEPS)] * 8
    for sample in samples:
        problem = EXPERIMENT.task.problem(sample["prompt"])
        assert sample["answer"] == problem.answer
        assert sample["reward"] == EXPERIMENT.task.verify(problem, sample["response"])


def test_the_same_run_twice_is_the_same_bits(run: Finished, again: tuple):
    """Checkpoints at other steps change nothing."""
    twin, *_ = again
    assert without_time(twin.metrics) == without_time(run.metrics)
    assert (twin.folder / "samples.jsonl").read_bytes() == (run.folder / "samples.jsonl").read_bytes()
    assert outcome(twin.summary) == outcome(run.summary)


def test_a_second_process_is_refused_while_the_first_runs(again: tuple):
    _, (code, _, stderr), holder = again
    assert code == 2
    assert f"in use by process {holder} on host" in stderr


@pytest.mark.slow
def test_a_failing_gate_ends_the_run_before_rl(tmp_path: Path):
    folder = tmp_path / "run"
    code, _, stderr = rl_llm("train", TINY, "--out", folder, "--set", "warm_start.gate.minimum=1.0")
    assert code == 1
    assert "warm_start.gate.minimum is 100%" in stderr
    assert "--set warm_start.steps=" in stderr
    assert "Traceback" not in stderr
    assert steps_done(folder) == WARM_STEPS
    assert not (folder / "summary.json").exists()


def test_a_verifier_that_always_fails_ends_the_run_with_its_message(tmp_path: Path):
    code, _, stderr = rl_llm("train", f"{HOSTILE}:always", "--out", tmp_path / "run")
    assert (code, "Traceback" in stderr) == (1, False), stderr
    assert "36 of 36 responses could not be graded (100%; grading.ungraded allows 25%)" in stderr
    assert "the first: error, RuntimeError: boom" in stderr


def test_the_gate_refuses_a_verifier_before_the_run_has_a_folder(tmp_path: Path):
    command = ("train", f"{HOSTILE}:sometimes", "--out", tmp_path / "run", "--set")
    code, _, stderr = rl_llm(*command, "grading.failing_problems=0.01")
    assert (code, "Traceback" in stderr, (tmp_path / "run").exists()) == (2, False, False), stderr
    assert re.search(r"task modular_sum: \d+ of 57 problems fail \(\d\d\.\d%\), such as\n    prompt '\.\.\.", stderr)
    assert re.search(r"the right response '<answer>\d</answer>' ends in error, ValueError: odd", stderr)
    assert re.search(r"write_answer.*To accept this: --set grading.failing_problems=0\.\d", stderr)


@pytest.mark.slow
def test_failed_gradings_are_reported_once_and_counted(tmp_path: Path):
    code, _, stderr = rl_llm("train", f"{HOSTILE}:sometimes", "--out", tmp_path / "run")
    assert code == 0, stderr
    run = Finished(tmp_path / "run", "", "")
    assert sum(line["grading/error"] for line in run.metrics) > 1
    assert stderr.count("could not be graded, error: ValueError: odd") == 1
    assert [e["data"]["failure"] for e in ledger(run) if e["event"] == "grading_failed"] == ["error: ValueError: odd"]
    assert "ungraded (RL step 2)" in stderr
    assert [finding["name"] for finding in run.summary["findings"]] == ["ungraded"]
    assert re.search(
        r"\d\d\.\d% of the responses could not be graded \(error \d+\)", run.summary["findings"][0]["text"]
    )


@pytest.mark.slow
def test_a_response_that_changes_its_grader_stops_the_run_with_its_text_kept(tmp_path: Path):
    run = Finished(tmp_path / "run", "", "")
    code, _, stderr = rl_llm("train", f"{HOSTILE}:hijacked", "--out", run.folder)
    assert (code, "Traceback" in stderr) == (1, False), stderr
    assert re.search(
        r"the response changed its grading process: the answer .* had reward 0 before it .* reward 1", stderr
    )
    assert not (run.folder / "metrics.jsonl").exists(), "no step learns from such a rollout"
    kept = [sample for sample in read_records(run.folder / "samples.jsonl") if sample["when"] == "ungraded"]
    assert kept
    assert all(problem_id("modular_sum", sample["prompt"]) % 5 == 1 and sample["response"] for sample in kept)


@pytest.mark.slow
def test_too_many_ungraded_responses_stop_the_run_which_resumes_with_a_mended_verifier(tmp_path: Path):
    """The evidence is kept, and so is the state: the run resumes at the step that stopped it."""
    broken, run = tmp_path / "broken", Finished(tmp_path / "run", "", "")
    broken.touch()
    command = ("train", f"{HOSTILE}:mendable", "--set", f"task.file={broken}", "--out", run.folder)
    code, _, stderr = rl_llm(*command)
    assert (code, "Traceback" in stderr) == (1, False), stderr
    before = run.metrics
    step = len(before)
    assert step == 2  # the third rollout has more than a quarter of its problems
    assert "of 32 responses could not be graded" in stderr
    kept = [sample for sample in read_records(run.folder / "samples.jsonl") if sample["when"] == "ungraded"]
    last = [sample for sample in kept if sample["step"] == step + 1]
    assert len(last) > 8
    assert {(sample["status"], sample["message"]) for sample in kept} == {("error", "ValueError: not mended")}
    assert all(sample["prompt"] and sample["answer"] and "response" in sample for sample in last)
    broken.unlink()
    code, _, stderr = rl_llm(*command, "--resume")
    assert code == 0, stderr
    assert f"resuming {run.folder} at step {step}" in stderr
    assert run.metrics[:step] == before
    assert [line["grading/error"] for line in run.metrics[step:]] == [0] * (6 - step)


@pytest.mark.slow
def test_four_devices_sample_what_one_samples(run: Finished, tmp_path: Path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    spread = train(tmp_path / "run", "--set", "mesh.data=4", XLA_FLAGS=flags)
    one, four = run.metrics[WARM_STEPS], spread.metrics[WARM_STEPS]
    for name in ("tokens/generated", "reward/mean", "response/length", "response/truncated", "flops/generate"):
        assert four[name] == one[name], name
    for name in ("loss", "policy/entropy", "update/gradient_norm", "policy/ratio"):
        assert four[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    assert len(json.loads((spread.folder / "experiment.json").read_text())["devices"]) == 4


@pytest.mark.slow
def test_without_a_warm_start_rl_begins_at_step_one(tmp_path: Path):
    code, _, stderr = rl_llm("train", f"{TINY}:cold", "--out", tmp_path / "run")
    assert code == 0, stderr
    cold = Finished(tmp_path / "run", "", "")
    assert [(line["step"], line["phase"]) for line in cold.metrics] == [(step, "rl") for step in range(1, 7)]
    assert [entry["event"] for entry in ledger(cold)] == [
        "started",
        "evaluated",
        "first_checkpoint",
        "evaluated",
        "finished",
    ]
    assert cold.summary["skill"] is None


def test_metrics_of_a_step_cover_all_its_updates_except_for_the_agreement():
    first = {"loss": Mean(jnp.float32(2), jnp.float32(1)), "agreement/max": Max(jnp.float32(1e-6))}
    second = {"loss": Mean(jnp.float32(4), jnp.float32(1)), "agreement/max": Max(jnp.float32(0.1))}
    together = merge_update_metrics([first, second])
    assert float(together["loss"].result()) == 3.0
    assert float(together["agreement/max"].result()) == pytest.approx(1e-6)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_problem_pools_of_a_run_are_disjoint(seed: int):
    pools = [
        {problem.prompt for problem in EXPERIMENT.task.problems(split, count, seed)}
        for split, count in (("train", 40), ("validation", 8), ("held_out", 9))
    ]
    assert len(set().union(*pools)) == 40 + 8 + 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "Experiment.steps=0 is out of range; expected >= 1"),
        ({"prompts_per_step": 7}, "prompts_per_step=7 must be a multiple of"),
        ({"train_problems": 7}, "train_problems=7 is less than prompts_per_step=8"),
        ({"sampling": Sampling(temperature=0.0)}, "sampling.temperature=0 draws the same response K times"),
        (
            {"start": "elsewhere", "warm_start": None, "initialization": Initialization(scale=2.0)},
            "Initialization(scheme='fan_in', scale=2.0) cannot act: start='elsewhere' has the first parameters",
        ),
        ({"responses_per_prompt": 1}, "Normalize.mean='group' with responses_per_prompt=1"),
        (
            {"updates_per_rollout": 1, "algorithm": replace(EXPERIMENT.algorithm, objective=Clip(0.2, 0.28))},
            "Clip.high=0.28 cannot act with one on-policy update per rollout",
        ),
    ],
)
def test_an_experiment_with_a_value_that_cannot_act_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(EXPERIMENT, **changes)


def ledger(run: Finished) -> list[dict[str, Any]]:
    return Ledger.verify(run.folder / "ledger.jsonl")


def test_a_kept_step_is_exported_and_one_that_is_gone_is_refused_by_name(run: Finished, tmp_path: Path):
    code, stdout, stderr = rl_llm("export", run.folder, "--out", tmp_path / "best", "--step", "18")
    assert (code, "the policy of step 18 (RL step 2)" in stdout) == (0, True), stderr
    code, _, stderr = rl_llm("export", run.folder, "--out", tmp_path / "gone", "--step", "3")
    assert (code, "has no step 3; it has 22, 20, 18" in stderr) == (2, True), stderr
    assert "RL begins at step 17, after the warm start" in stderr


def test_keeping_the_best_cannot_act_without_validation(tmp_path: Path):
    code, _, stderr = rl_llm("train", TINY, "--out", tmp_path / "run", "--set", "evaluation.every=0")
    assert (code, "checkpointing.keep_best=True cannot act: evaluation.every=0" in stderr) == (2, True), stderr
