"""Patterns over model text take linear time: a hostile response of any shape costs no more than its length."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rl_llm.tasks.answers import extract_answer, grade_answer, split_gold
from rl_llm.tasks.datasets import normalize_text

LENGTH = 60_000  # characters, about 20,000 tokens of spaces
# Linear matching takes up to 2 s (a number in every second character), quadratic matching 12 s to hours.
SECONDS = 8.0
PIECES = (
    *(" ", "\t", "\n", "\xa0", "*", "#", "####", ":", ".", "!", ",", "$", "{", "}", "(", "\\", "-", "=", "1", "x", "A"),
    *(
        "1,",
        "1 ",
        "1/",
        ". no ",
        "not ",
        "but ",
        "step ",
        "so ",
        "or ",
        "answer",
        "answer to ",
        "the answer is ",
        "答案",
    ),
    *("\\boxed", "\\boxed{", "\\text{", "<answer>", "</answer>", "because ", "\\(", "\\["),
)
REPEATED = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join)
AROUND = st.lists(st.sampled_from(PIECES), max_size=3).map("".join)


@contextmanager
def cpu_seconds(limit: float) -> Iterator[None]:
    """Fail when the block has used so much CPU time, even within one match of a pattern."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"more than {limit:g} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@given(AROUND, REPEATED, AROUND, st.booleans())
@settings(max_examples=20)
@example("", " ", "", True)  # took 40 s: the mark of a list item
@example("#### 1", " ", "x", True)  # spaces within the line behind ####
@example("####1", ":", "x", False)  # a heading that ends in a colon
@example("", "answer to ", "", True)
@example("\\boxed", " ", "", True)
def test_an_answer_is_found_in_linear_time(before: str, repeated: str, behind: str, numeric: bool):
    response = before + repeated * (LENGTH // len(repeated)) + behind
    with cpu_seconds(SECONDS):
        extract_answer(response, numeric=numeric)


@pytest.mark.parametrize("gold", ["7", "(A)", "blue car", "3:30"])
@pytest.mark.parametrize("repeated", [" ", "a", "(", "$", "\\text{", "1,"])
def test_an_answer_is_compared_in_linear_time(gold: str, repeated: str):
    with cpu_seconds(SECONDS):
        assert grade_answer(f"<answer>{repeated * (LENGTH // len(repeated))}x</answer>", gold) == 0.0


@pytest.mark.parametrize("repeated", [" ", ".", "!", "! ", ": "])
def test_a_question_of_a_data_file_is_read_in_linear_time(repeated: str):
    question = "Why" + repeated * (LENGTH // len(repeated)) + "x"
    with cpu_seconds(SECONDS):
        assert normalize_text(question).endswith("x")
        split_gold(question.replace("\n", " ") + " #### 5")


@pytest.mark.parametrize(
    ("text", "normal"),
    [("Why?", "why"), ("What is 5!", "what is 5!"), ("(2)!! ?", "(2)!!"), ("Go! ! .", "go"), ("!", ""), ("5!.!", "5!")],
)
def test_closing_punctuation_is_left_out_but_not_a_factorial(text: str, normal: str):
    assert normalize_text(text) == normal
