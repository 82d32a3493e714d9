"""Runs that learn from other runs or from files: a start, teachers, judged responses, a reward model."""

import json
from pathlib import Path

import pytest
from program import Finished, rl_llm
from test_techniques import FILE, train

from rl_llm.commands.export import longest_text
from rl_llm.config import load_experiment
from rl_llm.experiment import Experiment

EXPERIMENT = load_experiment("tests/data/techniques.py:base", Experiment)[1]
STEPS = EXPERIMENT.steps
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run."""
    return train(tmp_path_factory.mktemp("other") / "run", "base")


@pytest.fixture(scope="module")
def judged(other: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its responses to training problems, with their rewards and the likeliest tokens at each position."""
    path = tmp_path_factory.mktemp("judged") / "judged.jsonl"
    options = ("--split", "train", "--problems", "40", "--responses", path, "--logits", "4")
    code, _, stderr = rl_llm("evaluate", other.folder, *options)
    assert code == 0, stderr
    return path


def steps(run: Finished) -> list[dict]:
    return [line for line in run.metrics if line["phase"] == "rl"]


def test_a_run_starts_from_the_policy_of_another(other: Finished, tmp_path: Path):
    """With the same problems and noise, one run's final accuracy is the other's first."""
    run = train(tmp_path / "run", "started", "--set", f"start={other.folder}")
    assert run.summary["accuracy_before"] == other.summary["accuracy_after"]
    assert run.summary["response_length_before"] == other.summary["response_length_after"]
    assert [line["step"] for line in run.metrics] == list(range(1, STEPS + 1))


def test_a_policy_is_exported_and_another_run_starts_from_the_folder(other: Finished, tmp_path: Path):
    out = tmp_path / "exported"
    code, stdout, stderr = rl_llm("export", other.folder, "--out", out, "--dtype", "float32")
    assert code == 0, stderr
    assert str(out) in stdout
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == longest_text(EXPERIMENT)
    run = train(tmp_path / "run", "started", "--set", f"start={out}")
    assert run.summary["accuracy_before"] == other.summary["accuracy_after"]
    code, _, stderr = rl_llm("export", run.folder, "--out", tmp_path / "again")
    assert code == 0, stderr
    copied = [(folder / "config.json").read_bytes() for folder in (out, tmp_path / "again")]
    assert copied[0] == copied[1]
    code, _, stderr = rl_llm("export", run.folder, "--out", out)
    assert code == 2
    assert "not empty" in stderr


def test_adapters_are_evaluated_and_other_runs_start_with_them_merged(tmp_path: Path):
    run, out = train(tmp_path / "run", "lora"), tmp_path / "exported"
    code, stdout, stderr = rl_llm("evaluate", run.folder)
    assert code == 0, stderr
    assert json.loads(stdout)["accuracy"] == run.summary["accuracy_after"]
    code, _, stderr = rl_llm("export", run.folder, "--out", out, "--dtype", "float32")
    assert code == 0, stderr
    for name, start in (("of the run", run.folder), ("of the folder", out)):
        begun = train(tmp_path / name, "started", "--set", f"start={start}")
        assert begun.summary["accuracy_before"] == run.summary["accuracy_after"]
    adapted = train(tmp_path / "adapted", "lora", "--set", f"start={out}")
    code, _, stderr = rl_llm("export", adapted.folder, "--out", tmp_path / "adapter", "--adapter")
    assert code == 0, stderr
    for name, use in (("lora", "go on as the run's"), ("started", "are merged into the weights")):
        begun = train(tmp_path / f"adapter of {name}", name, "--set", f"start={tmp_path / 'adapter'}")
        assert use in begun.stdout
    assert begun.summary["accuracy_before"] == adapted.summary["accuracy_after"]  # no warm start in between
    (tmp_path / "adapted" / "frozen" / "0" / "seal.json").unlink()
    code, _, stderr = rl_llm("evaluate", tmp_path / "adapted")
    assert code == 1
    assert "frozen is good" in stderr


def test_a_start_with_another_model_is_refused(tmp_path: Path):
    golden = Path(FILE).parent / "golden" / "qwen3"
    out = tmp_path / "run"
    code, _, stderr = rl_llm("train", f"{FILE}:started", "--set", f"start={golden}", "--out", out)
    assert code == 2
    assert "model.width: 16 -> 32" in stderr
    assert not out.exists()


