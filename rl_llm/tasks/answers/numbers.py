r"""Numbers as people and models write them, read exactly.

`read_number` reads a whole text ("$1,000.", "1\frac{1}{2}", "18 \text{ cm}^2"); a text that is more than one number is
none. `complete_numbers` finds the numbers in a longer text that are no part of anything, such as 2 in 1/2.
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from rl_llm.tasks.answers.units import same_unit, unit_of

_LATEX = {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt "}
_LATEX |= {"∪": r"\cup ", "°": r"^\circ", "∅": r"\emptyset", "\u200b": "", "\ufeff": ""}
# NFKC makes full-width characters and odd spaces ASCII. It would lose these: the exponent of 2², the space in 1½.
_EXPONENTS = {character: f"^{digit}" for digit, character in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_FRACTIONS = {character: f" {character}" for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
_SIGNS = str.maketrans("\u2212\u2010\u2011\u2012\u2013\ufe63\u2215÷×·⋅、。", "------//***,.")
_CHARACTERS = _SIGNS | str.maketrans(_LATEX | _EXPONENTS | _FRACTIONS)

_STYLES = r"text(?:bf|it|rm|sf|up)?|math(?:rm|bf|it|sf)|mbox|boldsymbol|underline|operatorname|rm|bf"
TEXT_COMMAND = re.compile(rf"\\(?:{_STYLES})\s*\{{([^{{}}]*)\}}")
_UPRIGHT = re.compile(
    r"\\(?:text(?:rm|up)?|mathrm|mbox|operatorname|rm)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)  # fonts of units
_BLACKBOARD = re.compile(r"\\mathbb ?([A-Z])(?![A-Za-z])")
_SWITCH = re.compile(r"\{\\(rm|bf|it|sf)(?![A-Za-z]) *([^{}]*)\}")  # 5 {\rm cm}
_CONSTANT = re.compile(r"\\(?:(?:text(?:rm|up)?|mathrm|rm)\s*\{\s*([ei])\s*\}|mathrm\s*\{(d)\})")  # upright e, i, dx
_NOISE = re.compile(
    r"(?<!\\)\\(?:left|right|displaystyle|[bB]ig[lr]?|[lL]arge|LARGE|[hH]uge|!)(?![A-Za-z])|(?<!\\)\\[()\[\]]|\*\*|`"
    r"|\\(?:text)?color\s*\{[^{}]*\}"
)
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|(?<!\\)~|\s+")
_MATH = re.compile(r"(?<!\\)\$\$?([^$]*[^$\\])\$\$?")
_ALIAS_PAIRS = r"leq \le; geq \ge; neq \ne; lbrace \{; rbrace \}; mid |; vert |; lvert |; rvert |; varnothing \emptyset"
_ALIASES = dict(pair.split() for pair in rf"{_ALIAS_PAIRS}; dfrac \frac; tfrac \frac; cfrac \frac".split(";"))
_ALIAS = re.compile(rf"\\({'|'.join(_ALIASES)})(?![A-Za-z])")

LONGEST_NUMBER = 200  # characters
LARGEST_EXPONENT = 1000  # 1e999999999 would fill the memory

_GROUPED = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,2}(?:,\d{2})+,\d{3}"  # 1,000; 1 000; 12,34,567
_WHOLE = rf"(?:{_GROUPED}|\d+)(?!\d)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?) ?(?P<currency>(?:US)?\\?\$|[€£¥₹])? ?(?P<inner_sign>[-+]?) ?"
    rf"(?:(?P<whole>{_WHOLE}) (?=\d+ ?/ ?\d+(?![\d.,])))?"  # of the mixed number 1 1/2
    rf"(?P<top>{_DECIMAL})(?: ?/ ?(?P<bottom>[-+]?{_DECIMAL})|[eE](?P<exponent>[-+]?\d+))?"
    r"(?!\d| ?\^)(?P<unit>.*)",
    re.DOTALL,
)
# LaTeX that has a plain spelling: \frac12 is 1/2, 3 \times 10^{2} is 3e2, 30^\circ is 30 degrees.
_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_REPEATING = re.compile(  # 0.1\overline{6}, 0.\dot{1}4285\dot{7}
    r"(?<![\d.,])(?<!\d )(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?"
)
_ORDINAL = re.compile(r"(?<=\d) ?\^?\{? ?(?:\\text\{ ?)?(?:st|nd|rd|th) ?\}*$")
_TEN_TO = re.compile(r"((?<=\d) ?(?:\*|\\times|\\cdot|x) ?)?(?<![\d.])10 ?\^ ?(\{ ?[-+]? ?\d+ ?\}|[-+]?\d+)(?! ?[\d^])")
_DEGREE = re.compile(r" ?\^ ?\{? ?\\circ ?\}?")
_EQUALS = re.compile(r"(?<![<>!:=])(?:=|\\approx(?![A-Za-z])|≈)")
_ENCLOSED = re.compile(r"(-?) ?\(([^(),]*)\)")
_SUBSCRIPT_OR_ARGUMENT = re.compile(rf"{TEXT_COMMAND.pattern}|\([^()]*\)|_\w|_?\{{[^{{}}]*\}}")

_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNIT = re.compile(r"[%$€£¥¢₹]|[\u4e00-\u9fff]+|(?:\( ?)?[A-Za-zμΩ][A-Za-zμΩ /.,'*^{}\d-]*\)?(?: ?\^ ?\{?\d\}?)?")
_PRODUCT = re.compile(r" ?\\(?:cdot|times)(?![A-Za-z]) ?")
_POWER = re.compile(r"(?<=[A-Za-z]) (?:squared|cubed)")
_TAIL = re.compile(
    r"(?<=[\w)}]) ?(?:(?:\\(?:text|mathrm|mbox)\s*\{[^{}]*\}[ ^{}\d/*-]*(?:\\cdot)?)+| [A-Za-z][A-Za-z /^{}\d]*)$"
)
_CONDITION = re.compile(r"\b(?:when|where|for|with|as|such|odd|even|prime|real|integers?|positive|negative|except)\b")
_ASIDE = re.compile(r"(?<=[a-z]) \([A-Za-z ]+\)$")  # 16 ways (order matters)
_CARDINAL = (
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|hundred|lakh|crore|gross"
    r"|(?:twen|thir|four?|fif|six|seven|eigh|nine)(?:teen|ty)|(?!(?:m|b|tr)illions?\b)[a-z]+illion)s?"
)
_FACTOR = (  # behind a number these make another one of it
    rf"(?:{_CARDINAL}|half|halves|(?<!\()quarters?"
    r"|(?:third|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)th)(?:s|(?! \w))"
    r"|squared|cubed|factorial|choose|root|recurring|repeating)"
)
_JOINT = r"(?:or|and|to|through|times|plus|minus|over|mod(?:ulo)?|(?:divided|multiplied) by)"
_GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|pi|phi|psi|rho|sigma|tau|omega"
_NO_UNIT = re.compile(  # words that go on with the number, or make another one of it
    rf"(?i)\b(?:{_FACTOR}|{_JOINT}|a?(?:sin|cos|tan)|log|ln|cot|csc|exp|sqrt|{_GREEK}|infinity|above|below|under|point|not?|than|maybe"
    r"|is|are|but|if|else)\b|[万亿千百十分之倍半多或和]"
)

# An expression in a sentence: words without spaces, joined by operators, within a pair, or as parts of one number.
_WORD = r"[^\s=<>|]+"
_OPERATOR = r" (?:[-+*/^]|\\times|\\cdot|\\div) "
_WITHIN_PAIR = r"(?<=\d,) (?=[^\s=(\[]*\d[)\]])"
_WITHIN_NUMBER = r"(?<=\d) (?=\d{3}(?![\d/])|\d+/\d|\\[dtc]?frac|\\?%|percent|[mbtr]+illion|thousand)"
_EXPRESSION = re.compile(rf"(?:[-+] )?{_WORD}(?:(?:{_OPERATOR}|{_WITHIN_PAIR}|{_WITHIN_NUMBER}){_WORD})*")
_BEFORE, _BEHIND = "([\"'*_#", ")].,:;!?\"'*_$\\"  # what may enclose a number in a sentence
_NEGATIVE = re.compile(r"(?<!\d )\bnegative (?=[\d$])|^\W*minus (?=[\d$])", re.IGNORECASE)
_FROM_BEFORE = re.compile(  # makes a number behind it a part of something, or denies it
    rf"(?i)(?:<=?|(?<![-=])(?<!<b)(?<!<answer)>=?|\\(?!approx|[Rr]ightarrow|implies|therefore|q?quad|is)[A-Za-z]+|\d"
    rf"|(?:\d |\b(?!or|and|to|through)){_JOINT}|(?:\bnot|n't|\b(?:never|cannot))(?: be)?|\d (?:R|remainder)"
    r"|\b(?:nearly|almost|than|below|above|twice|double|half|a?(?:sin|cos|tan)|log|ln"
    r"|(?:root|half|third|quarter|square|cube|percent|%|\d|logarithm|factorial|power) of))[\s$]*$"
)
_FROM_BEHIND = re.compile(  # the same behind a number
    r"!|[$)}*,]*\s*(?:[<>](?![/b])|\\(?:over|choose|pm|mp|leq?|geq?|neq?|lt|gt|sqrt|[pb]?mod|to)(?![A-Za-z]))"
    rf"|[$)}}*,]*\s+(?:[-$\\(]*\d|{_JOINT} (?:[-$\\(]*\d|{_CARDINAL}\b|an? )|{_FACTOR}\b"
    rf"|(?!or|and){_JOINT} [$(-]*\\(?:sqrt|frac|pi|log)"
    r"|is (?:wrong|incorrect|false|not|too)\b|or (?:more|less|fewer)\b|(?:R|remainder) \d)"
)
_CLOCK = re.compile(r"0*(\d+)((?::\d\d)*)(?: *([ap])\.?m\.?)?", re.IGNORECASE)


class Quantity(NamedTuple):
    """Exact value of a number and its unit: a known one by its symbol ("%", "$", "cm^2"), else ""."""

    value: Fraction
    unit: str = ""


def plain_characters(text: str) -> str:
    """Replace full-width digits, typographic signs and spaces by their ASCII or LaTeX counterparts."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).replace("\u2044", "/")


