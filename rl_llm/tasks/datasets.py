"""Question-answer files as tasks: JSONL -> checked lines -> a prepared copy (`rl_llm.tasks.prepared`) -> problems.

A line is {"question": "...", "answer": "reasoning #### 42"}. The file is checked as a whole and prepared once; problems
are assigned to splits by the hash of the question.
"""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from rl_llm.problem import Problem, Split, problem_id, split_of
from rl_llm.tasks.answer import extract_answer
from rl_llm.tasks.prepared import PreparedCopy, Splits, TextRecord, parse_lines, prepare_copy, text_of

QUESTION_FIELDS = ("question", "solution", "answer")

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(rf"([-+]?)\$?({_WHOLE}(?:\.\d*)?|\.\d+)", re.ASCII)
_NUMBER_IN_TEXT = re.compile(rf"(?<![\d.])(?:(?<![\d)])-)?\$?(?:{_WHOLE}(?:\.\d+)?|\.\d+)", re.ASCII)


@dataclass(frozen=True)
class JsonlProblems:
    """Problems of a JSONL file. Needs the extra `data`.

    `answer_pattern` is a regular expression with one group, the final answer in the field "answer". `data_dir` keeps
    prepared copies, by default in the folder `.tfds` beside the file.
    """

    path: str | Path
    answer_pattern: str = r"####\s*(.+)$"
    data_dir: str | Path | None = None

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.answer_pattern).groups
        except re.error as error:
            message = f"answer_pattern={self.answer_pattern!r} is not a regular expression: {error}"
            raise ValueError(message) from error
        if groups != 1:
            raise ValueError(f"answer_pattern={self.answer_pattern!r} has {groups} groups; expected one")

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Return `count` problems of a split, shuffled by the seed, or all if there are fewer.

        metadata["solution"] is the text that leads to the answer. Raises ValueError naming a malformed line, and for a
        damaged prepared copy or a split without problems.
        """
        prepared = self._prepare()
        if split not in prepared.sizes:
            raise ValueError(f"{self.path} has no {split} problems, only {prepared.sizes}: add lines to it")
        return [
            Problem(
                problem_id(self.name, record["question"]),
                record["question"],
                record["answer"],
                metadata={"solution": record["solution"]},
            )
            for record in prepared.read(split, seed, count)
        ]

    def verify(self, problem: Problem, response: str) -> float:
        """Return 1.0 if the final answer equals the stored one, else 0.0; "1,000" equals "1000.0".

        The final answer is the text in the last `<answer>...</answer>`, else after the last "####", else the last
        number.
        """
        answer = extract_answer(response)
        if answer is None:
            _, mark, answer = response.rpartition("####")
            if not mark:
                answer = (["", *_NUMBER_IN_TEXT.findall(response)])[-1]
        return 1.0 if normalize_answer(answer) == normalize_answer(problem.answer) else 0.0

    def _prepare(self) -> PreparedCopy:
        path = Path(self.path)
        if not path.is_file():
            raise FileNotFoundError(
                f"task.path={str(self.path)!r} is not a file; set it to a JSONL file of questions and answers, e.g. "
                "GSM8K's\n  curl -LO https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"
                "train.jsonl"
            )
        content = path.read_bytes()
        records = partial(_records_by_split, path, content, self.answer_pattern)
        return prepare_copy(path, content, QUESTION_FIELDS, records, self.data_dir, self.answer_pattern)


def _records_by_split(path: Path, content: bytes, answer_pattern: str) -> Splits:
    """Parse question, solution and answer of all lines. Raises ValueError naming file, line and reason."""
    splits: dict[str, list[TextRecord]] = {}
    first_lines: dict[str, int] = {}

    def parse(found: dict[str, Any], number: int) -> TextRecord:
        record = _parse(found, answer_pattern)
        first = first_lines.setdefault(record["question"], number)
        if first != number:
            raise ValueError(f"the question repeats line {first}")
        return record

    for record in parse_lines(path, content, parse):
        splits.setdefault(split_of(record["question"]), []).append(record)
    return splits


def _parse(found: dict[str, Any], answer_pattern: str) -> TextRecord:
    question, text = text_of(found, "question"), text_of(found, "answer")
    match = re.search(answer_pattern, text)
    answer = (match.group(1) or "").strip() if match else ""
    if match is None or not answer:
        raise ValueError(f"the final answer {answer_pattern!r} is not found in 'answer', which ends in {text[-40:]!r}")
    # Normalised, so that two spellings of one question cannot land in two splits.
    question = unicodedata.normalize("NFC", question).strip()
    return {"question": question, "solution": text[: match.start()].strip(), "answer": answer}


def normalize_answer(answer: str) -> Decimal | str:
    """Reduce an answer to a key that equal answers share: its number ("$1,000.", "1000.0") or else its text."""
    text = answer.strip()
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text.rstrip(".").casefold()
    sign, digits = number.groups()
    return Decimal(sign + digits.replace(",", ""))
