"""Question-answer files as tasks: rows (`tables`) -> questions and answers (`layouts`) -> a prepared copy -> problems.

A file is checked as a whole and prepared once. Without files of their own, splits are decided by the hash of the
question. A question that stands in a file several times is one problem.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rl_llm.config.fields import Checked
from rl_llm.problem import Problem, Split, problem_id, split_of
from rl_llm.tasks.answers import MARKS, Mark, equal_answers, grade_answer, needs_math, require_math_verify, split_gold
from rl_llm.tasks.answers.numbers import plain_characters
from rl_llm.tasks.layouts import GSM8K, PRESETS, Layout, advice
from rl_llm.tasks.prepared import PreparedCopy, Splits, prepare_copy
from rl_llm.tasks.tables import Fields, Files, Parsed, TextRecord, parse_rows, read_files

logger = logging.getLogger(__name__)

QUESTION_FIELDS = ("question", "messages", "solution", "answer")
WHOLE = "whole"  # part of a prepared copy that belongs to every split; tfds reserves the name "all"
_WORD_AND_MORE = re.compile(r"[a-z] .", re.DOTALL | re.IGNORECASE)
PARSER = 5  # raised with every change of code that makes other records of the same file, that of answers included


@dataclass(frozen=True)
class JsonlProblems(Checked):
    """Problems of a data file (JSONL, JSON, parquet, CSV, gzip; `rl_llm.tasks.tables`). Needs the extra `data`.

    `layout` names the fields (presets: `rl_llm.tasks.layouts`). `marks` are the places of a final answer that are tried
    in order, in responses and in the file's answers.

    `path` is cut into train, validation and held-out problems, 80/10/10, by the hash of the question. A split with a
    file of its own, `validation` or `held_out`, is that whole file, and its share of `path` goes to train. With
    `split="all"` every split without a file of its own is the whole of `path`: to evaluate, not to train.

    A question that is repeated within a file counts once, and one with several answers is left out, both whatever its
    case and spacing. One in the files of two splits is refused.
    `data_dir` keeps prepared copies, by default in the folder `.tfds` beside the file.
    """

    path: str | Path
    marks: tuple[Mark, ...] = MARKS
    layout: Annotated[Layout, PRESETS] = GSM8K
    validation: str | Path | None = None
    held_out: str | Path | None = None
    split: Literal["hash", "all"] = "hash"
    data_dir: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.layout, Layout):
            raise ValueError(
                f"JsonlProblems.layout={self.layout!r} is no Layout; expected a value of rl_llm.tasks.layouts: "
                f"Layout(question, answer), or PRESETS[NAME] with a NAME among {', '.join(PRESETS)}"
            )
        if not self.marks:
            raise ValueError(f"JsonlProblems.marks is empty; expected some of {', '.join(MARKS)}")

    @property
    def name(self) -> str:
        return Path(str(self.path).removesuffix(".gz")).stem

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Return `count` problems of a split, shuffled by the seed, or all if there are fewer.

        metadata["solution"] is the text that leads to the answer, and metadata["messages"] the messages that are shown
        if the question is more than one user's message. Raises ValueError naming a malformed row, and for a damaged
        prepared copy or a split without problems.
        """
        prepared = self._prepare()
        part = WHOLE if self.split == "all" and split not in self._own_files else split
        if part == WHOLE and part not in prepared.sizes:
            raise ValueError(f"{self.path} has no problem left: each of its questions has several answers; mend them")
        if part not in prepared.sizes:
            raise ValueError(
                f"{self.path} has no {split} problems, only {prepared.sizes}: add lines to it, or give the split a "
                "file of its own (validation=FILE, held_out=FILE)"
            )
        problems = [problem_of(self.name, record) for record in prepared.read(part, seed, count)]
        self.expect(problem.answer for problem in problems)
        return problems

    def expect(self, golds: Iterable[str]) -> None:
        """Let grading processes load math-verify when they start if one of the gold answers needs it.

        Loading takes seconds, which must not count towards the time limit of the first response. Raises ImportError if
        math-verify is needed and missing.
        """
        if any(map(needs_math, golds)):
            require_math_verify()
            self.__dict__["_needs_math"] = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_needs_math" in state:
            require_math_verify()

    def verify(self, problem: Problem, response: str) -> float:
        """Return 1.0 if the final answer of the response equals the stored one, else 0.0 (`rl_llm.tasks.answers`)."""
        return grade_answer(response, problem.answer, self.marks)

    def parse(self, files: Files) -> Iterator[Parsed]:
        """Yield all rows of files with their records, repeated questions included, and the errors of the others.

        Answers that are sentences without a mark come last. If most answers have a mark, they are errors.
        """
        sentences, marked = [], 0
        for parsed in parse_rows(files, self._record):
            record = parsed.record
            if not isinstance(record, ValueError) and not record["solution"] and is_sentence(record["answer"]):
                sentences.append((parsed, record["answer"]))
            else:
                marked += 0 if isinstance(record, ValueError) else 1 if record["solution"] else -1
                yield parsed
        for parsed, answer in sentences:
            reason = f"{parsed.place}: the answer {answer!r} is a sentence without a mark ({', '.join(self.marks)})"
            yield parsed if marked <= 0 else parsed._replace(record=ValueError(reason))

    @property
    def _own_files(self) -> Mapping[str, str | Path]:
        own = {"validation": self.validation, "held_out": self.held_out}
        return {split: path for split, path in own.items() if path is not None}

    def _prepare(self) -> PreparedCopy:
        files = {"path": read_problem_files(self.path, "task.path")}
        files |= {split: read_problem_files(path, f"task.{split}") for split, path in self._own_files.items()}
        contents = [pair for found in files.values() for pair in found.items()]
        counts = {source: len(found) for source, found in files.items()}
        decided_by = repr((PARSER, self.layout, self.marks, self.split, counts))
        return prepare_copy(
            Path(self.path), contents, QUESTION_FIELDS, lambda: self._splits(files), self.data_dir, decided_by
        )

    def _splits(self, files: Mapping[str, Files]) -> Splits:
        """Records of all splits. Raises ValueError for a malformed row, and for a question in two files."""
        questions = Questions()
        for source, found in files.items():
            for row in self.parse(found):
                if isinstance(record := row.record, ValueError):
                    remedy = f"rl-llm data-report {next(iter(found))} counts such rows; if others remain, --clean CLEAN"
                    raise ValueError(f"{record}\n  mend it: {remedy} writes those") from record
                questions.add(source, row, record)
        if disputed := [*questions.disputed.values()]:
            logger.warning("%d questions with several answers are left out, such as %s", len(disputed), disputed[0])
        splits: dict[str, list[TextRecord]] = {}
        for source, _, record in questions.undisputed:
            splits.setdefault(self._split(source, record["question"]), []).append(record)
        return splits

    def _split(self, source: str, question: str) -> str:
        if source != "path":
            return source
        split = split_of(question)
        return WHOLE if self.split == "all" else "train" if split in self._own_files else split

    def _record(self, row: Fields) -> TextRecord:
        try:
            question, messages, text = self.layout.read(row)
        except ValueError as error:
            raise ValueError(f"{error}{advice(row, self.layout)}") from error
        try:
            solution, answer = split_gold(text, self.marks)
        except ValueError as error:
            raise ValueError(f"the field {self.layout.answer!r}: {error}") from error
        # Normalised, so that two spellings of one question cannot land in two splits.
        question = unicodedata.normalize("NFC", question).strip()
        said = json.dumps(messages, ensure_ascii=False) if messages else ""
        return {"question": question, "messages": said, "solution": solution, "answer": answer}


