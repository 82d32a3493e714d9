"""One-step word problems: their calculations, the problems that are kept, and a run at a tiny size."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from program import ROOT, rl_llm

from experiments.smollm2_words import OPERATIONS, OneStep, calculations, lite_ppo, rejection_sampling, smoke
from rl_llm.config import differences, to_json
from rl_llm.problem import Problem, problem_id
from rl_llm.rewards.grader import Grader
from rl_llm.runs.folder import read_metrics
from rl_llm.tasks.answers import grade_answer

WHOLE = st.integers(0, 9999)


def problem(question: str, answer: str) -> Problem:
    return Problem(problem_id("t", question), question, answer)


@given(WHOLE, WHOLE, st.sampled_from(sorted(OPERATIONS)))
def test_a_calculation_is_found_in_its_question_and_graded_right(a: int, b: int, sign: str):
    assume(a != b and (sign != "/" or (b and a % b == 0)) and (sign != "-" or a > b))
    asked = problem(f"Of {a:,} apples and {b} pears, how many?", str(Fraction(OPERATIONS[sign](Fraction(a), b))))
    found = list(calculations(asked))
    first, second = sorted((a, b)) if sign in "+*" else (a, b)
    assert f"{first} {sign} {second} = {asked.answer}" in found
    assert all(grade_answer(text, asked.answer) == 1.0 for text in found)


@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        ("He has 18 apples, eats 11 and finds 4.", "7", ["18 - 11 = 7", "11 - 4 = 7"]),
        ("Half of 6 apples at 0.50 each?", "3", ["0.50 * 6 = 3"]),
        ("Of 3rd graders, 12 play in 2 teams.", "6", ["12 / 2 = 6"]),
        ("Of 0 apples and 5?", "0", ["0 * 5 = 0", "0 / 5 = 0"]),
        ("He has 18 apples and eats eleven.", "7", []),
    ],
)
def test_all_calculations_with_two_numbers_of_the_question_are_found(question: str, answer: str, found: list[str]):
    assert list(calculations(problem(question, answer))) == found


def test_problems_with_one_sum_or_difference_are_kept_in_the_order_of_the_seed(tmp_path: Path):
    lines = [f'{{"question": "Is {n} more than 1 by how much?", "answer": "{n - 1}"}}' for n in range(5, 60)]
    lines += ['{"question": "Two of 2 and 2?", "answer": "4"}', '{"question": "7 of 3?", "answer": "seven"}']
    lines += ['{"question": "Of 7 boxes of 3?", "answer": "21"}']
    (tmp_path / "file.jsonl").write_text("\n".join([*lines, f'{{"question": "{"so " * 41}5 of 3", "answer": "8"}}']))
    task = OneStep(tmp_path / "file.jsonl", split="all")
    found = task.problems("train", 100, seed=1)
    assert len(found) == 55
    assert task.problems("train", 7, seed=1) == found[:7]
    assert task.problems("train", 100, seed=2) != found


@given(st.integers(2, 500), st.integers(2, 20))
def test_a_demonstration_shows_the_form_and_leaves_the_choice_open(b: int, times: int):
    """Each operation on the two numbers is drawn as often as another, and its value is right."""
    a = b * times
    asked = problem(f"Of {a} apples and {b} pears, how many?", str(a - b))
    draw = np.random.default_rng(0)
    shown = [OneStep("", signs="+-*/").demonstrate(asked, draw) for _ in range(200)]
    assert set(shown) == {
        f"{b} + {a} = {a + b}",
        f"{b} * {a} = {a * b}",
        f"{a} - {b} = {a - b}",
        f"{a} / {b} = {a // b}",
    }
    assert 25 <= shown.count(f"{a} - {b} = {a - b}") <= 75
    two = {OneStep("").demonstrate(asked, draw) for _ in range(50)}
    assert two == {f"{b} + {a} = {a + b}", f"{a} - {b} = {a - b}"}


def test_both_algorithms_start_alike_and_end_at_the_same_number_of_tokens():
    changed = differences(to_json(lite_ppo), to_json(rejection_sampling))
    assert changed
    assert all(line.startswith("algorithm.") for line in changed), changed


@pytest.mark.slow
def test_the_smoke_run_learns_demonstrations_and_rewards(tmp_path: Path):
    code, _, stderr = rl_llm(
        "train", ROOT / "experiments/smollm2_words.py:smoke", "--out", tmp_path / "run",
        "--set", f"task.data_dir={tmp_path / 'prepared'}",
    )  # fmt: skip
    assert code == 0, stderr
    lines = read_metrics(tmp_path / "run")
    assert [line["phase"] for line in lines] == ["warm_start", "warm_start", "rl"]
    assert lines[-1]["grading/ok"] == smoke.prompts_per_step * smoke.responses_per_prompt


def test_every_demonstration_is_a_calculation_that_a_verifier_reads():
    task = OneStep(smoke.task.path, split="all")
    found = task.problems("train", 20, seed=0)
    draw = np.random.default_rng(0)
    shown = [task.demonstrate(one, draw) for one in found]
    values = [replace(one, answer=text.rpartition(" = ")[2]) for one, text in zip(found, shown, strict=True)]
    with Grader(task.verify, smoke.reward, workers=1) as grader:
        grades = grader.grade(values, shown)
    assert [grade.accuracy for grade in grades] == [1.0] * len(found)
