"""Scorers of reasoning-gym that evaluate the text of a response: ours instead of theirs, or none.

`eval` and sympy's parsers run any Python that a response contains, in the process that decides its reward. Each scorer
here has a bounded grammar and gives the scores that reasoning-gym documents; where theirs pays wrong answers, ours
does not.
"""

import ast
import builtins
import dis
import json
import operator
import re
from collections.abc import Callable, Container, Iterator
from fractions import Fraction
from types import CodeType, FunctionType, ModuleType
from typing import Any

LONGEST_EXPRESSION, LONGEST_LIST = 300, 20_000  # characters

_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_EVALUATORS = (builtins.eval, builtins.exec, builtins.compile, builtins.__import__)
_EVALUATING_PACKAGES = {"sympy", "numexpr", "pickle", "yaml", "importlib", "subprocess", "os", "code"}


def read_arithmetic(text: str) -> tuple[Fraction, list[int]]:
    """Return the exact value of an expression of whole numbers, + - * / and parentheses, and its sorted numbers.

    Raises ValueError for anything else, a division by zero too.
    """
    text = text.strip()
    if len(text) > LONGEST_EXPRESSION or not re.fullmatch(r"[\d\s()+*/-]+", text, re.ASCII):
        raise ValueError(f"{text[:80]!r} is no arithmetic expression of at most {LONGEST_EXPRESSION} characters")
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:80]!r} has no value: {error}") from None
    return value, sorted(map(int, re.findall(r"\d+", text)))


def _value(node: ast.AST) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            return _value(node.operand) * (-1 if isinstance(node.op, ast.USub) else 1)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(f"{ast.unparse(node)[:80]!r} is more than numbers and + - * /")


def _countdown(dataset: Any, answer: str, entry: dict[str, Any]) -> float:
    try:
        value, numbers = read_arithmetic(answer)
    except ValueError:
        return 0.01
    found = entry["metadata"]
    return 1.0 if numbers == sorted(found["numbers"]) and value == found["target"] else 0.05


def _puzzle24(dataset: Any, answer: str, entry: dict[str, Any]) -> float:
    """Ask for the problem's own four numbers, too: theirs pays 6*4*1*1 for every problem, and 24.9."""
    try:
        found = read_arithmetic(answer)
    except ValueError:
        return 0.01
    return 1.0 if found == (24, sorted(entry["metadata"]["numbers"])) else 0.01


def _bitwise_arithmetic(dataset: Any, answer: str, entry: dict[str, Any]) -> float:
    """Compare with the stored result; theirs evaluates the problem, which a file may have brought."""
    try:
        return float(int(answer, 0) == int(entry["answer"], 16))
    except ValueError:
        return 0.0


def _number_sorting(dataset: Any, answer: str, entry: dict[str, Any]) -> float:
    """Give the gold as JSON; theirs evaluates any other."""
    gold = json.dumps(json.loads(entry["answer"].replace("'", '"')))
    return float(dataset.score_answer(answer, {**entry, "answer": gold}))


def _literal(answer: str, right: Container[str], write: Callable[[Any], str], partial: float) -> float:
    """1.0 for a right text, `partial` for a Python list that `write` turns into one."""
    if answer in right:
        return 1.0
    try:
        written = write(ast.literal_eval(answer)) if len(answer) <= LONGEST_LIST else ""
    except Exception:  # a text that is no list, of any depth
        return 0.0
    return partial if written in right else 0.0


def _rows(board: Any) -> str:
    return "\n".join(" ".join(map(str, row)) for row in board)


Scorer = Callable[[Any, str, dict[str, Any]], float]
SCORERS: dict[str, Scorer] = {
    "countdown": _countdown,
    "puzzle24": _puzzle24,
    "bitwise_arithmetic": _bitwise_arithmetic,
    "number_sorting": _number_sorting,
    "binary_matrix": lambda _, answer, entry: _literal(answer, (entry["answer"],), _rows, 0.1),
    "n_queens": lambda _, answer, entry: _literal(answer, entry["metadata"]["valid_answers"], _rows, 0.5),
    "spiral_matrix": lambda _, answer, entry: _literal(
        answer.strip(), (entry["answer"].strip(),), lambda found: " ".join(map(str, found)), 0.1
    ),
    "string_insertion": lambda _, answer, entry: _literal(answer, (entry["answer"],), "".join, 0.1),
}


def evaluating_call(dataset: Any) -> str | None:
    """Name a call by which a data set's scorer may evaluate text, itself or through functions of its package.

    Read from the byte code, so that scorers of later versions are judged as well. A scorer that hands the answer to
    another one counts, because that one is not known.
    """
    package = type(dataset).__module__.partition(".")[0]
    waiting: list[Any] = [type(dataset).score_answer]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, type):
            waiting += [getattr(found, "__func__", found) for found in vars(item).values()]
        if not isinstance(item, FunctionType):
            continue
        for name, used in _used(item, dataset):
            owner = used.__name__ if isinstance(used, ModuleType) else str(getattr(used, "__module__", ""))
            if any(used is known for known in _EVALUATORS) or name == "score_answer":
                return name
            if owner.partition(".")[0] in _EVALUATING_PACKAGES:
                return owner if isinstance(used, ModuleType) else f"{owner}.{name}"
            if owner.partition(".")[0] == package:
                waiting.append(used)
    return None


def _used(function: FunctionType, dataset: Any) -> Iterator[tuple[str, Any]]:
    """Names that a function loads, with their values where these are known: globals, imports and attributes."""
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        owner: Any = None
        for step in dis.get_instructions(code):
            name = str(step.argval)
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                owner = function.__globals__.get(name, getattr(builtins, name, None))
            elif step.opname == "IMPORT_NAME":
                owner = ModuleType(name)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"):
                of_dataset = vars(dataset).get(name, getattr(type(dataset), name, None))
                owner = getattr(owner, name, of_dataset) if isinstance(owner, ModuleType | type) else of_dataset
            else:
                continue
            yield name, owner
