"""Plain spelling of an answer: without typographic characters, LaTeX spacing, math and bold marks."""

import re
import unicodedata
from functools import lru_cache

_LATEX = {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt "}
_LATEX |= {"∪": r"\cup ", "°": r"^\circ", "∅": r"\emptyset", "\u200b": "", "\ufeff": ""}
# NFKC makes full-width characters and odd spaces ASCII. It would lose these: the exponent of 2², the space in 1½.
_EXPONENTS = {character: f"^{digit}" for digit, character in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_FRACTIONS = {character: f" {character}" for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
_SIGNS = str.maketrans("\u2212\u2010\u2011\u2012\u2013\ufe63\u2215÷×·⋅、。", "------//***,.")
_CHARACTERS = _SIGNS | str.maketrans(_LATEX | _EXPONENTS | _FRACTIONS)

_STYLES = r"text(?:bf|it|rm|sf|up)?|math(?:rm|bf|it|sf)|mbox|boldsymbol|underline|operatorname|rm|bf"
TEXT_COMMAND = re.compile(rf"\\(?:{_STYLES})\s*\{{([^{{}}]*)\}}")
_NOISE = re.compile(
    r"(?<!\\)\\(?:left|right|displaystyle|[bB]ig[lr]?|[lL]arge|LARGE|[hH]uge|!)(?![A-Za-z])|(?<!\\)\\[()\[\]]|\*\*|`"
    r"|\\(?:text)?color\s*\{[^{}]*\}"
)
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|(?<!\\)~|\s+")
_MATH = re.compile(r"(?<!\\)\$\$?([^$]*[^$\\])\$\$?")
_ALIAS_PAIRS = r"leq \le; geq \ge; neq \ne; lbrace \{; rbrace \}; mid |; vert |; lvert |; rvert |; varnothing \emptyset"
_ALIASES = dict(pair.split() for pair in rf"{_ALIAS_PAIRS}; dfrac \frac; tfrac \frac; cfrac \frac".split(";"))
_ALIAS = re.compile(rf"\\({'|'.join(_ALIASES)})(?![A-Za-z])")


def plain_characters(text: str) -> str:
    """Replace full-width digits, typographic signs and spaces by their ASCII or LaTeX counterparts."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).replace("\u2044", "/")


@lru_cache(maxsize=4096)
def undress(text: str) -> str:
    """Remove math and bold marks, LaTeX spacing, \\text{...} around all of it, and a last full stop."""
    text = plain_characters(text).replace("{,}", ",").replace("{:}", ":").replace(r",\!", ",")
    text = _SPACES.sub(" ", _NOISE.sub("", _MATH.sub(r"\1", text)))
    text = _ALIAS.sub(lambda m: _ALIASES[m[1]], text).strip().removesuffix(".").strip()
    while wrapped := TEXT_COMMAND.fullmatch(text) or re.fullmatch(r"\{((?:[^{}]|\{[^{}]*\})*)\}", text):
        text = wrapped[1].strip().removesuffix(".").strip()
    return text