@lru_cache(maxsize=4096)
def undress(text: str) -> str:
    """Remove math and bold marks, LaTeX spacing, \\text{...} around all of it, and a last full stop."""
    text = plain_characters(text).replace("{,}", ",").replace("{:}", ":").replace(r",\!", ",")
    text = _SWITCH.sub(r"\\math\1{\2}", _SPACES.sub(" ", _NOISE.sub("", _MATH.sub(r"\1", text))))
    text = _BLACKBOARD.sub(r"\\mathbb{\1}", _CONSTANT.sub(r" \1\2", text))
    text = _ALIAS.sub(lambda m: _ALIASES[m[1]], text).strip().removesuffix(".").strip()
    while wrapped := TEXT_COMMAND.fullmatch(text) or re.fullmatch(r"\{((?:[^{}]|\{[^{}]*\})*)\}", text):
        text = wrapped[1].strip().removesuffix(".").strip()
    return text


@lru_cache(maxsize=4096)
def read_number(text: str) -> Quantity | None:
    """Return the number that the whole text is, or None.

    "x = 5" and "2 + 3 = 5" are 5; "2 + 3" and "2x = 5" are no numbers.
    """
    if len(text) > LONGEST_NUMBER or not any(c.isdigit() for c in plain_characters(text)):
        return None
    text = _REPEATING.sub(_repeating, _ORDINAL.sub("", undress(text)))
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    text = _TEN_TO.sub(lambda m: ("e" if m[1] else "1e") + m[2].strip("{ }").replace(" ", ""), text)
    *lefts, right = _EQUALS.split(" ".join(_DEGREE.sub(" degrees ", text).split()))
    if enclosed := _ENCLOSED.fullmatch(right.strip()):  # -(-5)
        right = enclosed[1] + enclosed[2].strip()
    number = _quantity(re.sub(r"^- ?-", "", right.strip()))
    return number if number and all(_may_equal(left.strip(), number) for left in lefts) else None


