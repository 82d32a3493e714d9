"""The final answer of a response: where it stands and how it is marked.

Every search is one pass over the text, so a long hostile response costs linear time.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from rl_llm.tasks.answers.numbers import plain_characters, read_number

Mark = Literal["boxed", "answer_tag", "hashes", "phrase", "last_number"]
MARKS: tuple[Mark, ...] = get_args(Mark)

ANSWER_OPENING, ANSWER_CLOSING = "<answer>", "</answer>"

_BOX = re.compile(r"(?:\\|(?<=\\))(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|([^\s{}$\\]+))|\\.|[{}]", re.DOTALL)
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_HEADING = re.compile(
    r"\W*(?:step|solution|(?:final )?answer|explanation|part|problem|question|verif\w*|check\w*|conclusion|calculat\w*"
    r"|given|approach|method|summary|case|analysis|note|reason\w*|understand\w*)\b[^=]*$|.*:\W*$",
    re.IGNORECASE,
)
_PHRASE = re.compile(
    r"\banswers?\b(?:\s+(?:to|for)\b[^.:=\n]{0,80}?)?(?:\*\*|\s)*(?:\bis\b|\bare\b|[:：=])[\s*]*(?:\bis\b)?[\s:*]*([^\n]*)"
    r"|(?:^|\n)#+[ *]*(?:final )?answer[ *]*\n\s*([^\n]*)|答案(?:是|为|[:：])+\s*([^\n]*)",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"[\s.…*_]*|\\[lc]?dots|(?:your |the )?(?:final )?answer(?: here)?", re.IGNORECASE)
_CLOCK = re.compile(r"\d+(?::\d+)+")
_ATOM = r"(?:\\[dtc]?frac\s?(?:\{[^{}]*\}|\d)\s?(?:\{[^{}]*\}|\d)|\\[A-Za-z]+(?:\{[^{}]*\})+|(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)(?:,\d+)*(?:\.\d+)?|\.\d+)"
_JOIN = r"(?: ?(?:[-+*/^:=]|\\times|\\cdot|\\div) ?\(?[-+]?\{?\\?\$?|[eE][-+]?(?=\d)|(?<=\d) (?=\d+ ?/ ?\d)|(?<=\d)(?=\\[dtc]?frac))"
_TOKEN = re.compile(
    rf"(?:(?<![\w)\]] )(?<![\w)\]}}])[-+] ?)?\\?[$€£]?(?<![A-Za-z_\d.])-?{_ATOM}(?:{_JOIN}{_ATOM}\}}?\)?)*(?:\\?%)?"
)
_LIST_MARK = re.compile(r"(?m)^\s*\d+[.)](?=[ \t]+\S)")


def extract_answer(response: str, marks: Sequence[Mark] = MARKS, numeric: bool = False) -> str | None:
    """Return the final answer by the first of the `marks` that the response has, or None.

    What stands inside a mark is searched again, so a box within <answer> counts. Only a `numeric` gold answer lets the
    last number of an unmarked response count, and takes the number out of a marked sentence.
    """
    for mark in marks:
        answer = _FIND[mark](response, numeric)
        if answer is not None:
            inner = [other for other in marks if other not in (mark, "last_number")]
            return (extract_answer(answer, inner, numeric) if mark != "last_number" else None) or answer
    return None


def last_answer_tag(response: str) -> str | None:
    """Return the stripped text of the last complete <answer>...</answer>, or None."""
    return next(iter(list(_tags(response))[::-1]), None)


def split_gold(text: str, marks: Sequence[Mark] = MARKS) -> tuple[str, str]:
    """Split the field of a gold answer into the solution that leads to it and the answer itself.

    The field may be a solution with its answer in a box (MATH), after "####" (GSM8K) or in another mark, or the bare
    answer. Raises ValueError if there is no answer: an empty text, or one of several lines without a mark.
    """
    marks = [mark for mark in marks if mark != "last_number"]
    answer = extract_answer(text, marks)
    if answer is None and (not text.strip() or ("\n" in text.strip() and r"\begin{" not in text)):
        raise ValueError(f"no final answer ({', '.join(marks)}) is found in a text that ends in {text[-40:]!r}")
    if answer is None:
        return "", text.strip()
    before, hashes, _ = text.rpartition("####")
    return (before.strip() if hashes and answer in text[len(before) :] else text.strip()), answer


def written_as_asked(shown_prompt: str, gold: str) -> str:
    """Write a right answer in the form that the prompt asks for, or bare if it asks for none."""
    if r"\boxed" in shown_prompt:
        return rf"\boxed{{{gold}}}"
    if ANSWER_OPENING in shown_prompt:
        return f"{ANSWER_OPENING}{gold}{ANSWER_CLOSING}"
    return f"#### {gold}" if "####" in shown_prompt else gold


def is_numeric(gold: str) -> bool:
    """Whether a gold answer is one number (also 1/2, 50%, $3) or a time such as 3:30."""
    return read_number(gold) is not None or _CLOCK.fullmatch(gold.strip()) is not None


def _boxed(response: str, numeric: bool) -> str | None:
    """Find the content of the last complete box that closes last."""
    openings: list[tuple[int, bool]] = []
    answer = None
    for match in _BOX.finditer(response):
        token = match[0]
        if match[1]:
            answer = match[1].rstrip(".,;:") or answer
        elif token.endswith("{") and (token == "{" or "box" in token):
            openings.append((match.end(), token != "{"))
        elif token == "}" and openings:
            start, is_box = openings.pop()
            if is_box and not _PLACEHOLDER.fullmatch(response, start, match.start()):
                answer = response[start : match.start()].strip()
    return answer


def _tags(response: str) -> Iterator[str]:
    start = None
    for match in _TAG.finditer(response):
        if match[0][1] != "/":
            start = match.end()
        elif start is not None:
            yield response[start : match.start()].strip()
            start = None


def _answer_tag(response: str, numeric: bool) -> str | None:
    answers = [answer for answer in _tags(response) if not _PLACEHOLDER.fullmatch(answer)]
    return _first_line(answers[-1], numeric) if answers else None


def _hashes(response: str, numeric: bool) -> str | None:
    lines = [match[1].strip(" *") for match in _HASHES.finditer(response)]
    for line in reversed(lines):
        answer = _number_of_line(line) if numeric else line
        if answer and not _HEADING.match(line):
            return answer
    return None


def _phrase(response: str, numeric: bool) -> str | None:
    for match in reversed(list(_PHRASE.finditer(response))):
        text = (match[1] or match[2] or match[3] or "").strip()
        if _PLACEHOLDER.fullmatch(text):
            continue
        answer = _number_of_line(text) if numeric else _sentence(text)
        if answer:
            return answer
    return None


def _first_line(text: str, numeric: bool) -> str:
    line = text if r"\begin{" in text else text.splitlines()[0].strip()
    return (_number_of_line(line) or line) if numeric else line


def _sentence(text: str) -> str:
    """Cut a text at the end of its formula, bold part or sentence."""
    for pattern in (r"\$([^$]+)\$", r"\\\((.+?)\\\)", r"\\\[(.+?)\\\]"):
        if formula := re.match(pattern, text):
            return formula[1].strip()
    return re.split(r"\*\*|(?<=\S)[.。](?:\s|$)|。", text, maxsplit=1)[0].strip()


def _number_of_line(line: str) -> str | None:
    """Return the line if it is a number, else its only number, else the number it begins with; None without one."""
    if read_number(line) is not None:
        return line
    return _only_number(line)


def _only_number(line: str) -> str | None:
    tokens = list(_numbers(line))
    if len(set(tokens)) == 1:
        return tokens[0]
    return None


def _last_number(response: str, numeric: bool) -> str | None:
    return next(iter(list(_numbers(response))[::-1]), None) if numeric else None


def _numbers(text: str) -> Iterator[str]:
    """Find the complete number expressions of a text, in order."""
    text = _LIST_MARK.sub("", plain_characters(text))
    for match in _TOKEN.finditer(text):
        following = text[match.end() : match.end() + 1]
        if not (
            following.isalpha()
            and read_number(match[0] + re.split(r"[^A-Za-z]", text[match.end() :], maxsplit=1)[0]) is None
        ):
            yield match[0]


_FIND = {"boxed": _boxed, "answer_tag": _answer_tag, "hashes": _hashes, "phrase": _phrase, "last_number": _last_number}
