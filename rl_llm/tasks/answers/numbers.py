r"""Numbers as people and models write them, read exactly.

`read_number` reads a whole text ("$1,000.", "1\frac{1}{2}", "18 \text{ cm}^2"); a text that is more than one number is
none. `complete_numbers` finds the numbers in a longer text: never the denominator of 1/2, the exponent of 2^3, the
minutes of 3:30 or the last group of "1 000".
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from rl_llm.tasks.answers.spelling import TEXT_COMMAND, plain_characters, undress

LONGEST_NUMBER = 200  # characters
LARGEST_EXPONENT = 1000  # 1e999999999 would fill the memory

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?!\d)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d+)?|\.\d+)"
_POWER = r"10 ?\^ ?(?:\{ ?([-+]? ?\d+) ?\}|([-+]?\d+))"
_NUMBER = re.compile(
    r"([-+]?) ?((?:US)?\\?\$|[€£¥₹])? ?([-+]?) ?"
    rf"(?:({_WHOLE}) (\d+) ?/ ?(\d+)(?![\d.,])|{_POWER}|({_DECIMAL})"
    rf"(?: ?/ ?([-+]?{_DECIMAL})|[eE]([-+]?\d+)| ?(?:\*|\\times|\\cdot|x) ?{_POWER})?)"
    r"(?!\d| ?\^(?! ?\{? ?\\circ))(.*)",
    re.DOTALL,
)
_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_EQUALS = re.compile(r"(?<![<>!:=])(?:=|\\approx(?![A-Za-z])|≈)")

_UNIT_NAMES = """% percent pct percentage; $ dollar dollars usd bucks; cent cents ¢; € euro euros eur; £; ¥; ₹
    mm millimeter millimeters; cm centimeter centimeters; m meter meters metre metres; km kilometer kilometers
    in inch inches; ft foot feet; yd yard yards; mi mile miles; g gram grams; kg kilogram kilograms; mg; mph; ml
    lb lbs pound pounds; oz ounce ounces; s sec secs second seconds; min mins minute minutes; h hr hrs hour hours
    day days; week weeks; month months; year years yr yrs; deg degree degrees; l liter liters litre litres"""
_UNITS = {name: names.split()[0] for names in re.split("[;\n]", _UNIT_NAMES) for name in names.split()}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NO_UNIT = re.compile(
    r"\b(?:and|or|to|plus|minus|times|over|not|than|half|quarter|dozen|hundred|a?sin|a?cos|a?tan|cot|csc|log|ln|exp|mod"
    r"|sqrt|pi|is|are|but|if|else)\b|[万亿千百十分之倍半多或和]",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"(?P<symbol>\\?%|\\?\$|[€£¥¢₹])|(?P<degree>\^ ?\{? ?\\circ ?\}?)(?: ?[CF]\b)?"
    r"|(?P<text>\x02[^\x03]*\x03|\([A-Za-z ]+\)|[\u4e00-\u9fff]+)(?P<power> ?\^ ?\{?\d\}?)?"
    r"|(?P<words>[A-Za-z][A-Za-z /.,'-]*)(?P<word_power> ?\^ ?\{?\d\}?)?"
)

_WORD = r"[^\s=<>|]+"
_JOIN = (
    r" (?:[-+*/^]|\\times|\\cdot|\\div) |(?<=\d,) (?=[^\s=(\[]*\d[)\]])"
    r"|(?<=\d) (?=\d{3}(?![\d/])|\d+/\d|\\[dtc]?frac|\\?%|percent|[mbtr]+illion|thousand)"
)
_BEFORE, _BEHIND = "([\"'*_#", ")].,:;!?\"'*_$\\"  # what may enclose a number in a sentence
_EXPRESSION = re.compile(rf"(?:[-+] )?{_WORD}(?:(?:{_JOIN}){_WORD})*")
_CLOCK = re.compile(r"\d+(?::\d\d)+", re.ASCII)


class Quantity(NamedTuple):
    """Exact value of a number and its unit: a known one by its symbol ("%", "$", "cm^2"), else ""."""

    value: Fraction
    unit: str = ""


@lru_cache(maxsize=4096)
def read_number(text: str) -> Quantity | None:
    """Return the number that the whole text is, or None.

    "x = 5" and "2 + 3 = 5" are 5; "2 + 3" and "2x = 5" are no numbers.
    """
    if len(text) > LONGEST_NUMBER or not any(c.isdigit() for c in plain_characters(text)):
        return None
    text = TEXT_COMMAND.sub("\x02\\1\x03", undress(text))
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    *lefts, right = _EQUALS.split(" ".join(text.split()))
    number = _quantity(right.strip())
    return number if number and all(_names(left.strip(), number) for left in lefts) else None


def complete_numbers(line: str) -> list[str]:
    """Find the numbers and times in a line that are no part of an expression, a pair or a word, in order."""
    expressions = (match[0].rstrip(_BEHIND).lstrip(_BEFORE) for match in _EXPRESSION.finditer(plain_characters(line)))
    return [text.removeprefix("$") if text[:2] == "$\\" else text for text in expressions if is_numeric(text)]


def is_numeric(text: str) -> bool:
    """Whether a text is one number (also 1/2, 50%, $3) or a time such as 3:30."""
    if len(text) > LONGEST_NUMBER or not any(c.isdigit() for c in text):
        return False
    return read_number(text) is not None or _CLOCK.fullmatch(text) is not None


def same_number(given: Quantity, gold: Quantity) -> bool:
    """Whether two numbers are equal exactly: 0.333 is not 1/3, and 5 cm is not 5 m.

    A missing unit is no difference. A percentage equals a number without a unit by its value if that number lies
    from -1 to 1 (50% is 0.5), else by its digits (50% is 50): one number, never two, is right for each percentage.
    """
    if given.unit and gold.unit and given.unit != gold.unit:
        return False
    if given.unit == gold.unit or "%" not in (given.unit, gold.unit):
        return given.value == gold.value
    percent, bare = (given, gold) if given.unit == "%" else (gold, given)
    return percent.value == bare.value * (100 if 0 < abs(bare.value) <= 1 else 1)


def _quantity(text: str) -> Quantity | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, currency, inner, whole, top, bottom, p1, p2, first, second, e, p3, p4, rest = match.groups()
    exponent = int((e or p1 or p2 or p3 or p4 or "0").replace(" ", ""))
    unit = _unit(rest)
    if unit is None or abs(exponent) > LARGEST_EXPONENT or (sign and inner):
        return None
    numerator, denominator = _exact(top or first or "1"), _exact(bottom or second or "1")
    if denominator == 0:
        return None
    value = (_exact(whole or "0") + numerator / denominator) * Fraction(10) ** exponent * unit[1]
    symbol = currency.removeprefix("US").lstrip("\\") if currency else unit[0]
    return Quantity(-value if "-" in (sign, inner) else value, symbol)


def _names(left: str, number: Quantity) -> bool:
    """Whether the left side of an equation is a name, arithmetic, or a number equal to the right side."""
    if other := _quantity(left):
        return other.value == number.value
    name = re.sub(r"\([^()]*\)|_\w|_?\{[^{}]*\}|\x02[^\x03]*\x03", "", left)
    return not (re.search("[A-Za-z]", name) and re.search(r"[-+*/^\d]", name))


def _exact(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", "").removesuffix("."))


def _unit(rest: str) -> tuple[str, int] | None:
    """Symbol and factor of the text behind a number; None if that text is no unit: a variable, or further words."""
    glued, rest = rest[:1].isalpha(), rest.strip()
    match = _UNIT.fullmatch(rest)
    if match is None or _NO_UNIT.search(rest):
        return None if rest else ("", 1)
    if match["symbol"] or match["degree"]:
        return (rest.lstrip("\\") if match["symbol"] else "deg"), 1
    words = re.findall(r"[a-z¢]+", rest.lower())
    if words and words[0] in _SCALES:
        unit = _unit(" " + " ".join(words[1:]) if words[1:] else "")
        return unit and (unit[0], _SCALES[words[0]] * unit[1])
    if match["words"]:  # a word, not a product of variables
        known = words[0] in _UNITS and len(words[0]) > 1
        if not known and (glued or len(words[0]) < 3 or not re.search("[aeiouy]", words[0])):
            return None
    power = re.sub(r"[ {}]", "", match["power"] or match["word_power"] or "")
    return (_UNITS[words[0]] + power if len(words) == 1 and words[0] in _UNITS else ""), 1
