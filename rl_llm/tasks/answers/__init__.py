"""Final answers of text tasks: where they stand in a response, and when two of them are equal."""

from collections.abc import Sequence

from rl_llm.tasks.answers.equality import equal_answers, needs_math
from rl_llm.tasks.answers.expressions import require_math_verify
from rl_llm.tasks.answers.extraction import (
    ANSWER_CLOSING,
    ANSWER_OPENING,
    MARKS,
    Mark,
    extract_answer,
    last_answer_tag,
    split_gold,
    written_as_asked,
)
from rl_llm.tasks.answers.numbers import is_numeric, read_number

__all__ = [
    "ANSWER_CLOSING",
    "ANSWER_OPENING",
    "MARKS",
    "Mark",
    "equal_answers",
    "extract_answer",
    "grade_answer",
    "is_numeric",
    "last_answer_tag",
    "needs_math",
    "read_number",
    "require_math_verify",
    "split_gold",
    "written_as_asked",
]


def grade_answer(response: str, gold: str, marks: Sequence[Mark] = MARKS) -> float:
    """Return 1.0 if the final answer of the response equals the gold answer, else 0.0."""
    answer = extract_answer(response, marks, numeric=is_numeric(gold))
    return 1.0 if answer is not None and equal_answers(answer, gold) else 0.0
