"""Layouts of question-answer files: which fields hold the question and its answer, as values.

A layout is a Python value (`JsonlProblems("math.jsonl", layout=MATH)`). A command line names a preset
(`--set task.layout=MATH`) or sets field by field (`--set task.layout.question=problem`). `rl-llm data-report FILE` says
which preset fits a file.
"""

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from rl_llm.config.fields import Checked
from rl_llm.tasks.messages import Message, prompt_of, refuse_shown
from rl_llm.tasks.tables import Fields, text_of

QUESTION_PARTS = ("context", "passage", "body", "Body", "options", "choices")  # usual fields beside the question's own
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LIST = re.compile(r"""\[\s*(["']).*["']\s*\]""", re.DOTALL)  # [1, 2] without quotes is an interval


@dataclass(frozen=True)
class Layout(Checked):
    """Fields of a row. A dot leads into a field of a field: `reward_model.ground_truth`.

    `question` names a text or a list of messages; several names are joined by line breaks, without those that are null.
    `answer` names the final answer, or a text that ends in it; numbers are accepted, and lists, as several answers.
    `options` names the choices of a question, shown below it with letters; an answer that is a number is then their
    index. A row with further fields that belong to the question is refused unless they are in `left_out`.
    """

    question: str | tuple[str, ...] = "question"
    answer: str = "answer"
    options: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Fields of the question."""
        return (self.question,) if isinstance(self.question, str) else self.question

    def read(self, row: Fields) -> "Found":
        """Take question and answer out of a row. Raises ValueError naming the field that is missing or unfit."""
        parts = [(name, value_at(row, name)) for name in self.parts]
        answer = value_at(row, self.answer)
        options = _options(value_at(row, self.options)) if self.options else []
        used = [*self.parts, self.answer, *([self.options] if self.options else []), *self.left_out]
        read = {part for name in used for part in (name, name.partition(".")[0])}
        refuse_shown(row, read)
        refuse_shown(row, read, QUESTION_PARTS, "add it to the layout, or to layout.left_out")
        answer = written_answer(_letter(answer, options) if options else answer, self.answer)
        filled = [prompt_of(value, name) for name, value in parts if len(parts) == 1 or value not in (None, "")]
        if len(filled) == 1 and not options:
            return Found(*filled[0], answer)
        if not filled or any(messages for _, messages in filled):
            raise ValueError(f"the fields {', '.join(self.parts)} hold no texts that can be joined")
        return Found("\n".join([*(text.strip() for text, _ in filled), *options]), [], answer)


class Found(NamedTuple):
    """Question and answer of a row; `messages` are empty unless the question is more than one user's message."""

    question: str
    messages: list[Message]
    answer: str


GSM8K = Layout()
MATH = Layout("problem", "solution")  # the solution ends in \boxed{answer}
AIME = Layout("problem", "answer")  # also AMC, MATH-500, NuminaMath
DAPO = Layout("prompt", "reward_model.ground_truth")  # and all of verl's files
TRL = Layout("prompt", "answer")
PRESETS: Mapping[str, Layout] = {
    "DAPO": DAPO,
    "AQUA": Layout("question", "correct", options="options"),
    "SAT": Layout("question", "Answer", options="options"),
    "OPTIONS": Layout("question", "answer", options="options"),
    "MMLU": Layout("question", "answer", options="choices"),
    "ARC": Layout("question", "answerKey", options="choices"),
    "SVAMP": Layout(("Body", "Question"), "Answer"),
    "ASDIV": Layout(("body", "question"), "answer"),
    "OLYMPIAD": Layout(("context", "question"), "final_answer"),
    "FINAL_ANSWER": Layout("question", "final_answer"),
    "AIME": AIME,
    "OPEN_MATH": Layout("problem", "expected_answer"),
    "MATH": MATH,
    "GSM8K": GSM8K,
    "TRL": TRL,
    "TRL_SOLUTION": Layout("prompt", "solution"),
    "GROUND_TRUTH": Layout("prompt", "ground_truth"),
    "RLVR": Layout("messages", "ground_truth"),
    "MGSM": Layout("question", "answer_number"),
    "METAMATH": Layout("query", "response"),
    "CAPITALS": Layout("Problem", "Answer"),
    "CAPITALS_QUESTION": Layout("Question", "Answer"),
    "OPENRLHF": Layout("input", "label"),
    "MAWPS": Layout("input", "target"),
    "CARP": Layout("content", "answer"),
}
"""Layouts by name, the most specific first."""


def fitting(row: Fields) -> list[str]:
    """Names of the presets that can read a row, the most specific first."""
    return [name for name, layout in PRESETS.items() if _reads(layout, row)]


def advice(row: Fields, layout: Layout) -> str:
    """Name the preset that fits a row which a layout cannot read; empty if none does."""
    name = next((name for name in fitting(row) if PRESETS[name] != layout), None)
    return f"; PRESETS['{name}'] of rl_llm.tasks.layouts fits: --set task.layout={name}" if name else ""


def value_at(row: Fields, path: str) -> Any:
    """Value of a field, or of a field in a field. Raises ValueError naming the fields that there are."""
    if path in row:
        return row[path]
    found: Any = row
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            there = ", ".join(map(repr, found)) if isinstance(found, Mapping) else ""
            raise ValueError(f"the field {path!r} is missing; there are {there or 'none'}")
        found = found[name]
    return found


def _reads(layout: Layout, row: Fields) -> bool:
    try:
        layout.read(row)
        return layout.options is None or value_at(row, layout.options) is not None
    except ValueError:
        return False


def _options(found: Any) -> list[str]:
    """Options as they are shown, one a line: `A) ...`."""
    if found is None or isinstance(found, str):
        return [found.strip()] if found else []
    if isinstance(found, Mapping):
        labels, texts = (found["label"], found["text"]) if set(found) == {"label", "text"} else (found, found.values())
    else:
        labels, texts = _LETTERS[: len(found)], found
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the options {str(found)[:80]} are no texts")
    pairs = list(zip(labels, texts, strict=True))
    if all(re.match(rf"\s*\(?{re.escape(label)}\s*[).:]", text) for label, text in pairs):
        return [text.strip() for text in texts]
    return [f"{label}) {text.strip()}" for label, text in pairs]


def _letter(answer: Any, options: list[str]) -> Any:
    """Letter of an option that is given by its index; any other answer as it is."""
    if type(answer) is not int:
        return answer
    if not 0 <= answer < len(options):
        raise ValueError(f"the answer {answer} is no index of the {len(options)} options")
    return _LETTERS[answer]


def written_answer(answer: Any, field: str) -> str:
    """Text of an answer: 27.0 is 27, and a list is its elements, also if it is written as text: '["3", "4"]'."""
    if isinstance(answer, str) and _LIST.fullmatch(answer.strip()):
        try:
            answer = ast.literal_eval(answer.strip())  # JSON as well: the texts of both are written alike
            if not "".join(map(str, answer)).isprintable():
                raise ValueError("a backslash was lost")
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"the field {field!r} is {answer!r}; expected a list in JSON ({error})") from error
    if isinstance(answer, list) and answer:
        return ", ".join(written_answer(part, field) for part in answer)
    if isinstance(answer, float) and answer.is_integer():
        return str(int(Decimal(repr(answer))))  # int(1e23) is 99999999999999991611392
    if isinstance(answer, bool | int | float | Decimal) and math.isfinite(answer):
        return str(answer)
    return text_of({field: answer}, field)