class Questions:
    """Questions that have been read: `repeated` counts further rows of one, `disputed` names two rows that disagree."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, Parsed, TextRecord]] = {}
        self.disputed: dict[str, str] = {}
        self.repeated = 0

    def add(self, source: str, row: Parsed, record: TextRecord) -> None:
        """Take a row. Raises ValueError if its question stands in another source."""
        key, answer = normalize_text(record["question"]), record["answer"]
        first_source, first, known = self._first.setdefault(key, (source, row, record))
        if first_source != source:
            raise ValueError(
                f"{row.place}: the question stands in {first.place} as well, and no problem may be in two splits; take "
                "it out of one file (`rl-llm data-report FILE --without OTHER --clean CLEAN`)"
            )
        if answer != known["answer"] and not equal_answers(answer, known["answer"]):
            two = f"{row.place}: the question has the answer {answer!r}, but {known['answer']!r} in {first.place}"
            self.disputed.setdefault(key, two)
        else:
            self.repeated += first is not row

    @property
    def undisputed(self) -> list[tuple[str, Parsed, TextRecord]]:
        """Source, first row and record of the questions with one answer, in order."""
        return [first for key, first in self._first.items() if key not in self.disputed]


def normalize_text(text: str) -> str:
    """Remove case, character variants, extra spacing and closing punctuation.

    "!" after a digit or a parenthesis is a factorial and stays.
    """
    text = " ".join(plain_characters(text).casefold().split()).rstrip(" .?:=")
    while text.endswith("!") and (bare := text.rstrip("!"))[-1:] != ")" and not bare[-1:].isdecimal():
        text = bare.rstrip(" .?:=")
    return text


def is_sentence(text: str) -> bool:
    """Whether a text has several words and ends in a full stop."""
    return text.endswith(".") and _WORD_AND_MORE.search(text[:-1]) is not None


def problem_of(task: str, record: TextRecord) -> Problem:
    """Make a problem of a record."""
    metadata: dict[str, Any] = {"solution": record["solution"]}
    if record["messages"]:
        metadata["messages"] = json.loads(record["messages"])
    question = record["question"]
    return Problem(problem_id(task, question), question, record["answer"], metadata=metadata)


def read_problem_files(path: str | Path, field: str) -> Files:
    """Read the files of a path. Raises FileNotFoundError naming the field that holds the path."""
    gsm8k = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/train.jsonl"
    remedy = f"set it to a file of questions and answers, e.g. GSM8K's\n  curl -LO {gsm8k}"
    return read_files(path, f"{field}={str(path)!r} is not a file; {remedy}")
