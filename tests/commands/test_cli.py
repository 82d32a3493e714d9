"""The command line: its commands on a finished run, its help, and its messages for wrong usage."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from program import EXPERIMENT, ROOT, TINY, Finished, rl_llm, uninterrupted

from rl_llm.cli import main
from rl_llm.commands.evaluate import problems_of_split
from rl_llm.commands.train import _resume_command

# Every case in a fresh, empty folder, but all in one process: the imports take longer than the cases.
TRY = """
import contextlib, io, json, os, pathlib, sys, tempfile
from rl_llm.cli import main
for case in json.loads(sys.argv[1]):
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code = main(case)
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            code = repr(error)
        left = sorted(path.name for path in pathlib.Path(folder).rglob("*"))
        os.chdir("/")
    print(json.dumps([code, said.getvalue(), left]))
"""
PATH = str(ROOT / TINY)
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "a command": (["trian", PATH], ["trian", "'train'"]),
    "an option": (
        ["train", PATH, "--sed", "3"],
        ["usage: rl-llm train [-h]", "rl-llm train: error: unrecognized arguments: --sed (did you mean '--seed'?), 3"],
    ),
    "an option with its value": (["report", "runs", "--uot=x"], ["usage: rl-llm report", "--uot=x"]),
    "an argument": (["report", "runs", "more", "--x"], ["usage: rl-llm report"]),
    "a field of nothing": (
        ["train", PATH, "--set", "model.lora.rank=8"],
        ["model.lora (None) has no fields", "base = replace(base, model=replace(base.model, lora=Lora(rank=8, "],
    ),
    "a misspelt field that is elsewhere": (
        ["train", PATH, "--set", "learning_rat=2e-4"],
        ["did you mean 'optimizer.learning_rate' or 'warm_start.optimizer.learning_rate'?"],
    ),
    "a seed that is not a number": (["train", PATH, "--seed", "x"], ["--seed", "'x'"]),
    "a negative seed": (["train", PATH, "--seed", "-1"], ["--seed", "-1"]),
    "a seed that JAX would truncate": (["train", PATH, "--seed", str(2**32)], ["--seed", str(2**32)]),
    "a file": (["train", PATH.replace("tiny", "tyni")], ["tyni.py", "did you mean 'tiny.py'?"]),
    "a file that is not Python": (["train", str(ROOT / "README.md")], ["README.md", "path/to/file.py"]),
    "a name in the file": (["train", f"{PATH}:bass"], ["there is no 'bass'", "did you mean 'base'?"]),
    "a name that is not an experiment": (["train", f"{PATH}:TASK"], ["TASK is ModularSum", "has: base, cold"]),
    "a field": (["train", PATH, "--set", "step=3"], ["--set step=3", "did you mean 'steps'?"]),
    "a field that is elsewhere": (
        ["train", PATH, "--set", "learning_rate=2e-4"],
        ["--set learning_rate=2e-4", "optimizer.learning_rate"],
    ),
    "a type": (["train", PATH, "--set", "steps=many"], ["--set steps=many", "expected int >= 1, got 'many'"]),
    "a field set twice": (["train", PATH, "--set", "steps=3", "--set", "steps=4"], ["already sets this place"]),
    "no value": (["train", PATH, "--set", "steps"], ["--set steps", "NAME=VALUE"]),
    "structure": (["train", PATH, "--set", "algorithm=grpo"], ["--set algorithm=grpo", "dataclasses.replace"]),
    "a value that cannot act": (
        ["train", PATH, "--set", "updates_per_rollout=1", "--set", "algorithm.objective.high=0.28"],
        ["Clip.high=0.28 cannot act with one on-policy update per rollout"],
    ),
    "sizes that do not divide": (
        ["train", PATH, "--set", "prompts_per_step=9"],
        ["--set prompts_per_step=9", "must be a multiple of updates_per_rollout * micro_batches = 2 * 1"],
    ),
    "more devices than there are": (["train", PATH, "--set", "mesh.data=2"], ["2 x 1 x 1", "there are 1"]),
    "more problems than there are": (["train", PATH, "--set", "train_problems=1000"], ["1000 train problems", "94"]),
    "too little room for a prompt": (
        ["train", PATH, "--set", "max_prompt_tokens=8"],
        ["prompt '", "has 9 tokens with the prefix '<think>'", "max_prompt_tokens=8"],
    ),
    "a prefix the tokenizer cannot write": (
        ["train", PATH, "--set", "warm_start.gate.prefix=Think"],
        ["'T' at position", "Think' starts no symbol", "its symbols are"],
    ),
    "too little room for a demonstration": (
        ["train", PATH, "--set", "warm_start.max_tokens=5"],
        ["response '", "warm_start.max_tokens=5"],
    ),
    "a validation after the last step": (
        ["train", PATH, "--set", "evaluation.every=7"],
        ["evaluation.every=7 with steps=6", "to 0 (off)"],
    ),
    "a top_k that cuts nothing": (
        ["train", PATH, "--set", "sampling.top_k=12"],
        ["sampling.top_k=12 cannot act on a vocabulary of 12"],
    ),
    "another vocabulary": (
        ["train", PATH, "--set", "model.vocabulary=99"],
        ["=99 does not match the tokenizer; expected 12"],
    ),
    "endless patience": (["train", PATH, "--set", "grading.time_limit=inf"], ["time_limit", "3600", "inf"]),
    "a rotary base of zero": (["train", PATH, "--set", "model.rope_base=0"], ["model.rope_base=0: expected float > 0"]),
    "no checkpoints": (["train", PATH, "--set", "checkpointing.every=0"], ["checkpointing.every=0: expected int >= 1"]),
    "no checkpoint kept": (
        ["train", PATH, "--set", "checkpointing.keep=0"],
        ["checkpointing.keep=0: expected int >= 1"],
    ),
    "no grading process": (["train", PATH, "--set", "grading.workers=0"], ["workers", "0"]),
    "no time to grade": (["train", PATH, "--set", "grading.time_limit=0"], ["time_limit", "0"]),
    "a warm start of negative length": (["train", PATH, "--set", "warm_start.steps=-1"], ["steps", "-1"]),
    "a warm start without demonstrations": (
        ["train", PATH, "--set", "warm_start.demonstrations_per_step=0"],
        ["demonstrations_per_step", "0"],
    ),
    "a negative validation interval": (["train", PATH, "--set", "evaluation.every=-1"], ["every", "-1"]),
    "no evaluation problems": (["train", PATH, "--set", "evaluation.problems=0"], ["problems", "0"]),
    "a folder below a file": (["train", PATH, "--out", f"{PATH}/run"], [f"{PATH}/run"]),
    "a run in a bucket": (["train", PATH, "--out", "gs://bucket/run"], ["gs://bucket/run", "mount the bucket"]),
    "a folder that holds something else": (["train", PATH, "--out", str(ROOT / "rl_llm")], ["is not empty"]),
    "a model to evaluate": (
        ["evaluate", "Qwen/Qwen3-4B", "--suite", f"gsm8k={ROOT / 'tests/data/gsm8k_style.jsonl'}"],
        [
            "Qwen/Qwen3-4B is not a run folder (no experiment.json) and not a Hugging Face folder (no config.json)",
            "hf download Qwen/Qwen3-4B --local-dir qwen3-4b, then evaluate qwen3-4b",
        ],
    ),
    "a model to export": (
        ["export", "Qwen/Qwen3-4B", "--out", "x"],
        ["Qwen/Qwen3-4B is not a run folder: hf download Qwen/Qwen3-4B --local-dir qwen3-4b, then train a run with"],
    ),
    "a run to evaluate": (["evaluate", "runs/nowhere"], ["runs/nowhere is not a run folder"]),
    "a number of problems": (
        ["evaluate", "runs/nowhere", "--problems", "0"],
        ["--problems: must be a whole number of at least 1, not '0'"],
    ),
    "a split": (["evaluate", "runs/nowhere", "--split", "test"], ["'test'", "held_out"]),
    "a run to report": (["report", "runs/nowhere"], ["runs/nowhere is not a run folder"]),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return uninterrupted(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def refusals() -> dict[str, tuple[int | str, str, list[str]]]:
    """Exit code (or exception), standard error and remaining files of each case, as in a user's process."""
    command = [sys.executable, "-c", TRY, json.dumps([case for case, _ in WRONG.values()])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(WRONG, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("what", WRONG)
def test_wrong_usage_exits_2_with_a_message_and_leaves_no_files(refusals: dict[str, Any], what: str):
    code, said, left = refusals[what]
    assert (code, left) == (2, [])
    assert [part for part in WRONG[what][1] if part not in said] == [], said


def test_wrong_usage_of_a_real_process_is_one_message(tmp_path: Path):
    code, stdout, stderr = rl_llm("train", TINY, "--out", tmp_path / "run", "--set", "stepps=3")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("rl-llm train: --set stepps=3: ")
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_at_once_where_it_is_and_what_takes_time(run: Finished):
    """In this order; the lines of RL keep the last validation accuracy."""
    said = (
        f"run folder  {run.folder}\n",
        "preparing: devices, problems, weights ...\n",
        "checking the verifier with the problems' own answers ...\n",
        "warm start: compiling the update in the first step ...\n",
        "compiling the sampler, and evaluating the policy before RL ...\n",
        "reinforcement learning: compiling the updates in the first step ...\n",
    )
    places = [run.stderr.find(text) for text in said]
    assert places == sorted(places), run.stderr
    assert places[0] == 0
    lines = re.findall(r"^reinforcement learning (\d)/6 (.*)$", run.stderr, flags=re.MULTILINE)
    assert [("validation" in text) for step, text in lines] == [int(step) >= 2 for step, _ in lines]
    assert lines


def test_evaluate_repeats_the_accuracy_of_the_run(run: Finished):
    """The same checkpoint, problems and noise give the same numbers in another process."""
    before = {path.name for path in run.folder.iterdir()}
    code, stdout, stderr = rl_llm("evaluate", run.folder)
    assert code == 0, stderr
    outcome = json.loads(stdout)
    assert (outcome["step"], outcome["split"], outcome["problems"]) == (22, "held_out", EXPERIMENT.evaluation.problems)
    assert outcome["accuracy"] == run.summary["accuracy_after"]
    assert outcome["response_length"] == run.summary["response_length_after"]
    assert outcome["pass_at_k"]["1"] == pytest.approx(outcome["accuracy"])
    assert {path.name for path in run.folder.iterdir()} == before


def test_evaluate_takes_another_split_size_and_temperature(run: Finished):
    code, stdout, stderr = rl_llm("evaluate", run.folder, "--split", "train", "--problems", "11", "--temperature", "0")
    assert code == 0, stderr
    outcome = json.loads(stdout)
    assert (outcome["split"], outcome["problems"], outcome["temperature"]) == ("train", 11, 0.0)
    assert outcome["pass_at_k"]["1"] == outcome["pass_at_k"]["4"] == outcome["accuracy"]  # greedy: all four are one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problems", "1000"], "1000 held_out problems asked for"),
        (["--temperature", "-1"], "Sampling.temperature=-1.0 is out of range; expected >= 0"),
    ],
)
def test_evaluate_refuses_impossible_settings(run: Finished, arguments: list[str], message: str):
    code, _, stderr = rl_llm("evaluate", run.folder, *arguments)
    assert (code, message in stderr) == (2, True), stderr


