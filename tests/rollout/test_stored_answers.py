"""Stored responses with gold answers: graded by the task, from the reading to the reward of every step."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from program import EXPERIMENT, finished, rl_llm

from rl_llm.experiment import StoredResponses
from rl_llm.rewards.grader import Grader
from rl_llm.rollout.engine import open_grader
from rl_llm.rollout.offline import grade_stored, read_rollout

K = 2
GRADED = {"prompt": "1+1=", "answer": "2", "responses": ["<answer>2</answer>", "<answer>0</answer>"]}
JUDGED = {"prompt": "2+0=", "responses": ["<answer>0</answer>", "0"], "rewards": [0.5, None]}


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with open_grader(EXPERIMENT) as running:
        yield running


def written(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_lines_with_a_gold_answer_are_graded_and_lines_with_rewards_are_not(tmp_path: Path, grader: Grader):
    stored = StoredResponses(str(written(tmp_path / "a.jsonl", GRADED, JUDGED)))
    experiment = replace(EXPERIMENT, responses=stored, responses_per_prompt=K)
    found = read_rollout(experiment, grade_stored(grader, stored.problems(K)))
    assert [grade.status for grade in found.grades] == ["ok", "ok", "ok", "error"]
    assert found.rewards[:3].tolist() == [1.0, 0.0, 0.5]
    assert found.accuracies.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert found.grades[0].components == {"accuracy": 1.0}
    assert "its stored reward is null" in found.grades[3].message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, '"answer" is 2; expected the gold answer as a text'),
        ({"answer": " "}, '"answer" is . .; expected the gold answer as a text'),
        ({"responses": ["2"]}, "has 1 responses and 2 rewards"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, change: dict, message: str):
    stored = StoredResponses(str(written(tmp_path / "a.jsonl", GRADED, GRADED | change)))
    with pytest.raises(ValueError, match=rf"a.jsonl\D*2.*{message}"):
        stored.problems(K)


PAPER = "tests/data/oracle.py"
GOLDS = ["42", r"\frac{1}{2}", "(3,4)", "x+1", "1,000", r"\sqrt{2}", r"50\%", "-7"]
WRONG = ["1/42", r"\frac{1}{3}", "(4,3)", "x-1", "1", r"\sqrt{3}", r"5\%", "7"]


def paper(folder: Path, answers: list[str], *options: str) -> tuple[int, str, str]:
    """Run the paper's experiment on MATH's kind of problems, and on stored responses with these answers."""
    problems = [{"question": f"Find number {n}.", "answer": rf"It is \boxed{{{GOLDS[n % 8]}}}."} for n in range(80)]
    stored = [
        {
            "prompt": f"What is number {n}?",
            "answer": GOLDS[n % 8],
            "responses": [rf"So \boxed{{{answers[n % 8]}}}.", rf"$\boxed{{{answers[n % 8]}}}$"],
        }
        for n in range(32)
    ]
    files = {
        "task.path": written(folder / "math.jsonl", *problems),
        "responses.path": written(folder / "stored.jsonl", *stored),
    }
    changes = [part for name, path in files.items() for part in ("--set", f"{name}={path}")]
    return rl_llm("train", PAPER, "--out", folder / "run", *changes, *options)


@pytest.mark.slow
@pytest.mark.parametrize(("answers", "reward"), [(GOLDS, 1.0), (WRONG, 0.0)])
def test_the_papers_experiment_pays_an_oracle_for_all_and_a_wrong_policy_for_nothing(
    tmp_path: Path, answers: list[str], reward: float
):
    run = finished(tmp_path / "run", paper(tmp_path, answers))
    assert [line["reward/mean"] for line in run.metrics] == [reward] * 2
    assert [line["reward/accuracy"] for line in run.metrics] == [reward] * 2
    assert [line["grading/ok"] for line in run.metrics] == [32] * 2
    assert "problems fail" not in run.stdout


@pytest.mark.slow
def test_the_papers_experiment_is_refused_if_its_verifier_reads_no_box(tmp_path: Path):
    """That fault paid 0 for 168 of 168 right answers. It costs seconds now, and leaves no folder."""
    code, _, stderr = paper(tmp_path, GOLDS, "--set", 'task.marks=["hashes","last_number"]')
    assert (code, (tmp_path / "run").exists()) == (2, False)
    assert re.search(r"task math: \d+ of \d+ problems fail", stderr), stderr
    assert r"the right response '\\boxed{" in stderr
