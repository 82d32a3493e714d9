"""Final answers of text tasks: where they stand in a response, and when two of them are equal."""

from collections.abc import Sequence

from rl_llm.tasks.answers.equality import equal_answers as equal_answers
from rl_llm.tasks.answers.equality import needs_math as needs_math
from rl_llm.tasks.answers.expressions import require_math_verify as require_math_verify
from rl_llm.tasks.answers.extraction import ANSWER_CLOSING as ANSWER_CLOSING
from rl_llm.tasks.answers.extraction import ANSWER_OPENING as ANSWER_OPENING
from rl_llm.tasks.answers.extraction import MARKS as MARKS
from rl_llm.tasks.answers.extraction import Mark as Mark
from rl_llm.tasks.answers.extraction import extract_answer as extract_answer
from rl_llm.tasks.answers.extraction import last_answer_tag as last_answer_tag
from rl_llm.tasks.answers.extraction import split_gold as split_gold
from rl_llm.tasks.answers.extraction import written_as_asked as written_as_asked
from rl_llm.tasks.answers.numbers import is_numeric as is_numeric


def grade_answer(response: str, gold: str, marks: Sequence[Mark] = MARKS) -> float:
    """Return 1.0 if the final answer of the response equals the gold answer, else 0.0."""
    answer = extract_answer(response, marks, numeric=is_numeric(gold))
    return 1.0 if answer is not None and equal_answers(answer, gold) else 0.0
