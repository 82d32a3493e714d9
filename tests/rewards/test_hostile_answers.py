"""A hostile answer costs its own time limit; the other answers of its chunk keep their grades."""

import pytest

from rl_llm.problem import Problem
from rl_llm.rewards.components import Reward
from rl_llm.rewards.grader import Grader
from rl_llm.tasks.datasets import JsonlProblems

CHEAP = ["1e999999999", r"\frac{" * 10_000, "(" * 3_000 + "1" + ")" * 3_000, "9^9^9^9", r"\boxed{" * 5_000]
SLOW = r"9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def grader():
    task = JsonlProblems("unused.jsonl")
    task.expect(["x+1"])
    with Grader(task.verify, Reward(), workers=1, time_limit=5.0) as grader:
        yield grader


@pytest.mark.slow
def test_a_hang_in_an_expression_costs_only_its_own_response(grader):
    golds = ["x+1", "x+1", "7", r"2\sqrt{3}"]
    answers = ["1+x", SLOW, "7", r"\sqrt{12}"]
    grades = grader.grade([Problem(1, "q", gold) for gold in golds], [rf"\boxed{{{answer}}}" for answer in answers])
    assert [grade.status for grade in grades] == ["ok", "timeout", "ok", "ok"]
    assert [grade.accuracy for grade in grades] == [1.0, 0.0, 1.0, 1.0]


def test_a_number_is_never_evaluated(grader):
    grades = grader.grade([Problem(1, "q", "7")] * 6, [rf"\boxed{{{answer}}}" for answer in [*CHEAP, SLOW]])
    assert [(grade.status, grade.accuracy) for grade in grades] == [("ok", 0.0)] * 6


def test_long_hostile_answers_to_expressions_are_wrong_at_once(grader):
    grades = grader.grade([Problem(1, "q", "x+1")] * 5, [rf"\boxed{{{answer}}}" for answer in CHEAP])
    assert [(grade.status, grade.accuracy) for grade in grades] == [("ok", 0.0)] * 5
