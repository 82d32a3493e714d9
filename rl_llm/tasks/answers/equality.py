"""Whether two final answers are equal: numbers, choices, words, lists by their items, expressions by math-verify."""

import re
from typing import NamedTuple

from rl_llm.tasks.answers import expressions
from rl_llm.tasks.answers.numbers import (
    TEXT_COMMAND,
    Quantity,
    read_number,
    read_time,
    same_number,
    split_unit,
    undress,
)
from rl_llm.tasks.answers.units import same_unit

LONGEST_ANSWER = 1000  # characters; longer texts are compared letter by letter

_CHOICE = re.compile(r"(?:(?i:option|choice|answer) )?\(?([A-J])(?:\)|[.:](?!\d)|$)(.*)", re.DOTALL)
_OTHER_CHOICE = re.compile(
    r"(?<![A-Za-z\\])(?![AI] [a-z])[A-J](?![A-Za-z'])"  # but "A. A dog", "A. I am"
    r"|\([a-j]\)|(?<![A-Za-z])[b-j][):]|(?:^|[.)]) ?[b-j]\.|\b(?:or|no|not|also),? [b-j](?![A-Za-z'])"
)
_NO_FUNCTION = r"(?!.*\b(?:sin|cos|tan|log|exp|sqrt)\b)"
_SOME_WORD = r"(?=.*(?:[^\W\d_]{3}|\b(?:no|up)\b|[\u4e00-\u9fff]))"
_WORDS = re.compile(rf"{_NO_FUNCTION}{_SOME_WORD}[^\\^=+*/<>(){{}}\[\]\d|]+", re.IGNORECASE)

_RELATION = r"(?:=|\\in(?![a-z]))"
_NAME = r"(?:\\?[A-Za-z]+[\w'{}]*|\([\w, ]+\))(?:\([\w, ]*\))?"  # x, \theta, x_1, f'(x), (x, y)
_NAMED = re.compile(rf"({_NAME}) ?{_RELATION} ?(?!.*=)(.+)", re.DOTALL)
_SET_BUILDER = re.compile(r"\\\{ ?\w ?(?:\\in ?\\mathbb ?\{?R\}? ?)?[|:] ?(.+)\\\}", re.DOTALL)
_CONDITION = re.compile(r"(\w) ?\| ?(?=.*\b\1\b)([^|]*(?:[<>]|\\[gl]e(?![a-z]))[^|]*)")  # x | x > 2
_RELATIONS = re.compile(r"([<>]|\\[gl]e(?:q?slant)?(?![A-Za-z]))")
_MIRRORED = {">": "<", r"\ge": r"\le"}
_MATRIX = re.compile(r"[(\[]?\\begin\{([bpv]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}[)\]]?", re.DOTALL)
_ENCLOSED = re.compile(r"(\\\{|[(\[])(.+)(\\\}|[)\]])", re.DOTALL)
_COMMA = r"[,;]|\\(?:text|mathrm|mbox)\{[ ,]*(?:and|or) *\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
_OR = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])")
_UNION = r"\\cup(?![A-Za-z])"
_LETTER = re.compile(r"(?<=\d) ?([A-Za-z])$")
_NOUN = re.compile(r"\(([A-Za-z ]+)\)$")  # 9 (quarters): bare quarters are fourths
_BASES = dict(zip(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], range(2, 11), strict=True))
_INTERVALS = {"()", "[]", "(]", "[)", "union"}


class Items(NamedTuple):
    """Parts of an answer and what encloses them: "()", "[)", "{}", size of a matrix, "union", or "" for a bare list."""

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
        given = given.replace(noun[0], "").replace(noun[1], "") if (noun := _NOUN.search(gold)) else given
        other = read_number(given) or _in_unit_of(number, given)
        names = {_named(text)[1] for text in (given, gold) if "=" in text} - {""}
        return other is not None and same_number(other, number) and len(names) < 2
    if time := read_time(gold):
        clock = read_time(given)
        return clock is not None and clock[:2] == time[:2] and time[2] in ("", clock[2])
    if choice := choice_of(gold):
        return choice == choice_of(given if len(given) > 3 else given.upper())
    return _key(given) == _key(gold) or (needs_math(gold) and _equal_items(given, gold))


def _in_unit_of(gold: Quantity, given: str) -> Quantity | None:
    """Read a number before a single letter (2 h) if the letter is the unit of the gold number, and no variable."""
    number = read_number(_LETTER.sub(r" \\text{\1}", given))
    return number if number and gold.unit and number.unit == gold.unit else None


def needs_math(gold: str) -> bool:
    """Whether math-verify decides if an answer equals this one: it is no number, time, choice or words."""
    return not (read_number(gold) or read_time(gold) or choice_of(gold) or _WORDS.fullmatch(undress(gold)))


def choice_of(text: str) -> str | None:
    """Return the letter A-J of one choice ("(A)", "\\text{A}", "A. 5 apples"), or None."""
    match = _CHOICE.fullmatch(TEXT_COMMAND.sub(r"\1", undress(text)).strip())
    return match[1] if match and not _OTHER_CHOICE.search(match[2]) else None


def _key(text: str) -> str:
    """Spelling that equal texts share: without spaces beside signs, and for words without case."""
    text = re.sub(r"\s+", " ", TEXT_COMMAND.sub(r" \1 ", undress(text))).strip(" .")
    text = re.sub(r"(['\"])(.*)\1", r"\2", text) if text[:1] == text[-1:] else text  # but x' is no x
    text = re.sub(rf"_ ?\{{? ?({'|'.join(_BASES)}) ?\}}?$", lambda m: f"_{_BASES[m[1]]}", text)  # 12_{\text{five}}
    text = re.sub(r"(?<=\w) ?- ?(?=[^\W\d_]{2})", "-", text)  # x \text{-axis}
    if _WORDS.fullmatch(text):
        return text.casefold()
    return re.sub(r"(?<![A-Za-z\d]) | (?![A-Za-z\d])", "", re.sub(r"([_^])\{(\w)\}", r"\1\2", text))


