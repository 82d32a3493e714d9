"""Equality of expressions, equations and sets. math-verify parses them; random points and math-verify decide.

Everything here may be slow or hang (9^9^9), so it belongs into grading processes with their own time limits. The alarms
of math-verify, which need the main thread, are off. docs/rewards.md lists the faults of math-verify refused here.
"""

import logging
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any

LONGEST_EXPRESSION = 300  # characters
POINTS = 6
FAR_SIGNS = ((1,), (-1,), (1, -1), (1, -1))  # of points beyond all constants: |x - 5| is 5 - x only up to 5
DIGITS = 30  # of a value at a point; two values are equal if all but the last five agree

_FUNCTION = re.compile(r"(?<![\\A-Za-z])((?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp|pi)(?![A-Za-z])")
_OF_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)(?: ?\^ ?\{?\d\}?)?) ?[({]? ?"
    r"(\d+(?:\.\d+)?) ?\^ ?\{? ?\\circ ?\}? ?[)}]?(?! ?[-+*/\\\w])"
)
_LG = re.compile(r"\\lg(?![A-Za-z])")
_ROOT = re.compile(r"\\?sqrt ?(?:\(([^()]*)\)|\{([^{}]*)\}|([A-Za-z\d]))")
# math-verify drops the base of 12_8, the dots of 1, 2, ..., n, the argument of \sqrt(...) and the prime of f'(x).
_MISREAD = re.compile(r"\d_|\\[lcd]?dots|\.\.|\\sqrt ?\(|['\"]|\\prime")


def equal(given: str, gold: str, as_sets: bool = False) -> bool:
    """Whether two expressions, equations or inequalities are equal; a text that cannot be parsed equals nothing.

    `as_sets` compares intervals, unions of them and inequalities by their elements instead.
    """
    require_math_verify()
    letters = [set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text))) for text in (given, gold)]
    if letters[0] != letters[1] and {x.lower() for x in letters[0]} == {x.lower() for x in letters[1]}:
        return False  # math-verify reads X as x
    try:
        left, right = _parse(given), _parse(gold)
        return left is not None and right is not None and _equal(left, right, as_sets)
    except Exception:  # sympy raises errors of many types on odd expressions, which are wrong answers
        return False


def _equal(left: Any, right: Any, as_sets: bool) -> bool:
    import sympy  # type: ignore[import-untyped]

    verify = require_math_verify().verify
    if as_sets:
        no_sets = sympy.FiniteSet | sympy.Tuple | sympy.Expr
        both_sets = not isinstance(left, no_sets) and not isinstance(right, no_sets)
        return both_sets and bool(verify(right, left, timeout_seconds=None, allow_set_relation_comp=True))
    equations = [isinstance(side, sympy.Eq) for side in (left, right)]
    if any(equations):
        return all(equations) and bool(_equal_at_points(left.lhs - left.rhs, right.lhs - right.rhs, up_to_factor=True))
    both_values = isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)
    same = _equal_at_points(left, right) if both_values else None
    return bool(verify(right, left, timeout_seconds=None)) if same is None else same


def _equal_at_points(left: Any, right: Any, up_to_factor: bool = False) -> bool | None:
    """Compare two expressions where both are real; None if they have values at too few points."""
    import sympy

    names = sorted({symbol.name for symbol in left.free_symbols | right.free_symbols})
    if not names and (difference := sympy.sympify(left - right).doit()).is_Rational:
        return bool(difference == 0)
    factors = []
    for values in _points(names, left, right):
        a, b = (
            sympy.N(side.subs({s: values[s.name] for s in side.free_symbols}).doit(), DIGITS) for side in (left, right)
        )
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
            continue
        if a.is_real != b.is_real and not left.has(sympy.I) and not right.has(sympy.I):
            if left.has(sympy.Abs) != right.has(sympy.Abs):
                return False  # \ln|x| has more values than \ln x
            continue  # ln(xy) and ln(x) + ln(y) differ only where the latter is not real
        factors.append(sympy.N(a / b, DIGITS) if b != 0 else sympy.Integer(a == 0))
        expected = factors[0] if up_to_factor else 1
        if abs(sympy.N(factors[-1] - expected, DIGITS)) > sympy.Float(10) ** (5 - DIGITS) * abs(expected):
            return False
    return (not up_to_factor or factors[0] != 0) if len(factors) > (1 if names else 0) else None


