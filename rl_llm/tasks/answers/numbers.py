"""Numbers as people and models write them, read exactly.

`read_number` takes a whole text ("$1,000.", "1\\frac{1}{2}", "18 \\text{ cm}^2") and returns its exact value, or None if
the text is more or less than one number. `last_number` finds the last complete number of a longer text: never the
denominator of 1/2, the exponent of 2^3 or the last group of "1 000".
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

LONGEST_NUMBER = 200  # characters; a longer text is no answer
LARGEST_EXPONENT = 1000  # 1e999999999 would fill the memory

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        **dict.fromkeys("\u2044\u2215\u00f7", "/"),
        **dict.fromkeys("\u00d7\u00b7\u22c5", "*"),
        **dict.fromkeys("\u00b0\u00ba", r"^\circ"),
        **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94) if chr(0x21 + i) != "-"},  # full-width forms
        **{c: f" {unicodedata.normalize('NFKC', c)}".replace("\u2044", "/") for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
        **dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", (f"^{i}" for i in range(10)), strict=True)),
    }
)
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|up)?|math(?:rm|bf|it|sf)|mbox|operatorname|rm|bf)\s*\{([^{}]*)\}")
_DRESSING = re.compile(r"\\(?:left|right|displaystyle|big|Big|bigl|bigr|!)(?![A-Za-z])|\\[()\[\]]|\*\*|`|(?<!\d)\$$")
_SPACES = re.compile(r"\\[,;: ]|\\q?quad(?![A-Za-z])|~|\s+")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?!\d)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_POWER = r"10 ?\^ ?(?:\{ ?([-+]? ?\d+) ?\}|([-+]?\d+))"
_NUMBER = re.compile(
    r"([-+]?) ?((?:US)?\\?\$|[€£¥₹])? ?([-+]?) ?"
    rf"(?:({_WHOLE}) (\d+) ?/ ?(\d+)(?![\d.,])|{_POWER}|({_DECIMAL})"
    rf"(?: ?/ ?([-+]?{_DECIMAL})|[eE]([-+]?\d+)| ?(?:\*|\\times|\\cdot|x) ?{_POWER})?)(?![\d^])(.*)",
    re.DOTALL,
)
_PLAIN = re.compile(r"[-+]?\d+(?:\.\d+)?", re.ASCII)

_UNITS = {
    name: names.split()[0]
    for names in (
        "% percent pct percentage", "$ dollar dollars usd bucks", "cent cents ¢", "€ euro euros eur", "£ pound_sterling",
        "mm millimeter millimeters", "cm centimeter centimeters", "m meter meters metre metres",
        "km kilometer kilometers", "in inch inches", "ft foot feet", "yd yard yards", "mi mile miles",
        "g gram grams", "kg kilogram kilograms", "lb lbs pound pounds", "oz ounce ounces", "mg milligram milligrams",
        "s sec secs second seconds", "min mins minute minutes", "h hr hrs hour hours", "day days", "week weeks",
        "month months", "year years yr yrs", "deg degree degrees", "l liter liters litre litres", "ml", "mph", "kmh",
        "rad radian radians", "am", "pm",
    )
    for name in names.split()
}  # fmt: skip
_NO_UNIT = frozenset(
    "and or to plus minus times over not than half quarter dozen hundred sin cos tan cot sec csc log ln exp mod max min "
    "sqrt pi is are but if else gcd lcm frac cup cap infty alpha beta theta".split()
) - {"min", "sec"}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNIT = re.compile(
    r"(?:(?P<percent>\\?%)|(?P<degree>\^ ?\{?\\circ\}?)|(?P<currency>\\?\$|[€£¥¢₹])|(?P<cjk>[\u4e00-\u9fff]+)"
    r"|(?P<marked>\x02[^\x03]*\x03)|(?P<words>\(?[A-Za-z][A-Za-z /.,'-]*\)?)(?![A-Za-z]))"
    r"(?: ?\^ ?\{?\d\}?)?"
)
_CJK_NUMERALS = frozenset("万亿千百十分之倍半多或和")


class Quantity(NamedTuple):
    """Exact value of a number and its unit: "%" or another known unit by its symbol, "" for none or any other word."""

    value: Fraction
    unit: str = ""


def plain_characters(text: str) -> str:
    """Replace full-width digits, typographic signs and spaces by their ASCII counterparts."""
    if text.isascii():
        return text
    text = text.translate(_CHARACTERS)
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def undress(text: str) -> str:
    """Remove what does not change an answer: $...$, \\(...\\), bold marks, LaTeX spaces, a last full stop."""
    text = plain_characters(text).strip()
    text = text.replace("{,}", ",").replace(r",\!", ",").replace(r"\!", "")
    text = _SPACES.sub(" ", _DRESSING.sub("", text)).strip()
    while len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    if text.startswith("$") and not re.match(r"\$ ?[-+.\d]", text) or text.count("$") == 1 and text.endswith("$"):
        text = text.strip("$") if not re.search(r"\d ?\\?\$$", text) else text
    return text.removesuffix(".").strip()


@lru_cache(maxsize=4096)
def read_number(text: str) -> Quantity | None:
    """Return the number that the whole text is, with its unit, or None."""
    if len(text) > LONGEST_NUMBER:
        return None
    if _PLAIN.fullmatch(text):
        return Quantity(Fraction(text))
    text = undress(text)
    while (wrapped := _TEXT.fullmatch(text)) or (wrapped := re.fullmatch(r"\{([^{}]*)\}", text)):
        text = undress(wrapped[1])
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", _TEXT.sub("\x02\\1\x03", text))
    *names, last = re.split(r"(?<![<>!:])(?:=|\\approx(?![A-Za-z])|≈)", text)
    if any(_differs(name, last) for name in names):
        return None
    return _quantity(last.strip())


def _differs(name: str, last: str) -> bool:
    """Whether the left side of an equation is a number other than the right side."""
    left, right = _quantity(name.strip()), _quantity(last.strip())
    return left is not None and right is not None and left.value != right.value


def _quantity(text: str) -> Quantity | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, currency, inner, whole, top, bottom, p1, p2, first, second, e, p3, p4, rest = match.groups()
    exponent = int((e or p1 or p2 or p3 or p4 or "0").replace(" ", ""))
    unit = _unit_of(rest)
    if unit is None or abs(exponent) > LARGEST_EXPONENT or (sign and inner):
        return None
    if whole:
        value, divisor = _exact(whole) + Fraction(int(top), int(bottom) or 1), Fraction(int(bottom))
    else:
        value, divisor = _exact(first or "1"), _exact(second or "1")
    if divisor == 0:
        return None
    value = value if whole else value / divisor
    value *= Fraction(10) ** exponent * unit[1]
    symbol = _UNITS.get((currency or "").lower().removeprefix("us").lstrip("\\"), currency or "") or unit[0]
    return Quantity(-value if "-" in (sign, inner) else value, symbol)


def _exact(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", "").removesuffix("."))


def _unit_of(rest: str) -> tuple[str, int] | None:
    """Symbol and factor of the text behind a number; None if that text is no unit."""
    glued, rest = rest[:1].isalpha(), rest.strip()
    match = _UNIT.fullmatch(rest)
    if not rest or match is None:
        return ("", 1) if not rest else None
    kind = match.lastgroup
    if kind in ("percent", "degree", "currency", "cjk"):
        known = {"percent": "%", "degree": "deg", "currency": _UNITS.get(rest.lstrip("\\"), rest), "cjk": ""}
        return None if kind == "cjk" and _CJK_NUMERALS & set(rest) else (known[kind], 1)
    words = re.findall(r"[^\W\d_]+", rest.lower())
    if not words or any(word in _NO_UNIT for word in words):
        return ("", 1) if not words and kind == "marked" else None
    if words[0] in _SCALES:
        unit = _unit_of(" " + " ".join(words[1:]))
        return None if unit is None else (unit[0], _SCALES[words[0]] * unit[1])
    symbol = _UNITS.get(words[0], "") if len(words) == 1 else ""
    is_word = len(words[0]) > 2 and re.search("[aeiouy]", words[0])
    if (
        kind == "words"
        and not rest.startswith("(")
        and (glued or not is_word)
        and (_UNITS.get(words[0]) is None or len(words[0]) == 1)
    ):
        return None
    power = re.search(r"\^ ?\{?(\d)", rest)
    return (symbol + (f"^{power[1]}" if power and symbol else ""), 1)
