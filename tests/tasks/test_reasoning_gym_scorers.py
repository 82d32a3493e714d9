"""Scorers of reasoning-gym that would run a response as code: ours are safe, the others are refused."""

import warnings
from fractions import Fraction
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rl_llm.problem import Problem
from rl_llm.tasks.reasoning_gym import ReasoningGym, import_reasoning_gym
from rl_llm.tasks.reasoning_gym_scorers import SCORERS, evaluating_call, read_arithmetic

PATCH = "setattr(__import__('rl_llm.problem').problem, 'hijacked', True)"
CODE = [PATCH, f"[{PATCH}, 1][1]", f"eval({PATCH!r})", f"({PATCH}) or 24", "().__class__.__base__.__subclasses__()"]


def graded(dataset: str, gold: str, response: str, **metadata: object) -> float:
    return ReasoningGym(dataset).verify(Problem(1, "q", gold, metadata={"entry": metadata}), response)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.booleans()):
        return str(draw(st.integers(0, 99)))
    left, right = (draw(expressions(depth - 1)) for _ in range(2))
    return f"({left}) {draw(st.sampled_from('+-*/'))} ({right})"


@given(expressions())
def test_an_expression_has_the_value_that_python_gives_it_in_fractions(text: str):
    wrapped = " ".join(f"Fraction({part})" if part.isdigit() else part for part in spaced(text).split())
    try:
        expected = eval(wrapped, {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="has no value"):
            read_arithmetic(text)
    else:
        numbers = sorted(int(part) for part in spaced(text).split() if part.isdigit())
        assert read_arithmetic(text) == (expected, numbers)


def spaced(text: str) -> str:
    return text.replace("(", " ( ").replace(")", " ) ")


@pytest.mark.parametrize(
    "text",
    [
        *("", "2**9", "7//2", "2(3)", "(1, 2)", "1.5", "0x10", "1_000", "x", "-", "1 2", "(" * 150 + "1" + ")" * 150),
        *("9" * 301, "1\n+", "1j", "\N{FULLWIDTH DIGIT ONE}", *CODE),
    ],
)
def test_anything_but_short_arithmetic_has_no_value(text: str):
    with pytest.raises(ValueError, match=r"is no arithmetic expression|has no value|is more than numbers"):
        read_arithmetic(text)


@pytest.mark.parametrize(
    ("response", "score"),
    [("(1 + 2)*8", 1.0), ("8*2 + 8*1", 0.05), ("1*2*8", 0.05), ("24", 0.05), ("8*3", 0.05), ("twenty-four", 0.01)],
)
def test_countdown_asks_for_target_and_numbers(response: str, score: float):
    assert graded("countdown", "8*(1 + 2)", response, numbers=[2, 8, 1], target=24) == score


@pytest.mark.parametrize(
    ("response", "score"), [("4*(4/4 + 5)", 1.0), ("6*4*1*1", 0.01), ("5*4+4", 0.01), ("4*5 + 4/4", 0.01)]
)
def test_puzzle24_asks_for_the_problems_own_numbers(response: str, score: float):
    assert graded("puzzle24", "4*(5 + 4/4)", response, numbers=[4, 5, 4, 4]) == score


@pytest.mark.parametrize(
    ("dataset", "gold", "listed", "partial"),
    [
        ("binary_matrix", "0 1\n2 0", "[[0, 1], [2, 0]]", 0.1),
        ("spiral_matrix", "1 2 4 3", "[1, 2, 4, 3]", 0.1),
        ("string_insertion", "ABBA", "['A', 'B', 'B', 'A']", 0.1),
        ("n_queens", "_ Q\nQ _", "[['_', 'Q'], ['Q', '_']]", 0.5),
    ],
)
def test_a_list_of_the_right_items_keeps_its_partial_score(dataset: str, gold: str, listed: str, partial: float):
    scores = [graded(dataset, gold, text, valid_answers=[gold]) for text in (gold, listed, "[1]", "7", "[" * 10_000)]
    assert scores == [1.0, partial, 0.0, 0.0, 0.0]


def test_numbers_keep_their_readings():
    assert [graded("bitwise_arithmetic", "0xff", text) for text in ("0xff", "255", "0b1", "ff")] == [1, 1, 0, 0]
    right = "['-3', '2.0']", '["-3", "2"]', "[2, -3]"
    assert [graded("number_sorting", "['-3', '2']", text, direction="ascending") for text in right] == [1, 1, 0]


@pytest.mark.parametrize("dataset", sorted(SCORERS))
@pytest.mark.parametrize("code", CODE)
def test_code_is_neither_run_nor_right(dataset: str, code: str):
    import rl_llm.problem

    known = {"numbers": [24], "target": 24, "valid_answers": ["24"], "direction": "ascending"}
    assert graded(dataset, "['24']" if dataset == "number_sorting" else "24", code, **known) < 0.1
    assert not hasattr(rl_llm.problem, "hijacked")


@pytest.mark.parametrize("dataset", ["simple_integration", "intermediate_integration", "polynomial_multiplication"])
def test_a_scorer_that_needs_sympys_parser_is_refused_with_the_way_out(dataset: str):
    with pytest.raises(ValueError, match=rf"'{dataset}' is refused: .*as code \(sympy\).*; choose another data set"):
        ReasoningGym(dataset).verify(Problem(1, "q", "x", metadata={"entry": {}}), "x")


def test_every_installed_scorer_is_judged_by_its_code():
    """The scorers that evaluate text, found by reading those of reasoning-gym 0.1.25."""
    read = {*SCORERS, "simple_integration", "intermediate_integration", "polynomial_multiplication", "composite"}
    data_sets = import_reasoning_gym().DATASETS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {name for name, (cls, _) in data_sets.items() if evaluating_call(cls.__new__(cls))}
    assert found == read & set(data_sets)


def helper(text: str) -> float:
    return eval(text)


class Helped:
    def score_answer(self, answer: str, entry: dict) -> float:
        return self.read(answer)

    @staticmethod
    def read(answer: str) -> float:
        return max(helper(part) for part in [answer])


class Imports:
    def score_answer(self, answer: str, entry: dict) -> float:
        from pickle import loads

        return (lambda: loads(answer.encode()))()


class Hands:
    def score_answer(self, answer: str, entry: dict) -> float:
        return entry["of"].score_answer(answer, entry)


class Sound:
    def score_answer(self, answer: str, entry: dict) -> float:
        return float(answer == entry["answer"].strip() or SimpleNamespace(eval=len).eval(answer) < 0)

    def generate(self) -> object:
        return eval("1")


@pytest.mark.parametrize(("scorer", "call"), [(Helped, "eval"), (Imports, "pickle"), (Hands, "score_answer")])
def test_a_scorer_of_a_later_version_is_judged_as_well(scorer: type, call: str):
    assert evaluating_call(scorer()) == call


def test_code_that_scores_nothing_does_not_count():
    assert evaluating_call(Sound()) is None
