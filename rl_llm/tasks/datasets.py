"""Question-answer files as tasks: JSONL -> checked lines -> ArrayRecord (a tfds builder) -> grain.

One line is {"question": "...", "answer": "reasoning #### 42"}. The file is checked as a whole and prepared
once; a prepared copy is split by the hash of the question, and belongs to the exact content of the file.
TensorFlow is not needed. tfds and grain are imported when problems are asked for, so that a grading worker
never pays for them.
"""

import contextlib
import functools
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

from rl_llm.problem import Problem, Split, problem_id, split_of
from rl_llm.tasks.answer import extract_answer

Record = Mapping[str, str]
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
        grain = _import_grain()
        builder = self._prepare()
        if split not in builder.info.splits:
            sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
            raise ValueError(f"{self.path} has no {split} problems, only {sizes}: add lines to it")
        # Threads: grain's worker processes cost more than files of this size take to read.
        threads = grain.ReadOptions(num_threads=2, prefetch_buffer_size=64)
        try:
            shuffled = grain.MapDataset.source(builder.as_data_source(split)).seed(seed).shuffle()
            records = [_decode(record) for record in shuffled[:count].to_iter_dataset(threads)]
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(
                f"the prepared copy of {self.path} is damaged ({error}): delete {builder.data_path}, and it "
                "will be prepared again"
            ) from error
        return [self._problem(record) for record in records]

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

    def _prepare(self) -> Any:
        """The tfds builder of the prepared copy, which is made first if this content has none."""
        path = Path(self.path)
        if not path.is_file():
            raise FileNotFoundError(
                f"task.path={str(self.path)!r} is no file: set it to a JSONL file of questions and answers, e.g. "
                "GSM8K's\n  curl -LO https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"
                "train.jsonl"
            )
        content = path.read_bytes()
        digest = hashlib.sha256(content + b"\0" + self.answer_pattern.encode()).hexdigest()
        folder = Path(self.data_dir or path.parent / ".tfds") / f"{self.name}-{digest[:16]}"
        builder_class = _builder_class()
        builder = builder_class({}, folder)
        if not builder.data_path.exists():  # tfds makes it in one step, at the end.
            splits: dict[str, list[Record]] = {}
            for record in read_records(path, content, self.answer_pattern):
                splits.setdefault(split_of(record["question"]), []).append(record)
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "preparing.lock"):  # Several processes may start on one file.
                builder = builder_class(splits, folder)
                _write(builder)
        return builder


def read_records(path: Path, content: bytes, answer_pattern: str) -> Iterator[Record]:
    """The question, solution and answer of each line. Raises ValueError naming file, line and reason."""
    lines_of_questions: dict[str, int] = {}
    lines = content.splitlines()
    if not lines:
        raise ValueError(f"{path} is empty: it needs one JSON object on each line")
    for number, line in enumerate(lines, 1):
        try:
            record = _parse(line, answer_pattern)
            first = lines_of_questions.setdefault(record["question"], number)
            if first != number:
                raise ValueError(f"the same question stands in line {first}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        yield record


def _parse(line: bytes, answer_pattern: str) -> Record:
    record = json.loads(line.decode())
    if not isinstance(record, dict):
        raise ValueError(f"{type(record).__name__} instead of a JSON object")
    for field in ("question", "answer"):
        if field not in record:
            raise ValueError(f"the field {field!r} is missing; there are {', '.join(map(repr, record)) or 'none'}")
        if not isinstance(record[field], str) or not record[field].strip():
            raise ValueError(f"the field {field!r} is {record[field]!r}: it must be a text that is not empty")
    match = re.search(answer_pattern, record["answer"])
    answer = (match.group(1) or "").strip() if match else ""
    if match is None or not answer:
        ending = record["answer"][-40:]
        raise ValueError(f"the final answer {answer_pattern!r} is not found in 'answer', which ends in {ending!r}")
    solution = record["answer"][: match.start()].strip()
    # One question in two spellings of the same text would be two problems, perhaps on both sides of a split.
    question = unicodedata.normalize("NFC", record["question"]).strip()
    "".join((question, solution, answer)).encode()  # a lone surrogate is found here, where its line is known
    return {"question": question, "solution": solution, "answer": answer}


def normalize(answer: str) -> Decimal | str:
    """What two equal answers share: the number if the text is one ("$1,000.", "1000.0"), or else the text."""
    text = answer.strip()
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text.rstrip(".").casefold()
    sign, digits = number.groups()
    return Decimal(sign + digits.replace(",", ""))


def _decode(record: Mapping[str, bytes | None]) -> Record:
    """A stored record as text. A truncated ArrayRecord file gives None for its fields, without an error."""
    texts = {field: (record.get(field) or b"").decode() for field in FIELDS}
    if not texts["question"] or not texts["answer"]:
        raise ValueError(f"a record has lost its text: {dict(record)}")
    return texts


@functools.cache
def _builder_class() -> Any:
    tfds = _import_tfds()

    class JsonlBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[name-defined, call-arg]
        """Writes checked records, by split, as ArrayRecord."""

        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, splits: Mapping[str, list[Record]], folder: Path) -> None:
            self._splits = splits
            super().__init__(data_dir=folder, file_format="array_record")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict({field: tfds.features.Text() for field in FIELDS})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Record]]]:
            return {split: self._generate_examples(records) for split, records in self._splits.items()}

        def _generate_examples(self, records: list[Record]) -> Iterator[tuple[int, Record]]:
            yield from enumerate(records)

    return JsonlBuilder


def _write(builder: Any) -> None:
    tfds = _import_tfds()
    # No look-up of ready-made copies in the cloud, and no bars: this takes a moment.
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare(download_config=settings)


def _import_tfds() -> ModuleType:
    try:
        import tensorflow_datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(f"JsonlProblems needs tensorflow-datasets ({error}): pip install 'rl_llm[data]'") from error
    return tensorflow_datasets


def _import_grain() -> ModuleType:
    try:
        import grain  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(f"JsonlProblems needs grain ({error}): pip install 'rl_llm[data]'") from error
    return grain