def _equal_items(given: str, gold: str) -> bool:
    """Compare two answers by what encloses them and by their parts."""
    (value, name), (gold_value, gold_name) = _named(given), _named(gold)
    if name == gold_name or not (re.search(_RELATION, given) and re.search(_RELATION, gold)):
        given, gold = value, gold_value
    left, right = _items(given), _items(gold)
    left, right = _tuple_of_named(left, right), _tuple_of_named(right, left)
    kinds = {left.kind, right.kind}
    alternatives = kinds == {"", "union"} and any(map(_OR.search, (given, gold)))  # x < 1 or x > 2
    if left.kind == right.kind or kinds == {"", "{}"} or alternatives:
        if len(left.parts) == len(right.parts) == 1:
            return _equal_expressions(left.parts[0], right.parts[0])
        if right.kind not in ("", "{}", "union"):
            return len(left.parts) == len(right.parts) and all(map(equal_answers, left.parts, right.parts))
        if _same_parts(left.parts, right.parts):
            return True
    return bool(kinds & _INTERVALS) and expressions.equal(given, gold, as_sets=True)


def _same_parts(given: list[str], gold: list[str]) -> bool:
    """Whether two lists have equal parts in any order. Equality is transitive, so the first partner found will do."""
    rest = list(given)
    for part in gold:
        partner = next((other for other in rest if equal_answers(other, part)), None)
        if partner is None:
            return False
        rest.remove(partner)
    return not rest


def _equal_expressions(given: str, gold: str) -> bool:
    (given, unit), (gold, gold_unit) = split_unit(given), split_unit(gold)
    words = [sorted(" ".join(text.split()) for text in TEXT_COMMAND.findall(side)) for side in (given, gold)]
    return same_unit(unit, gold_unit) and words[0] == words[1] and expressions.equal(given, gold)


def _named(text: str) -> tuple[str, str]:
    """Split "x = 5" or "x \\in [1, 2]" into value and name; the name of other texts is empty."""
    text = undress(text)
    if builder := _SET_BUILDER.fullmatch(text):
        return _ascending(builder[1]), ""
    if condition := _CONDITION.fullmatch(text):
        return _ascending(condition[2]), ""
    text = _ascending(text)
    parts = _split(text, _COMMA)  # all parts of "x = 1, 2" belong to the name
    match = _NAMED.fullmatch(text) if all(_NAMED.fullmatch(part) is None for part in parts[1:]) else None
    return (match[2], match[1].replace(" ", "")) if match else (text, "")


def _ascending(text: str) -> str:
    """Turn a chain around that descends: 5 > x > 1 is 1 < x < 5."""
    first, *relations = _RELATIONS.split(text)
    if len(relations) != 4 or not set(relations[::2]) <= set(_MIRRORED):
        return text
    return f"{relations[3]} {_MIRRORED[relations[2]]} {relations[1]} {_MIRRORED[relations[0]]} {first}"


def _tuple_of_named(items: Items, other: Items) -> Items:
    """Turn a bare list of different names (x = 1, y = 2) into a tuple if the other side is one."""
    values, names = zip(*map(_named, items.parts), strict=True) if items.parts else ((), ())
    are_coordinates = other.kind == "()" and items.kind == "" and all(names) and len(set(names)) == len(names) > 1
    return Items("()", list(values)) if are_coordinates else items


def _items(text: str) -> Items:
    text = undress(text)
    if matrix := _MATRIX.fullmatch(text):
        rows = [row.split("&") for row in matrix[2].strip().removesuffix(r"\\").split(r"\\")]
        return Items(f"{matrix[1] == 'vmatrix'} {len(rows)}", [cell.strip() for row in rows for cell in row])
    if len(union := _split(text, _UNION)) > 1:
        return Items("union", union)
    if len(chain := re.split(" ?= ?", text)) > 2 and all(map(str.isalpha, chain[:-1])):  # x = y = 1
        return Items("", [f"{name} = {chain[-1]}" for name in chain[:-1]])
    parts = _split(text, _COMMA)
    if len(parts) == 1 and (enclosed := _ENCLOSED.fullmatch(text)) and not (text[0] == "(" and text.count(r"\pm") == 1):
        opening, inside, closing = enclosed.groups()
        inner = _split(inside, _COMMA)
        if len(inner) > 1 or opening == r"\{":
            return Items((opening + closing).replace("\\", ""), inner)
    both = [part.replace(r"\pm", sign) for part in parts for sign in (("+", "-") if r"\pm" in part else ("",))]
    return Items("", [re.sub(r"(^|=) ?\+", r"\1", part).strip() for part in both])


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside of all brackets. In "1,000, 2,000" only the comma with a space separates."""
    if ", " in text:
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    pieces, depth, start = [], 0, 0
    for match in re.finditer(rf"\\?(?P<opening>[(\[{{])|\\?(?P<closing>[)\]}}])|{separator}", text):
        if match["opening"]:
            depth += 1
        elif match["closing"]:
            depth -= 1
        elif depth == 0:
            pieces.append(text[start : match.start()].strip())
            start = match.end()
    return [piece for piece in (*pieces, text[start:].strip()) if piece]
