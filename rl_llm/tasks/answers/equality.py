"""Whether two final answers are equal: numbers, choices, words, lists by their items, expressions by math-verify."""

import re
from typing import NamedTuple

from rl_llm.tasks.answers import expressions
from rl_llm.tasks.answers.numbers import read_number, same_number
from rl_llm.tasks.answers.spelling import TEXT_COMMAND, undress

LONGEST_ANSWER = 1000  # characters; longer texts are compared letter by letter

_CHOICE = re.compile(r"(?:(?i:option|choice|answer) )?\(?([A-J])(?:\)|[.:](?!\d)|$)(.*)", re.DOTALL)
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z])(?:\([A-J]\)|[A-J][.):])|\b(?:or|and) [A-J]\b")
_CLOCK = re.compile(r"0*(\d+):(\d\d(?::\d\d)*)(?: ?([ap])\.?m\.?)?", re.IGNORECASE)
_WORDS = re.compile(
    r"(?!.*\b(?:sin|cos|tan|log|exp|sqrt)\b)(?=.*(?:[^\W\d_]{3}|\b(?:no|up)\b|[\u4e00-\u9fff]))[^\\^=+*/<>(){}\[\]\d|]+",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"((?:\\?[A-Za-z]+[\w'{}]*|\([\w, ]+\))(?:\([\w, ]*\))?) ?(?:=|\\in(?![a-z])) ?(?!.*=)(.+)", re.DOTALL
)
_SET_BUILDER = re.compile(r"\\\{ ?\w ?(?:\\in ?\\mathbb ?\{?R\}? ?)?[|:] ?(.+)\\\}", re.DOTALL)
_MATRIX = re.compile(r"\\begin\{([bpv]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_ENCLOSED = re.compile(r"(\\\{|[(\[])(.+)(\\\}|[)\]])", re.DOTALL)
_COMMA = r"[,;]|\\(?:text|mathrm|mbox)\{[ ,]*(?:and|or) *\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
_WITH_UNIT = re.compile(r"(.*[\w)}]) ?\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(?: ?\^ ?\{?\d\}?)?", re.DOTALL)
_UNION = r"\\cup(?![A-Za-z])"


class Items(NamedTuple):
    """Parts of an answer and what encloses them: "()", "[)", "{}", "matrix", "union", or "" for a bare list."""

    kind: str
    parts: list[str]


def equal_answers(given: str, gold: str) -> bool:
    """Whether an answer equals the gold answer.

    Numbers are compared exactly; a gold number needs a number, so the unevaluated "2 + 3" does not earn "5". Words are
    compared without case. Lists and sets may be in any order; tuples, intervals and matrices may not, and need the same
    brackets. Names count where both sides have them (x = 2). Everything else is an expression for math-verify; raises
    ImportError if that is missing.
    """
    if max(len(given), len(gold)) > LONGEST_ANSWER:
        return given.strip() == gold.strip()
    if number := read_number(gold):
        other = read_number(given)
        names = (_named(given)[1], _named(gold)[1]) if "=" in given and "=" in gold else ("", "")
        return other is not None and same_number(other, number) and (names[0] == names[1] or "" in names)
    if clock := _CLOCK.fullmatch(undress(gold)):
        other_clock = _CLOCK.fullmatch(undress(given))
        pairs = zip(clock.groups(), other_clock.groups() if other_clock else ("", "", ""), strict=True)
        return all(part is None or part.lower() == (other or "").lower() for part, other in pairs)
    if choice := choice_of(gold):
        return choice == choice_of(given if len(given) > 3 else given.upper())
    if _key(given) == _key(gold):
        return True
    return not _WORDS.fullmatch(undress(gold)) and _equal_items(given, gold)


def needs_math(gold: str) -> bool:
    """Whether math-verify decides if an answer equals this one: it is no number, time, choice or words."""
    plain = undress(gold)
    return not (read_number(gold) or _CLOCK.fullmatch(plain) or choice_of(gold) or _WORDS.fullmatch(plain))


def choice_of(text: str) -> str | None:
    """Return the letter A-J of one choice ("(A)", "\\text{A}", "A. 5 apples"), or None."""
    match = _CHOICE.fullmatch(TEXT_COMMAND.sub(r"\1", undress(text)).strip())
    return match[1] if match and not _OTHER_CHOICE.search(match[2]) else None


def _key(text: str) -> str:
    """Spelling that equal texts share: without spaces beside signs, and for words without case."""
    text = re.sub(r"\s+", " ", TEXT_COMMAND.sub(r" \1 ", undress(text))).strip(" \"'.")
    if _WORDS.fullmatch(text):
        return text.casefold()
    return re.sub(r"(?<![A-Za-z\d]) | (?![A-Za-z\d])", "", re.sub(r"([_^])\{(\w)\}", r"\1\2", text))


def _equal_items(given: str, gold: str) -> bool:
    """Compare two answers by what encloses them and by their parts."""
    (value, name), (gold_value, gold_name) = _named(given), _named(gold)
    if name == gold_name or not re.search("=|\\\\in(?![a-z])", gold if name else given):
        given, gold = value, gold_value
    left, right = _items(given), _items(gold)
    left, right = _tuple_of_named(left, right), _tuple_of_named(right, left)
    if left.kind == right.kind or {left.kind, right.kind} == {"", "{}"}:
        if len(left.parts) == len(right.parts) == 1:
            sides = left.parts[0], right.parts[0]
            if not all(map(_WITH_UNIT.fullmatch, sides)):  # a missing unit is no difference
                sides = _WITH_UNIT.sub(r"\1", sides[0]), _WITH_UNIT.sub(r"\1", sides[1])
            return expressions.equal(*sides)
        if len(left.parts) != len(right.parts):
            return False
        if right.kind not in ("", "{}", "union"):
            return all(equal_answers(a, b) for a, b in zip(left.parts, right.parts, strict=True))
        if _same_parts(left.parts, right.parts):
            return True
    intervals = {"()", "[]", "(]", "[)", "union"}
    return bool({left.kind, right.kind} & intervals) and expressions.equal(given, gold, as_sets=True)


def _same_parts(given: list[str], gold: list[str]) -> bool:
    """Whether two lists have equal parts in any order. Equality is transitive, so the first partner found will do."""
    rest = list(given)
    for part in gold:
        found = next((i for i, other in enumerate(rest) if equal_answers(other, part)), None)
        if found is None:
            return False
        del rest[found]
    return True


def _named(text: str) -> tuple[str, str]:
    """Split "x = 5" or "x \\in [1, 2]" into value and name; the name of other texts is empty."""
    text = undress(text)
    if builder := _SET_BUILDER.fullmatch(text):
        return builder[1], ""
    match = _NAME.fullmatch(text) if len(_split(text, _COMMA)) == 1 else None
    return (match[2], match[1].replace(" ", "")) if match else (text, "")


def _tuple_of_named(items: Items, other: Items) -> Items:
    """Turn a bare list of different names (x = 1, y = 2) into a tuple if the other side has no names."""
    names = [_named(part)[1] for part in items.parts]
    if items.kind or len(names) < 2 or "" in names or len(set(names)) < len(names):
        return items
    return items if any(_named(part)[1] for part in other.parts) else Items("()", [_named(p)[0] for p in items.parts])


def _items(text: str) -> Items:
    text = undress(text)
    if matrix := _MATRIX.fullmatch(text):
        rows = [row.split("&") for row in matrix[2].strip().removesuffix(r"\\").split(r"\\")]
        return Items(f"{matrix[1] == 'vmatrix'} {len(rows)}", [cell.strip() for row in rows for cell in row])
    if len(union := _split(text, _UNION)) > 1:
        return Items("union", union)
    enclosed = _ENCLOSED.fullmatch(text)
    parts = _split(text, _COMMA)
    if enclosed and len(parts) == 1:
        inner = _split(enclosed[2], _COMMA)
        if len(inner) > 1 or enclosed[1] == r"\{":
            return Items((enclosed[1] + enclosed[3]).replace("\\", ""), inner)
    both = [part.replace(r"\pm", sign) for part in parts for sign in (("+", "-") if r"\pm" in part else ("",))]
    return Items("", [re.sub(r"(^|=) ?\+", r"\1", part).strip() for part in both])


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside of all brackets. In "1,000, 2,000" only the comma with a space separates."""
    if ", " in text:
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    pieces, depth, start = [], 0, 0
    for match in re.finditer(rf"\\?[()\[\]{{}}]|{separator}", text):
        bracket = match[0].lstrip("\\")
        if bracket in ("(", "[", "{"):
            depth += 1
        elif bracket in (")", "]", "}"):
            depth -= 1
        elif depth == 0:
            pieces.append(text[start : match.start()].strip())
            start = match.end()
    return [piece for piece in (*pieces, text[start:].strip()) if piece]
