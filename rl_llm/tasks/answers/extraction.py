"""The final answer of a response: where it stands and how it is marked.

Every search is one pass over the text, so a long hostile response costs linear time: two neighbouring repetitions never
match the same characters, or the first keeps what it has (`++`, `*+`).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

from rl_llm.tasks.answers.numbers import complete_numbers, is_numeric

Mark = Literal["boxed", "answer_tag", "hashes", "phrase", "last_number", "whole"]
MARKS: tuple[Mark, ...] = get_args(Mark)
UNMARKED: tuple[Mark, ...] = ("last_number", "whole")

ANSWER_OPENING, ANSWER_CLOSING = "<answer>", "</answer>"

_BOX = re.compile(r"(?:\\|(?<=\\))(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|([^\s{}$\\]+))|\\.|[{}]", re.DOTALL)
_TAG = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.IGNORECASE | re.DOTALL)
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n#]*)")
_HEADING = re.compile(  # behind ####: "1. Add", "Step 1", "Conclusion:"
    r"\d+[.)] +[A-Z]|\W*(?:step|solution|(?:final )?answer|explanation|part|problem|question|verif\w*|check\w*"
    r"|conclusion|calculat\w*|given|approach|method|summary|case|analysis|note|reason\w*|understand\w*)\b[^=:]*$",
    re.IGNORECASE,
)
_SUBJECT = r"\b(?:answers?|(?:correct|right|best) (?:option|choice))\b(?: (?:to|for) [^.:=\n]{0,80}?)?"
_PHRASE = re.compile(  # the answer follows; a heading has it on the next line
    rf"(?im){_SUBJECT}[* ]*+(?:\bis\b|\bare\b|[:=])[\s*:}}]*|^#++[ *]*+(?:final )?answer[ *]*+\n\s*|答案[是为:：\s]+"
)
_PLACEHOLDER = re.compile(r"[\s.…*_]*|\\[lc]?dots|(?:your |the )?(?:final )?answer(?: here)?", re.IGNORECASE)
_LIST_MARK = re.compile(r"(?i)^\s*+(?:\d+[.)](?= +\S)|\*(?= \S)|[-+](?= [^\d$\\.(]| \S+ [a-z]{3})|[#*\s]*+step \d+\b)")
_RETRACTED = re.compile(  # "5. No, 6", "not B, it is A": the later claim counts
    r"(?is)\A(?:(?:.*[.!] +(?:no|wait|sorry|oops|actually|correction)\b[,.:!]* +|not [^.\n]{1,40}?,? but +)"
    r"(?:(?:it|that|the answer)(?:'s| is| should be) +)?(?=[\s$*(]{0,3}(?:(?-i:[A-J])(?:[.):,]|\W*$)|[-+]?\$?\d))"
    r"|not [^.\n]{1,40}?, (?:it|that|the answer)(?:'s| is) +)"
)
_CONCLUSION = re.compile(r"(?i)\b(?:so|thus|hence|therefore)\b")
_FORMULA = re.compile(r"\$([^$]+)\$(?![\d.])|\\\((.+?)\\\)|\\\[([\s\S]+?)\\\]")
_END = re.compile(r"\*\*|[.。!](?:\s|$)|。|,? (?:because|since)\b")
_COMMAND, _LETTER, _DIGIT = re.compile(r"\\[A-Za-z]+"), re.compile("[A-Za-z=]"), re.compile(r"\d")
_FURTHER = re.compile(r"(?i)[\s$*]*(?:and|to|,(?! not )|[;/-])(?![a-z])|.*(?:\bor\b|(?:\band|\bto|,) \W?\d)")


_THOUGHTS = r"(?:think(?:ing)?|thoughts?|reasoning)>"
_CLOSED, _OPEN = re.compile(rf"(?is).*</{_THOUGHTS}"), re.compile(rf"(?i)\s*+<{_THOUGHTS}")
_JOINED = re.compile(  # "$1$ or $2$", "**A** or **B**", "$x$/2": the answer goes on behind its first part
    r"[*\s]*(?:(?:,? (?:or|and)|[,;])(?: (?:or|and))? +\**(?:\$|\\[(\[]|-?\d|[A-J]\b)|\. Or\b|\$|\d|\\%"
    r"|(?:[/+^-]|(?<= )\*(?= )) *[$\d\\(]|(?:times|squared|cubed)\b)"
)
_LAST = re.compile(r"[.!](?:\s+(?!Or\b)|$)|。|,? (?:because|since)\b")


def extract_answer(response: str, marks: Sequence[Mark] = MARKS, numeric: bool = False) -> str | None:
    """Return the final answer by the first of the `marks` that the response has, or None.

    What stands inside a mark is searched again, so a box within <answer> counts. Only a `numeric` gold answer lets the
    last number of an unmarked response count, and takes the number out of a marked sentence. For other golds an
    unmarked response counts if it is one line. Thoughts have no answer: the search begins behind the last </think>, and
    a response that begins with <think> and never closes it has none.
    """
    if closed := _CLOSED.match(response):
        response = response[closed.end() :]
    elif _OPEN.match(response):
        return None
    for mark in marks:
        answers = [answer for text in _texts(mark, response, numeric) if (answer := _answer(mark, text, numeric))]
        if answers:
            inner = [other for other in marks if other not in (mark, *UNMARKED)]
            return extract_answer(answers[-1], inner, numeric) or answers[-1]
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
    tags = _TAG.findall(response)
    return tags[-1].strip() if tags else None


def _texts(mark: Mark, response: str, numeric: bool) -> Iterable[str]:
    """Texts that stand in or behind a mark, in order."""
    if mark == "boxed":
        return _boxes(response)
    if mark == "answer_tag":
        tags = (tag.strip() for tag in _TAG.findall(response))
        return (tag if r"\begin{" in tag else tag.partition("\n")[0].rstrip() for tag in tags)
    if mark == "hashes":
        lines = (line.strip(" \t*:") for line in _HASHES.findall(response))
        return (line for line in lines if not (_HEADING.match(line) or ":" in _closing_signs(line)))
    if mark == "phrase":
        claims = _PHRASE.split(response)[1:]  # of several on a line the last one counts
        return (claim if claim.startswith(r"\[") else claim.partition("\n")[0] for claim in claims)
    if mark == "last_number":
        return _last_numbers(response) if numeric else []
    return [] if numeric or "\n" in response.strip() else [response.strip()]


def _closing_signs(line: str) -> str:
    """The characters behind the last letter, digit or underscore."""
    words = len(line)
    while words and not (line[words - 1].isalnum() or line[words - 1] == "_"):
        words -= 1
    return line[words:]


def _answer(mark: Mark, text: str, numeric: bool) -> str | None:
    """Return the answer in a marked text; None for a placeholder, or a sentence without a digit for a number."""
    text = _RETRACTED.sub("", text)
    if _PLACEHOLDER.fullmatch(text):
        return None
    if numeric and mark in ("hashes", "phrase", "answer_tag"):
        claims_number = mark == "answer_tag" or any(map(str.isdigit, text))
        return (_number_of(text) or text) if claims_number else None  # "18 or 19" is an answer, a wrong one
    return _sentence(text) if mark == "phrase" else text


def _boxes(response: str) -> Iterator[str]:
    """Yield the contents of boxes, of nested ones the innermost; "\\boxed 5" has no braces."""
    openings: list[tuple[int, bool]] = []
    innermost = -1
    for match in _BOX.finditer(response):
        if match[1]:
            innermost = match.start()
            yield match[1].rstrip(".,;:")
        elif match[0] == "}" and openings:
            start, is_box = openings.pop()
            if is_box and start > innermost:
                innermost = start
                yield response[start : match.start()].removesuffix("\\ ").strip()
        elif match[0][-1] == "{" and match[0] != r"\{":
            openings.append((match.end(), match[0] != "{"))


def _last_numbers(response: str) -> list[str]:
    """Numbers of the last line that has one; none if it concludes in something else ("5. So √7")."""
    for line in reversed(response.splitlines()):
        *_, conclusion = _CONCLUSION.split(line)
        if numbers := complete_numbers(_LIST_MARK.sub("", line)):
            denied = conclusion != line and any(map(str.isdigit, conclusion)) and not complete_numbers(conclusion)
            return [] if denied else numbers
    return []


def _sentence(text: str) -> str:
    """Cut a text at the end of its formula, bold part or sentence."""
    formula = _FORMULA.match(text)
    first = next(filter(None, formula.groups())) if formula else _END.split(text, maxsplit=1)[0]
    if _JOINED.match(text, formula.end() if formula else len(first)):
        return _LAST.split(re.sub(r"\*\*|\$|\\[()\[\]]", "", text), maxsplit=1)[0].strip()
    return first.strip()


def _number_of(line: str) -> str | None:
    """Return the line if it is a number, else its only number or the one it begins with, else None."""
    line = line.replace("**", "")
    if is_numeric(line):
        return line.rstrip(" .")
    parts = _COMMAND.sub("", line).split(", ")
    if len(parts) > 1 and not any(map(_LETTER.search, parts)) and all(map(_DIGIT.search, parts)):
        return None
    numbers = complete_numbers(line)
    start = _END.split(line.lstrip("$* "), maxsplit=1)[0]
    first = numbers and start.startswith(numbers[0]) and not _FURTHER.match(start, len(numbers[0]))
    return numbers[0] if len(set(numbers)) == 1 or first else None
