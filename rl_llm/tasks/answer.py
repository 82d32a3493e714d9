"""Marks around the final answer of a response: `<think>...</think><answer>...</answer>`."""

ANSWER_OPENING, ANSWER_CLOSING = "<answer>", "</answer>"


def extract_answer(response: str) -> str | None:
    """Return the stripped text of the last complete `<answer>...</answer>`, or None.

    Plain searches instead of a regular expression: linear time on long, hostile responses.
    """
    before, closing, _ = response.rpartition(ANSWER_CLOSING)
    _, opening, answer = before.rpartition(ANSWER_OPENING)
    return answer.strip() if closing and opening else None