def read_time(text: str) -> tuple[str, str, str] | None:
    """Return hour, minutes and half of the day ("a", "p" or "") of a time ("03:30 p.m.", "5 PM"), or None."""
    match = _CLOCK.fullmatch(TEXT_COMMAND.sub(r"\1", undress(text)).strip())
    if match is None or not (match[2] or match[3]):
        return None
    return match[1], match[2] or ":00", (match[3] or "").lower()


def complete_numbers(line: str) -> list[str]:
    """Find the numbers and times in a line that are no part of an expression, a pair or a word, in order."""
    line, numbers = _NEGATIVE.sub("-", plain_characters(line)), []
    for match in _EXPRESSION.finditer(line):
        start, text = match.start(), match[0].rstrip(_BEHIND)
        number = text.lstrip(_BEFORE)
        if is_numeric(number) and not (
            _FROM_BEHIND.match(line, start + len(text)) or _FROM_BEFORE.search(line[max(0, start - 24) : start])
        ):
            numbers.append(number.removeprefix("$") if number[:2] == "$\\" else number)
    return numbers


def is_numeric(text: str) -> bool:
    """Whether a text is one number (also 1/2, 50%, $3; not 3rd) or a time such as 3:30."""
    if len(text) > LONGEST_NUMBER or not any(c.isdigit() for c in text):
        return False
    number = None if _ORDINAL.search(undress(text)) else read_number(text)  # "on the 5th" counts nothing
    return number is not None or re.fullmatch(r"\d+(?::\d\d)+", text) is not None


