"""The final answer of a response: where it stands and how it is marked.

Every search is one pass over the text, so a long hostile response costs linear time.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from rl_llm.tasks.answers.numbers import complete_numbers, is_numeric

Mark = Literal["boxed", "answer_tag", "hashes", "phrase", "last_number", "whole"]
MARKS: tuple[Mark, ...] = get_args(Mark)
UNMARKED: tuple[Mark, ...] = ("last_number", "whole")

ANSWER_OPENING, ANSWER_CLOSING = "<answer>", "</answer>"

_BOX = re.compile(r"(?:\\|(?<=\\))(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|([^\s{}$\\]+))|\\.|[{}]", re.DOTALL)
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n#]*)")
_HEADING = re.compile(
    r"\d+[.)] +[A-Z]|\W*(?:step|solution|(?:final )?answer|explanation|part|problem|question|verif\w*|check\w*"
    r"|conclusion|calculat\w*|given|approach|method|summary|case|analysis|note|reason\w*|understand\w*)\b[^=:]*$|.*:\W*$",
    re.IGNORECASE,
)
_PHRASE = re.compile(
    r"\b(?:answers?|(?:correct|right|best) (?:option|choice))\b(?: (?:to|for) [^.:=\n]{0,80}?)?[* ]*(?:\bis\b|\bare\b|[:=])[\s*:]*([^\n]*)"
    r"|^#+[ *]*(?:final )?answer[ *]*\n\s*([^\n]*)|答案[是为:：\s]+([^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
_PLACEHOLDER = re.compile(r"[\s.…*_]*|\\[lc]?dots|(?:your |the )?(?:final )?answer(?: here)?", re.IGNORECASE)
_LIST_MARK = re.compile(r"^\s*(?:\d+[.)](?=[ \t]+\S)|[-*+](?= \S))")
_FORMULA = re.compile(r"\$([^$]+)\$(?![\d.])|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_END = re.compile(r"\*\*|[.。!](?:\s|$)|。|,? (?:because|since) ")
_FURTHER = re.compile(r"[\s$*]*(?:or|and|to|through|,|;|/|-)(?![a-z])", re.IGNORECASE)


def extract_answer(response: str, marks: Sequence[Mark] = MARKS, numeric: bool = False) -> str | None:
    """Return the final answer by the first of the `marks` that the response has, or None.

    What stands inside a mark is searched again, so a box within <answer> counts. Only a `numeric` gold answer lets the
    last number of an unmarked response count, and takes the number out of a marked sentence. For other golds an
    unmarked response counts if it is one line.
    """
    for mark in marks:
        answer = _FIND[mark](response, numeric)
        if answer is not None:
            inner = [other for other in marks if other not in (mark, *UNMARKED)]
            return extract_answer(answer, inner, numeric) or answer
    return None


def split_gold(text: str, marks: Sequence[Mark] = MARKS) -> tuple[str, str]:
    """Split the field of a gold answer into the solution that leads to it and the answer itself.

    The field may be a solution with its answer in a box (MATH), after "####" (GSM8K) or in another mark, or the bare
    answer. Raises ValueError if there is no answer: an empty text, or one of several lines without a mark.
    """
    marks = [mark for mark in marks if mark not in UNMARKED]
    answer = extract_answer(text, marks)
    if answer is None and (not text.strip() or "####" in text or ("\n" in text.strip() and r"\begin{" not in text)):
        raise ValueError(f"no final answer ({', '.join(marks)}) is found in a text that ends in {text[-40:]!r}")
    if answer is None:
        return "", text.strip()
    before, hashes, last = text.rpartition("####")
    return (before if hashes and answer in last else text).strip(), answer


def written_as_asked(shown_prompt: str, gold: str) -> str:
    """Write a right answer in the form that the prompt asks for, or bare if it asks for none."""
    if r"\boxed" in shown_prompt:
        return rf"\boxed{{{gold}}}"
    if ANSWER_OPENING in shown_prompt:
        return f"{ANSWER_OPENING}{gold}{ANSWER_CLOSING}"
    return f"#### {gold}" if "####" in shown_prompt else gold


def last_answer_tag(response: str) -> str | None:
    """Return the stripped text of the last complete <answer>...</answer>, or None."""
    return _last(_tags(response))


def _boxed(response: str, numeric: bool) -> str | None:
    """Return the content of the last box, of nested ones the innermost; "\\boxed 5" has no braces."""
    openings: list[tuple[int, bool]] = []
    answer, found = None, -1
    for match in _BOX.finditer(response):
        if match[1]:
            answer, found = match[1].rstrip(".,;:") or answer, match.start()
        elif match[0] == "}" and openings:
            start, is_box = openings.pop()
            if is_box and start > found and not _PLACEHOLDER.fullmatch(response, start, match.start()):
                answer, found = response[start : match.start()].strip(), start
        elif match[0][-1] == "{" and match[0] != r"\{":
            openings.append((match.end(), match[0] != "{"))
    return answer


def _answer_tag(response: str, numeric: bool) -> str | None:
    text = _last(answer for answer in _tags(response) if not _PLACEHOLDER.fullmatch(answer))
    if text is None or r"\begin{" in text:
        return text
    line = text.splitlines()[0].strip()
    return (_number_of(line) or line) if numeric else line


def _hashes(response: str, numeric: bool) -> str | None:
    lines = (match[1].strip(" \t*:") for match in _HASHES.finditer(response))
    answers = (_number_of(line) if numeric else line for line in lines if not _HEADING.match(line))
    return _last(answer for answer in answers if answer)


def _phrase(response: str, numeric: bool) -> str | None:
    texts = ((match[1] or match[2] or match[3] or "").strip() for match in _PHRASE.finditer(response))
    answers = (_number_of(text) if numeric else _sentence(text) for text in texts if not _PLACEHOLDER.fullmatch(text))
    return _last(answer for answer in answers if answer)


def _last_number(response: str, numeric: bool) -> str | None:
    lines = (_LIST_MARK.sub("", line) for line in reversed(response.splitlines())) if numeric else ()
    return next((numbers[-1] for line in lines if (numbers := complete_numbers(line))), None)


def _whole(response: str, numeric: bool) -> str | None:
    text = response.strip()
    return None if numeric or not text or "\n" in text else text


def _tags(response: str) -> Iterator[str]:
    start = None
    for match in _TAG.finditer(response):
        if match[0][1] != "/":
            start = match.end()
        elif start is not None:
            yield response[start : match.start()].strip()
            start = None


def _last(found: Iterator[str]) -> str | None:
    return next(iter(deque(found, maxlen=1)), None)


def _sentence(text: str) -> str:
    """Cut a text at the end of its formula, bold part or sentence."""
    formula = _FORMULA.match(text)
    return (next(filter(None, formula.groups())) if formula else _END.split(text, maxsplit=1)[0]).strip()


def _number_of(line: str) -> str | None:
    """Return the line if it is a number, else its only number or the one it begins with, else None."""
    if is_numeric(line):
        return line.rstrip(" .")
    numbers = complete_numbers(line)
    start = line.lstrip("$* ")
    first = numbers and start.startswith(numbers[0]) and not _FURTHER.match(start, len(numbers[0]))
    return numbers[0] if len(set(numbers)) == 1 or first else None


_FIND = {
    "boxed": _boxed,
    "answer_tag": _answer_tag,
    "hashes": _hashes,
    "phrase": _phrase,
    "last_number": _last_number,
    "whole": _whole,
}
