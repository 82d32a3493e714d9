"""What does not change an answer, removed: typographic characters, LaTeX spacing, math and bold marks."""

import re
import unicodedata
from functools import lru_cache

_FULL_WIDTH = {0xFF01 + i: chr(0x21 + i) for i in range(94)}
_SIGNS = str.maketrans("\u2212\u2010\u2011\u2012\u2013\ufe63\u2044\u2215÷×·⋅、。", "------///***,.")
_SPACES_AND_NOTHING = {**dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x3000], " "), 0x200B: "", 0xFEFF: ""}
_LATEX = {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt "}
_LATEX |= {"∪": r"\cup ", "°": r"^\circ", **{c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}}
_FRACTIONS = {c: f" {unicodedata.normalize('NFKC', c)}".replace("\u2044", "/") for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
_CHARACTERS = _FULL_WIDTH | _SIGNS | _SPACES_AND_NOTHING | str.maketrans(_LATEX | _FRACTIONS)

TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|sf|up)?|math(?:rm|bf|it|sf)|mbox|operatorname|rm|bf)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"(?<!\\)\\(?:left|right|displaystyle|[bB]ig[lr]?|!)(?![A-Za-z])|(?<!\\)\\[()\[\]]|\*\*|`")
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|(?<!\\)~|\s+")
_MATH = re.compile(r"(?<!\\)\$\$?([^$]*[^$\\])\$\$?")
_ALIAS_OF = {"leq": r"\le", "geq": r"\ge", "neq": r"\ne", "lbrace": r"\{", "rbrace": r"\}", "mid": "|", "vert": "|"}
_ALIAS_OF |= {"lvert": "|", "rvert": "|", "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac"}
_ALIAS = re.compile(rf"\\({'|'.join(_ALIAS_OF)})(?![A-Za-z])")


def plain_characters(text: str) -> str:
    """Replace full-width digits, typographic signs and spaces by their ASCII or LaTeX counterparts."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text.translate(_CHARACTERS))


@lru_cache(maxsize=4096)
def undress(text: str) -> str:
    """Remove math and bold marks, LaTeX spacing, \\text{...} around all of it, and a last full stop."""
    text = plain_characters(text).replace("{,}", ",").replace(r",\!", ",")
    text = _SPACES.sub(" ", _NOISE.sub("", _MATH.sub(r"\1", text)))
    text = _ALIAS.sub(lambda m: _ALIAS_OF[m[1]], text).strip().removesuffix(".").strip()
    while wrapped := TEXT_COMMAND.fullmatch(text) or re.fullmatch(r"\{([^{}]*)\}", text):
        text = wrapped[1].strip().removesuffix(".").strip()
    return text
