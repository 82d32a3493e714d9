"""Whether two final answers are the same: numbers and choices exactly, lists by their items, the rest by math-verify."""

import re

from rl_llm.tasks.answers.numbers import Quantity, read_number, undress

_CHOICE = re.compile(r"\(?([A-J])(?:\)|[.:](?!\d)|$)(.*)", re.DOTALL)


def equal_answers(given: str, gold: str) -> bool:
    """Whether an answer equals the gold answer."""
    numbers = read_number(given), read_number(gold)
    if numbers[1] is not None:
        return numbers[0] is not None and _same_number(numbers[0], numbers[1])
    return key_of(given) == key_of(gold) or ((choice := choice_of(gold)) is not None and choice_of(given) == choice)


def choice_of(text: str) -> str | None:
    """Return the letter A-J of a choice ("(A)", "\\text{A}", "A. 5 apples"), or None."""
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", undress(text)).strip()
    match = _CHOICE.match(text)
    return match[1] if match and not re.search(r"(?<![A-Za-z])\(?[A-J][.):]", match[2]) else None


def key_of(text: str) -> str:
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", undress(text))
    text = re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text.replace("dfrac", "frac").replace("tfrac", "frac"))
    return text.casefold() if re.search("[A-Za-z]{3}", text) and "\\" not in text else text


def _same_number(given: Quantity, gold: Quantity) -> bool:
    if given.unit != gold.unit and given.unit and gold.unit:
        return False
    return given.value == gold.value
