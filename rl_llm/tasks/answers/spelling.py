"""What does not change an answer, removed: typographic characters, LaTeX spacing, math and bold marks."""

import re
import unicodedata
from functools import lru_cache

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        **dict.fromkeys("\u2044\u2215\u00f7", "/"),
        **dict.fromkeys("\u00d7\u00b7\u22c5", "*"),
        **dict.fromkeys("\u00b0\u00ba", r"^\circ"),
        **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94) if chr(0x21 + i) != "-"},  # full-width forms
        **{c: f" {unicodedata.normalize('NFKC', c)}".replace("\u2044", "/") for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
        **{c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
        **dict(
            zip(
                "≤≥≠±∞π√、。",
                (r"\le ", r"\ge ", r"\ne ", r"\pm ", r"\infty ", r"\pi ", r"\sqrt ", ",", "."),
                strict=True,
            )
        ),
        "∪": r"\cup ",
    }
)
TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|sf|up)?|math(?:rm|bf|it|sf)|mbox|operatorname|rm|bf)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"(?<!\\)\\(?:left|right|displaystyle|[bB]ig[lr]?|!)(?![A-Za-z])|(?<!\\)\\[()\[\]]|\*\*|`")
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|(?<!\\)~|\s+")
_MATH = re.compile(r"(?<!\\)\$\$?([^$]*[^$\\])\$\$?")
_ALIASES = re.compile(r"\\([dtc]frac|leq|geq|neq|lbrace|rbrace|lvert|rvert|mid|vert|(?:l|r)?angle)(?![A-Za-z])")
_ALIAS_OF = {"leq": r"\le", "geq": r"\ge", "neq": r"\ne", "lbrace": r"\{", "rbrace": r"\}"}


def plain_characters(text: str) -> str:
    """Replace full-width digits, typographic signs and spaces by their ASCII or LaTeX counterparts."""
    if text.isascii():
        return text
    text = text.translate(_CHARACTERS)
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


@lru_cache(maxsize=4096)
def undress(text: str) -> str:
    """Remove math and bold marks, LaTeX spacing, \\text{...} around all of it, and a last full stop."""
    text = plain_characters(text).replace("{,}", ",").replace(r",\!", ",")
    text = _SPACES.sub(" ", _NOISE.sub("", _MATH.sub(r"\1", text)))
    text = _ALIASES.sub(lambda m: r"\frac" if "frac" in m[1] else _ALIAS_OF.get(m[1], "|"), text)
    text = text.strip().removesuffix(".").strip()
    while wrapped := TEXT_COMMAND.fullmatch(text) or re.fullmatch(r"\{([^{}]*)\}", text):
        text = wrapped[1].strip().removesuffix(".").strip()
    return text