def _points(names: list[str], left: Any, right: Any) -> Iterator[dict[str, Any]]:
    """Yield random points from -3 to 3, and for expressions with kinks far ones of both signs."""
    import sympy

    draw = random.Random(0)
    for index in range(POINTS if names else 1):
        sign = (1, 1, -1)[index % 3]
        yield {name: sympy.Rational(draw.choice((1, sign)) * draw.randint(300, 3000), 997) for name in names}
    powers = left.atoms(sympy.Pow) | right.atoms(sympy.Pow)
    roots = [power.base for power in powers if power.exp.is_Rational and not power.exp.is_integer]
    kinks = (sympy.Abs, sympy.Max, sympy.Min, sympy.floor, sympy.ceiling)
    if not names or not (left.has(*kinks) or right.has(*kinks) or any(base.free_symbols for base in roots)):
        return
    numbers = left.atoms(sympy.Rational) | right.atoms(sympy.Rational)
    is_steep = left.has(sympy.exp) or right.has(sympy.exp) or any(power.exp.free_symbols for power in powers)
    sizes = [1, *(max(abs(n.p), n.q) for n in numbers)]
    sizes += [abs(x.base.p) ** x.exp.p for x in powers if x.base.is_Integer and x.exp.is_Integer and 0 < x.exp < 8]
    scale = 1 + min(max(sizes), 10 if is_steep else 10**7)
    for signs in FAR_SIGNS:
        values = {name: sympy.Rational(draw.choice(signs) * draw.randint(3000, 30000) * scale, 997) for name in names}
        at = {symbol: values[symbol.name] for base in roots for symbol in base.free_symbols}
        if not any(base.subs(at).is_negative for base in roots):  # \sqrt x \sqrt y is no \sqrt{xy} there
            yield values


@lru_cache(maxsize=256)
def _parse(text: str) -> Any:
    """Parse one expression as a whole, with its decimals exact; None if that fails."""
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or m[3]}}}", text)
    text = _FUNCTION.sub(r"\\\1", text).replace("**", "^")
    text = _LG.sub(r"\\log_{10}", _OF_DEGREES.sub(r"\1(\\frac{\2\\pi}{180})", text))
    if len(text) > LONGEST_EXPRESSION or _MISREAD.search(text):
        return None
    import sympy

    module = require_math_verify()
    config = module.LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)
    config = replace(config, normalization_config=replace(config.normalization_config, units=False))  # 4m is not 4
    found = module.parse(
        rf"\boxed{{{text}}}",
        extraction_config=[config],
        fallback_mode="no_fallback",
        extraction_mode="first_match",  # else it tries parts of a text that it cannot parse as a whole
        parsing_timeout=None,
    )
    if not found or not isinstance(found[0], sympy.Basic | sympy.MatrixBase):
        return None
    exact: dict[Any, Any] = {number: sympy.Rational(str(number)) for number in found[0].atoms(sympy.Float)}
    exact |= {symbol: sympy.I for symbol in found[0].free_symbols if symbol.name == "i"}
    return found[0].xreplace(exact)


@lru_cache(maxsize=1)
def require_math_verify() -> ModuleType:
    """Import math-verify. Raises ImportError naming the extra to install if it is missing."""
    try:
        import math_verify  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "gold answers that are expressions need math-verify: pip install 'rl_llm[math]', or keep only the problems "
            "with a number, a choice or words as the answer"
        ) from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its alarms are off
    return math_verify
