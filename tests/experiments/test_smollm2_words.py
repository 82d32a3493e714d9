"""One-step word problems: their operations, the problems that are kept, and a run at a tiny size."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from program import ROOT, rl_llm

from experiments.smollm2_words import OPERATIONS, OneStep, lite_ppo, operations, rejection_sampling, smoke, value_of
from rl_llm.config import differences, to_json
from rl_llm.problem import Problem, problem_id
from rl_llm.runs.folder import read_metrics

WHOLE = st.integers(0, 9999)


def problem(question: str, answer: str) -> Problem:
    return Problem(problem_id("t", question), question, answer)


@given(WHOLE, WHOLE, st.sampled_from(sorted(OPERATIONS)))
def test_an_operation_is_found_in_its_question_and_computed(a: int, b: int, sign: str):
    assume(a != b and (sign != "/" or b) and (sign != "-" or a > b))
    value = OPERATIONS[sign](Fraction(a), Fraction(b))
    first, second = sorted((a, b)) if sign in "+*" else (a, b)
    assert (f"{first} {sign} {second}", value) in list(operations(f"Of {a:,} apples and {b} pears, how many?"))
    assert value_of(f"{first} {sign} {second}") == value


@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        ("He has 18 apples, eats 11 and finds 4.", 7, ["18 - 11", "11 - 4"]),
        ("Half of 6 apples at 0.50 each?", 3, ["0.50 * 6"]),
        ("Of 3rd graders, 12 play in 2 teams.", 6, ["12 / 2"]),
        ("Of 0 apples and 5?", 0, ["0 * 5", "0 / 5"]),
        ("He has 18 apples and eats eleven.", 7, []),
    ],
)
def test_all_operations_on_two_numbers_of_the_question_are_found(question: str, answer: int, found: list[str]):
    assert [written for written, value in operations(question) if value == answer] == found


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("18 - 11", 1.0),
        (" 18 - 11\n", 1.0),
        ("14 / 2", 1.0),  # another way to the same value
        ("11 - 18", 0.0),
        ("7", 0.0),
        ("18 - 11 = 7", 0.0),
        ("18 - 11 or 18 + 11", 0.0),
        ("7 / 0", 0.0),
        ("9" * 13 + " - 1", 0.0),
        ("__import__('os')._exit(3)", 0.0),
        ("", 0.0),
    ],
)
def test_the_verifier_computes_one_operation_and_nothing_else(response: str, reward: float):
    assert OneStep("").verify(problem("", "18 - 11"), response) == reward


def test_problems_with_one_sum_or_difference_are_kept_in_the_order_of_the_seed(tmp_path: Path):
    lines = [f'{{"question": "Is {n} more than 1 by how much?", "answer": "{n - 1}"}}' for n in range(5, 60)]
    lines += ['{"question": "Two of 2 and 2?", "answer": "4"}', '{"question": "7 of 3?", "answer": "seven"}']
    lines += ['{"question": "Of 7 boxes of 3?", "answer": "21"}']
    (tmp_path / "file.jsonl").write_text("\n".join([*lines, f'{{"question": "{"so " * 41}5 of 3", "answer": "8"}}']))
    task = OneStep(tmp_path / "file.jsonl", split="all")
    found = task.problems("train", 100, seed=1)
    assert len(found) == 55
    assert all(one.answer.endswith(" - 1") and task.verify(one, one.answer) for one in found)
    assert task.problems("train", 7, seed=1) == found[:7]
    assert task.problems("train", 100, seed=2) != found


@given(st.integers(2, 500), st.integers(2, 500))
def test_a_demonstration_shows_the_form_and_leaves_the_choice_open(a: int, b: int):
    """Each operation on the two numbers is drawn as often as another."""
    assume(a > b)
    asked = problem(f"Of {a} apples and {b} pears, how many?", f"{a} - {b}")
    draw = np.random.default_rng(0)
    shown = [OneStep("", signs="+-*/").demonstrate(asked, draw) for _ in range(200)]
    assert {f"{b} + {a}", f"{b} * {a}", f"{a} - {b}", f"{a} / {b}"} <= set(shown)
    assert {OneStep("").demonstrate(asked, draw) for _ in range(50)} == {f"{b} + {a}", f"{a} - {b}"}


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
