"""Stored entries of reasoning-gym as a task: a file of questions, answers and metadata."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_llm.problem import Problem, Split, problem_id
from rl_llm.tasks.reasoning_gym import ReasoningGym, import_reasoning_gym
from rl_llm.tasks.tables import Fields, read_files, rows_of

FORM = 'a row is {"question": ..., "answer": ..., "metadata": {"source_dataset": ..., ...}}, as reasoning-gym writes it'


@dataclass(frozen=True)
class ReasoningGymFile:
    """Entries of reasoning-gym's data sets in a data file; every split is the whole file. Needs the extra `tasks`.

    metadata.source_dataset names the data set that scores an entry.
    """

    path: str | Path

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a grading process the import must not count towards the time limit of the first response.
        self.__dict__.update(state)
        import_reasoning_gym()

    @property
    def name(self) -> str:
        return Path(str(self.path).removesuffix(".gz")).stem

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Return the first `count` entries; a question that is repeated counts once."""
        found = {problem.prompt: problem for problem in self._entries()}
        return list(found.values())[:count]

    def verify(self, problem: Problem, response: str) -> float:
        """Return the score of the entry's data set, 0.0 to 1.0."""
        return ReasoningGym(problem.metadata["entry"]["source_dataset"]).verify(problem, response)

    def _entries(self) -> Iterator[Problem]:
        for place, fields in rows_of(read_files(self.path)):
            try:
                yield self._problem(fields)
            except (ValueError, KeyError, TypeError) as error:
                reason = f"{error} is missing" if isinstance(error, KeyError) else error
                raise ValueError(f"{place}: {reason}; {FORM}") from error

    def _problem(self, fields: Fields | ValueError) -> Problem:
        if isinstance(fields, ValueError):
            raise fields
        question, answer, metadata = fields["question"], fields["answer"], fields["metadata"]
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
        if not isinstance(question, str) or not isinstance(metadata["source_dataset"], str):
            raise ValueError("question and metadata.source_dataset must be texts")
        return Problem(problem_id(self.name, question), question, str(answer), metadata={"entry": metadata})