def test_training_problems_are_those_of_the_run(run: Finished):
    own = EXPERIMENT.task.problems("train", EXPERIMENT.train_problems, 0)
    assert list(problems_of_split(EXPERIMENT, "train", 7, 0)) == own[:7]
    with pytest.raises(
        ValueError, match=r"count=41 train problems is out of range; expected at most the 40 that the run trained on"
    ):
        problems_of_split(EXPERIMENT, "train", 41, 0)


def test_evaluate_works_in_another_folder(run: Finished, tmp_path: Path):
    command = [sys.executable, "-m", "rl_llm", "evaluate", str(run.folder), "--problems", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_damaged_record_is_named(run: Finished, tmp_path: Path):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "experiment.json").write_text("{")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}}\n")
    for command, code in (("evaluate", 2), ("report", 1)):
        ended, _, stderr = rl_llm(command, tmp_path / "run")
        assert (ended, "Traceback" in stderr) == (code, False), stderr
        assert str(tmp_path / "run") in stderr or "damaged" in stderr


def test_evaluate_refuses_an_experiment_that_has_changed_since(run: Finished, tmp_path: Path):
    shutil.copytree(run.folder, tmp_path / "run")
    path = tmp_path / "run" / "experiment.json"
    path.write_text(path.read_text().replace('"overrides": []', '"overrides": ["steps=7"]'))
    code, _, stderr = rl_llm("evaluate", tmp_path / "run")
    assert (code, "has changed since the run" in stderr) == (2, True), stderr


