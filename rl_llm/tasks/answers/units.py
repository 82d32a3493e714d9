"""Units behind a number: which texts are units, and which of two units are the same."""

import re
from collections import Counter

_PREFIXES = "k kilo; K kilo; M mega; G giga; T tera; d deci; c centi; m milli; μ micro; u micro; n nano; p pico"
_METRIC = """m meter metre 米; g gram 克; s second 秒; A ampere amp; K kelvin; mol mole; N newton; J joule; W watt;
    Pa pascal; Hz hertz; V volt; C coulomb; F farad; T tesla; H henry; l liter litre 升; L liter litre; eV electronvolt;
    cal calorie; Ω ohm; B byte; Wh watthour; bar bars; erg; dyn dyne"""
_COMBINED = """in inch inches; ft foot feet; yd yard; mi mile; lb lbs pound; oz ounce; min mins minute 分钟;
    h hr hrs hour 小时; s sec; g gm gms; kg kgs 公斤; km kms 公里; cm cms 厘米; mm mms 毫米; dm 分米; ml; l"""
_SINGLE = """% percent pct percentage; $ dollar usd bucks; cent ¢; € euro eur; £; ¥ yen yuan rmb 元; ₹ rupee rs inr;
    peso; day 天; week; month; year yr yrs; ° degree deg degrees; °C celsius; °F fahrenheit; rad radian; rpm"""
_SHORT = {"mph": "mi/h", "kph": "km/h", "kmph": "km/h", "kmh": "km/h", "cc": "cm^3", "kwh": "kWh", "hz": "Hz"}


def _names(table: str) -> dict[str, str]:
    """Symbols by their names and the plurals of these."""
    rows = [row.split() for row in table.split(";")]
    return {name + end: row[0] for row in rows for name in row for end in (("", "s") if len(name) > 2 else ("",))}


_PLAIN = _names(_COMBINED) | _names(_SINGLE)
_PARTS = {name: symbol.replace("L", "l") for name, symbol in _names(_METRIC).items()}
_PREFIXED = {
    prefix + name: parts[0].replace("K", "k").replace("u", "μ") + symbol
    for parts in map(str.split, _PREFIXES.split(";"))
    for name, symbol in _PARTS.items()
    for prefix in parts
    if (len(prefix) == 1) == (name in ("L", symbol))
}
_UNITS = _PARTS | _PREFIXED | _PLAIN
_ALONE = set(_names(_SINGLE).values())
_TIMES = {"s", "min", "h"}
_RAISED = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_FACTOR = re.compile(
    r"[ *-]*(/|per )? ?(?:(square|sq|cubic|cu)\.? )?([^\W\d_]+|[%$¢€£¥₹])\.?"
    r"(?:(?: ?\^ ?\{? ?|(?=\d))(-?\d) ?\}?| (squared|cubed)(?![a-z]))?"
)
_TEMPERATURE = re.compile(r"(?i)deg(?:ree)?s? ?([CF])(?:elsius|ahrenheit)?")
_NOUN = re.compile(r"\(?[^\W\d_][A-Za-z /.,'-]*\)?(?: ?\^ ?\{?\d\}?)?|[\u4e00-\u9fff]+")
_NO_VARIABLES = re.compile(r"k[A-Z]\w*|[kM]?Ω|[kMGTmμ]?(?:Hz|Pa|eV|Wh|mol|cal|bar)|[MGT][BW]|m/s(?: ?\^ ?\{?2\}?)?")


def unit_of(text: str, bare: bool, apart: bool) -> str | None:
    """Symbol of a known unit ("%", "cm^2", "m s^-1"), "" for another noun, None for what may be a variable.

    `bare` text is not set in an upright font, as a unit is; text is `apart` if a space is before it.
    """
    enclosed = text[0] == "(" and text[-1] == ")"  # 45 (DVDs)
    text, bare = text.strip("() ") if enclosed else text, bare and not enclosed
    words = re.findall(r"[^\W\d_]+|[%$¢€£¥₹]", text)
    first, symbol = words[0], _symbol(text)
    if bare:  # 9 apples, 4cm and 5 km/h have units; 4x, 4 x, 4 xyz and 4 nm are products of variables
        by_length = "/" in text and any(len(word) > 1 for word in words)
        is_known = _is_plain(first) or (apart and symbol and (by_length or _NO_VARIABLES.fullmatch(text)))
    else:  # but 3\text{A} may be a number in base 16
        is_known = (symbol or _unit(first)) and (apart or first not in "ABCF")
    if symbol and (is_known or first in _RAISED):
        return symbol
    is_word = len(first) > 2 and re.search("[aeiouy]", first, re.IGNORECASE) and not re.search("[a-z][A-Z]", first)
    is_word = is_word or first in _RAISED or (enclosed and len(first) > 1)
    fits = is_known or (is_word and (apart or not bare)) or first[0] >= "\u4e00"
    fits = fits and all(len(word) > 1 or word == "a" or (not bare and _unit(word)) for word in words[1:])
    return "" if fits and _NOUN.fullmatch(text) else None


def same_unit(one: str, other: str) -> bool:
    """Whether two symbols of units agree. A missing one is no difference, nor is the scale of degrees."""
    return not one or not other or one == other or ("°" in (one, other) and one[0] == other[0])


def _unit(name: str) -> str | None:
    return _UNITS.get(name) or (_UNITS.get(name.lower()) if len(name) > 1 else None)


def _is_plain(name: str) -> bool:
    """Whether a text is a unit in any font: a sign, a word, or a usual abbreviation of several letters."""
    if len(name) > 1:
        return name.lower() in _PLAIN | _SHORT or (len(name) > 3 and name.lower() in _UNITS)
    return (name in _UNITS and not name.isascii()) or name in "%$"


def _symbol(text: str) -> str:
    """Symbol of a unit, or of a product of units, with sorted powers; "" if one of them is not known."""
    if temperature := _TEMPERATURE.fullmatch(text):
        return f"°{temperature[1].upper()}"
    text = _SHORT.get(text.lower(), text)
    powers: Counter[str] = Counter()
    position = 0
    while position < len(text):
        match = _FACTOR.match(text, position)
        symbol = _unit(match[3]) if match else None
        if match is None or symbol is None:
            return ""
        power = int(match[4] or _RAISED.get(match[2] or match[5] or "", 1))
        powers[symbol] += -power if match[1] else power
        position = match.end()
    if (_ALONE & set(powers) and (len(powers) > 1 or set(powers.values()) != {1})) or (
        len(powers) > 1 and set(powers) <= _TIMES
    ):
        return ""  # dollars per day; minutes per hour
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items()))