def test_all_judged_responses_are_written(other: Finished, judged: Path):
    lines = [json.loads(line) for line in judged.read_text().splitlines()]
    assert len(lines) == 40
    for line in lines:
        assert len(line["responses"]) == len(line["rewards"]) == len(line["tokens"]) == 4
        for tokens, likeliest, logps in zip(line["tokens"], line["teacher_tokens"], line["teacher_logp"], strict=True):
            assert len(tokens) == len(likeliest) == len(logps)
            assert all(place == sorted(place, reverse=True) for place in logps)


def test_preferences_are_learned_from_a_file_without_sampling(judged: Path, tmp_path: Path):
    run = train(tmp_path / "run", "offline_dpo", "--set", f"responses.path={judged}")
    assert run.summary["tokens_generated"] == 0
    assert all(line["tokens/stored"] > 0 for line in steps(run))
    assert all(0 <= line["preference/accuracy"] <= 1 for line in steps(run))
    assert all(line["agreement/max"] < 1e-4 for line in steps(run)), "the ratio's old policy is the learner itself"


@pytest.mark.parametrize("name", ["offline_kto", "offline_logits"])
def test_other_losses_are_learned_from_a_file(judged: Path, tmp_path: Path, name: str):
    run = train(tmp_path / "run", name, "--set", f"responses.path={judged}")
    assert run.summary["tokens_generated"] == 0
    if name == "offline_logits":
        assert steps(run)[-1]["policy/distillation"] < steps(run)[0]["policy/distillation"]


@pytest.mark.parametrize(
    ("name", "metric"),
    [("gkd", "policy/distillation"), ("on_policy_distillation", "policy/kl")],
)
def test_a_student_approaches_its_teacher(other: Finished, tmp_path: Path, name: str, metric: str):
    run = train(tmp_path / "run", name, "--set", f"teacher.run={other.folder}", "--set", "steps=6")
    assert steps(run)[-1][metric] < 0.6 * steps(run)[0][metric]


def test_a_reward_model_is_learned_from_judged_responses_and_rewards_a_policy(judged: Path, tmp_path: Path):
    model = train(tmp_path / "model", "reward_model", "--set", f"responses.path={judged}")
    assert model.summary["accuracy_before"] == model.summary["accuracy_after"], "no policy was trained"
    assert all(line["critic/gradient_norm"] > 0 for line in steps(model))
    run = train(
        tmp_path / "run", "rlhf", "--set", f"reward_model.run={model.folder}", "--set", "reward_model.weight=2.0"
    )
    for line in steps(run):
        assert line["reward/mean"] == pytest.approx(2 * line["component/reward_model"], rel=1e-5)
        assert line["reward/accuracy"] != line["reward/mean"]


HUB = "Qwen/Qwen3-4B-Base"
DOWNLOAD = f"hf download {HUB} --local-dir qwen3-4b-base"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "started",
            "start=nowhere",
            "start=nowhere is not a run folder, nor a Hugging Face folder: nothing is there; train it first "
            "(rl-llm train FILE:NAME --out nowhere), or --set start=DIR to another",
        ),
        (
            "started",
            f"start=https://huggingface.co/{HUB}",
            f"/{HUB} is an address, not a folder: {DOWNLOAD}, then use the",
        ),
        ("started", f"start=hf://{HUB}", f"start=hf://{HUB} is an address, not a folder: {DOWNLOAD}, then use the"),
        ("gkd", "teacher.run=nowhere", "nowhere is not a run folder"),
        ("started", f"start={HUB}", f"start='{HUB}' is not a folder: {DOWNLOAD}, then start=qwen3-4b-base"),
        ("gkd", f"teacher.run={HUB}", f"teacher.run='{HUB}' is not a folder: {DOWNLOAD}, then train a run with start="),
        ("offline_dpo", "responses.path=nowhere.jsonl", "nowhere.jsonl"),
        ("started", "model.width=24", "model.width: 24 -> 16"),
    ],
)
def test_a_missing_or_unfitting_source_is_wrong_usage(
    other: Finished, tmp_path: Path, name: str, change: str, message: str
):
    start = ("--set", f"start={other.folder}") if change.startswith("model") else ()
    code, _, stderr = rl_llm("train", f"{FILE}:{name}", "--out", tmp_path / "run", *start, "--set", change)
    assert code == 2
    assert message in stderr
    assert not (tmp_path / "run").exists()