def test_evaluate_without_a_checkpoint_fails_with_a_message(run: Finished, tmp_path: Path):
    shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    code, _, stderr = rl_llm("evaluate", tmp_path / "run")
    assert (code, "has no checkpoint yet" in stderr) == (1, True), stderr
    assert "Traceback" not in stderr


def test_report_can_be_rewritten_from_the_folder(run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "report.html")
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (run.summary["state_sha256"], "Gradient norm", "Clipped tokens", "&lt;answer&gt;"):
        assert text in page


def test_a_run_that_has_just_begun_has_a_report(run: Finished, tmp_path: Path):
    shutil.copy(run.folder / "experiment.json", tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("command", ["train", "ablate", "evaluate", "export", "plan", "report", "data-report"])
def test_the_help_of_a_command_shows_how_to_use_it(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert page.count(f"rl-llm {command} ") >= 2, "the usage, and an example"
    assert "None" not in page


def test_the_help_lists_commands_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    page = capsys.readouterr().out
    for text in ("rl-llm train experiments/", "rl-llm evaluate ", "rl-llm report ", "--resume", "143 preempted"):
        assert text in page


def test_the_experiments_in_the_help_exist(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    files = set(re.findall(r"[\w/]+\.py", capsys.readouterr().out))
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_rl_llm_is_python_m_rl_llm():
    (command,) = entry_points(group="console_scripts", name="rl-llm")
    assert command.load() is main
    code, stdout, _ = rl_llm("--help")
    assert (code, stdout.startswith("usage: rl-llm ")) == (0, True)


def test_the_command_line_itself_needs_no_jax():
    program = "import sys, rl_llm.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ("Plain()", ["value.task is <", "(Plain)", "put @dataclass(frozen=True) above a class"]),
        ("Empty()", ["task=Empty() is no task: Empty has no name, problems, verify"]),
        ("tiny.ModularSum", ["task is the class ModularSum; expected a value of it: ModularSum()"]),
    ],
)
def test_a_task_that_is_none_is_one_line(
    task: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    module = tmp_path / f"task_{len(task)}.py"
    module.write_text(
        "from dataclasses import dataclass, replace\nfrom tests.data import tiny\n"
        "class Plain:\n    pass\n@dataclass(frozen=True)\nclass Empty:\n    pass\n"
        f"base = replace(tiny.cold, task={task})\n"
    )
    assert main(["train", str(module), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert [part for part in parts if part not in said] == [], said
    assert not (tmp_path / "run").exists()


def test_the_command_that_resumes_a_run_can_be_pasted():
    given = argparse.Namespace(
        experiment="my files/a.py:base", seed=3, overrides=["task.path=a b.jsonl", "steps=3"], track=["wandb"]
    )
    words = shlex.split(_resume_command(given, Path("runs/a b")))
    assert words == [
        *("rl-llm", "train", "my files/a.py:base", "--seed", "3", "--out", "runs/a b", "--resume"),
        *("--set", "task.path=a b.jsonl", "--set", "steps=3", "--track", "wandb"),
    ]


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_without_a_device_is_one_line(platform: str, tmp_path: Path):
    code, stdout, stderr = rl_llm("train", TINY, "--out", tmp_path / "run", JAX_PLATFORMS=platform)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert stderr.startswith(f"rl-llm train: JAX_PLATFORMS={platform}: JAX finds no such device (")


def test_a_value_that_no_record_can_hold_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module = tmp_path / "curried.py"
    module.write_text(
        "from dataclasses import dataclass, replace\nfrom functools import partial\nfrom typing import Any\n"
        "from rl_llm.rewards.components import Reward\nfrom tests.data import tiny\n"
        "@dataclass(frozen=True)\nclass Shaped:\n    shape: Any\n    weight: float = 1.0\n"
        "    def __call__(self, problem, response, accuracy):\n        return self.shape(accuracy)\n"
        "base = replace(tiny.base, reward=Reward((Shaped(partial(min, 1.0)),)))\n"
    )
    assert main(["train", str(module), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "value.reward.components[0].shape is functools.partial" in message
    assert "expected values, dataclasses, and functions of a module" in message
    assert not (tmp_path / "run").exists()
