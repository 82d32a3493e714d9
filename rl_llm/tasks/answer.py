"""The marks around a final answer, shared by every task: `<think>...</think><answer>...</answer>`."""

ANSWER_OPENING, ANSWER_CLOSING = "<answer>", "</answer>"


def extract_answer(response: str) -> str | None:
    """The stripped text of the last complete `<answer>...</answer>` of a response, or None if there is none.

    Plain searches, no regular expression: a response may be long and hostile, and this runs in linear time.
    """
    before, closing, _ = response.rpartition(ANSWER_CLOSING)
    _, opening, answer = before.rpartition(ANSWER_OPENING)
    return answer.strip() if closing and opening else None