def same_number(given: Quantity, gold: Quantity) -> bool:
    """Whether two numbers are equal exactly: 0.333 is not 1/3, and 5 cm is not 5 m.

    A missing unit is no difference. A percentage equals a number without a unit by its value if that number lies
    from -1 to 1 (50% is 0.5), else by its digits (50% is 50): one number, never two, is right for each percentage.
    """
    if not same_unit(given.unit, gold.unit):
        return False
    if given.unit == gold.unit or "%" not in (given.unit, gold.unit):
        return given.value == gold.value
    percent, bare = (given, gold) if given.unit == "%" else (gold, given)
    return percent.value == bare.value * (100 if 0 < abs(bare.value) <= 1 else 1)


def split_unit(text: str) -> tuple[str, str]:
    """Split an expression into itself without the unit at its end, and the symbol of a known unit, else ""."""
    tail = _TAIL.search(text)
    unit = _unit(tail[0]) if tail and not _CONDITION.search(tail[0]) else None
    if tail and unit and unit.value == 1 and unit.unit != "%" and (unit.unit or "\\" in tail[0]):
        return text[: tail.start()], unit.unit
    return text, ""


def _quantity(text: str) -> Quantity | None:
    match = _NUMBER.fullmatch(text)
    unit = _unit(match["unit"]) if match else None
    if match is None or unit is None or (match["sign"] and match["inner_sign"]):
        return None
    exponent, bottom = int(match["exponent"] or 0), _exact(match["bottom"] or "1")
    if bottom == 0 or abs(exponent) > LARGEST_EXPONENT:
        return None
    sign = -1 if "-" in (match["sign"], match["inner_sign"]) else 1
    size = (_exact(match["whole"] or "0") + _exact(match["top"]) / bottom) * Fraction(10) ** exponent
    currency = (match["currency"] or "").removeprefix("US").lstrip("\\")
    return Quantity(sign * size * unit.value, currency or unit.unit)


def _repeating(match: re.Match[str]) -> str:
    """Write a repeating decimal as a fraction: 0.1666... is (16 - 1)/90."""
    whole, fixed, *period = (part or "" for part in match.groups())
    repeated = "".join(period)
    top = int(whole + fixed + repeated) - int(whole + fixed or "0")
    return f"{top}/{10 ** len(fixed) * (10 ** len(repeated) - 1)}"


def _exact(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", ""))


def _may_equal(left: str, number: Quantity) -> bool:
    """Whether the left side of an equation is a name, a sum of names, arithmetic, or a number equal to the right."""
    if other := _quantity(left):
        return other.value == number.value
    name = _SUBSCRIPT_OR_ARGUMENT.sub("", left)
    return not (re.search("[A-Za-z]", name) and re.search(r"[-*/^\d,;]", name))


def _unit(text: str) -> Quantity | None:
    """Factor and symbol of the text behind a number; None if it is no unit: a variable, or further words."""
    text = _PRODUCT.sub("*", text)
    upright = _UPRIGHT.sub(r"\1", text)
    plain = TEXT_COMMAND.sub(r"\1", upright).replace(r"\mu", "μ").replace(r"\Omega", "Ω")
    apart, plain = plain[:1] in (" ", "("), _ASIDE.sub("", plain).strip().lstrip("\\")
    if not plain:
        return Quantity(Fraction(1))
    if not _UNIT.fullmatch(plain) or _NO_UNIT.search(_POWER.sub("", plain)):
        return None
    word, _, rest = plain.partition(" ")
    scale = _SCALES.get(word.lower(), 1)
    symbol = (
        unit_of(plain, upright == text, apart) if scale == 1 else unit_of(rest, upright == text, True) if rest else ""
    )
    return None if symbol is None else Quantity(Fraction(scale), symbol)
