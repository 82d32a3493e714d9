"""Question-answer files as tasks: JSONL -> checked lines -> a prepared copy (`rl_llm.tasks.prepared`) -> problems.

One line is {"question": "...", "answer": "reasoning #### 42"}. The file is checked as a whole and prepared once; the
copy is split by the hash of the question.
"""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from rl_llm.problem import Problem, Split, problem_id, split_of
from rl_llm.tasks.answer import extract_answer
from rl_llm.tasks.prepared import Prepared, Record, parse_lines, prepare, text_of

FIELDS = ("question", "solution", "answer")

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(rf"([-+]?)\$?({_WHOLE}(?:\.\d*)?|\.\d+)", re.ASCII)
_NUMBER_IN_TEXT = re.compile(rf"(?<![\d.])(?:(?<![\d)])-)?\$?(?:{_WHOLE}(?:\.\d+)?|\.\d+)", re.ASCII)


@dataclass(frozen=True)
class JsonlProblems:
    """The problems of a JSONL file. Needs the extra `data`.

    path: the file. answer_pattern: a regular expression with one group, the final answer within the field
    "answer". data_dir: where prepared copies are kept; by default the folder `.tfds` beside the file.
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
            raise ValueError(f"answer_pattern={self.answer_pattern!r} has {groups} groups: it needs one")

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """`count` problems of a split in the order that the seed gives, or all if there are fewer.

        The text that leads to an answer is metadata["solution"]. Raises ValueError for a malformed line
        (naming it), for a damaged prepared copy, and for a split without problems.
        """
        prepared = self._prepare()
        if split not in prepared.sizes:
            raise ValueError(f"{self.path} has no {split} problems, only {prepared.sizes}: add lines to it")
        return [self._problem(record) for record in prepared.read(split, seed, count)]

    def verify(self, problem: Problem, response: str) -> float:
        """1.0 if the final answer of the response equals the stored one, else 0.0; "1,000" equals "1000.0".

        The final answer is the text in the last `<answer>...</answer>`, or else after the last "####", or
        else the last number.
        """
        answer = extract_answer(response)
        if answer is None:
            _, mark, answer = response.rpartition("####")
            if not mark:
                answer = (["", *_NUMBER_IN_TEXT.findall(response)])[-1]
        return 1.0 if normalize(answer) == normalize(problem.answer) else 0.0

    def _problem(self, record: Record) -> Problem:
        question = record["question"]
        solution = {"solution": record["solution"]}
        return Problem(problem_id(self.name, question), question, record["answer"], metadata=solution)

    def _prepare(self) -> Prepared:
        """The prepared copy, which is made first if this content has none."""
        path = Path(self.path)
        if not path.is_file():
            raise FileNotFoundError(
                f"task.path={str(self.path)!r} is no file: set it to a JSONL file of questions and answers, e.g. "
                "GSM8K's\n  curl -LO https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"
                "train.jsonl"
            )
        content = path.read_bytes()

        def by_split() -> dict[str, list[Record]]:
            splits: dict[str, list[Record]] = {}
            for record in read_records(path, content, self.answer_pattern):
                splits.setdefault(split_of(record["question"]), []).append(record)
            return splits

        return prepare(path, content, FIELDS, by_split, self.data_dir, self.answer_pattern)


def read_records(path: Path, content: bytes, answer_pattern: str) -> list[Record]:
    """The question, solution and answer of each line. Raises ValueError naming file, line and reason."""
    lines_of_questions: dict[str, int] = {}

    def parse(found: dict[str, Any], number: int) -> Record:
        record = _parse(found, answer_pattern)
        first = lines_of_questions.setdefault(record["question"], number)
        if first != number:
            raise ValueError(f"the same question stands in line {first}")
        return record

    return list(parse_lines(path, content, parse))


def _parse(found: dict[str, Any], answer_pattern: str) -> Record:
    question, text = text_of(found, "question"), text_of(found, "answer")
    match = re.search(answer_pattern, text)
    answer = (match.group(1) or "").strip() if match else ""
    if match is None or not answer:
        raise ValueError(f"the final answer {answer_pattern!r} is not found in 'answer', which ends in {text[-40:]!r}")
    solution = text[: match.start()].strip()
    # One question in two spellings of the same text would be two problems, perhaps on both sides of a split.
    question = unicodedata.normalize("NFC", question).strip()
    return {"question": question, "solution": solution, "answer": answer}


def normalize(answer: str) -> Decimal | str:
    """What two equal answers share: the number if the text is one ("$1,000.", "1000.0"), or else the text."""
    text = answer.strip()
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text.rstrip(".").casefold()
    sign, digits = number.groups()
    return Decimal(sign + digits.replace(",", ""))
