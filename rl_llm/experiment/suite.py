"""Evaluation suites: named sets of problems besides a run's own, how they are asked, and who grades them."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rl_llm.config.fields import Checked, PositiveInt
from rl_llm.problem import Problem, Split, Task, problem_id
from rl_llm.rewards.components import Reward
from rl_llm.sampler import Sampling

SUITE, SHOWN = "suite", "shown"  # metadata of a suite's problem: the suite's name, and the prompt if it has one
QUESTION = "{question}"


@dataclass(frozen=True)
class Suite(Checked):
    """Problems to evaluate on: all of a task's split, or `problems` of them, the same ones for every seed.

    `prompt` is the text around {question}, the problem's own text; None shows that alone. A response ends before the
    first of the texts `stop`: after a few-shot prompt, models go on with questions of their own. Each problem gets
    `samples` responses with `sampling`; None takes those of the run. The task's verifier alone grades them.
    """

    name: str
    task: Task
    split: Split = "held_out"
    problems: PositiveInt | None = None
    prompt: str | None = None
    stop: tuple[str, ...] = ()
    samples: PositiveInt | None = None
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"Suite.name={self.name!r} is no name; expected letters, digits, '_', '-' and '.'")
        if self.prompt is not None and QUESTION not in self.prompt:
            raise ValueError(f"suite {self.name}: prompt={self.prompt[:60]!r} lacks {QUESTION}, the problem's own text")
        if "" in self.stop:
            raise ValueError(f"suite {self.name}: stop={self.stop} holds an empty text, which ends every response")
        if self.problems is None and not hasattr(self.task, "path"):
            raise ValueError(f"suite {self.name}: problems is missing; only a task with a file (`path`) has a last one")
        if self.sampling is not None and self.sampling.temperature == 0 and (self.samples or 1) > 1:
            raise ValueError(f"suite {self.name}: samples={self.samples} cannot act at temperature 0: all are the same")

    @property
    def key(self) -> str:
        """Name of the suite's problems among those of a run."""
        return f"suite {self.name}"

    def ask(self) -> list[Problem]:
        """Read the problems. Their ids depend on suite and question, not on the file's name or on the prompt."""
        found = self.task.problems(self.split, self.problems or sys.maxsize, 0)
        if not found:
            raise ValueError(f"suite {self.name}: {self.task.name} has no {self.split} problems; use another split")
        return [
            replace(problem, id=problem_id(self.name, problem.prompt), metadata=self._metadata(problem))
            for problem in found
        ]

    def _metadata(self, problem: Problem) -> Mapping[str, Any]:
        metadata = {**problem.metadata, SUITE: self.name}
        if self.prompt is None:
            return metadata
        if messages := metadata.get("messages"):
            last = {**messages[-1], "content": self.prompt.replace(QUESTION, str(messages[-1]["content"]))}
            return {**metadata, "messages": [*messages[:-1], last]}
        return {**metadata, SHOWN: self.prompt.replace(QUESTION, problem.prompt)}

    def end(self, response: str) -> int | None:
        """Index at which one of the texts `stop` ends a response; None if none does."""
        return min((place for text in self.stop if (place := response.find(text)) >= 0), default=None)


@dataclass(frozen=True)
class Verifiers:
    """Verifier of a run with suites: a problem is graded by the task that it comes from."""

    task: Task
    suites: tuple[Suite, ...]

    def __call__(self, problem: Problem, response: str) -> float:
        name = problem.metadata.get(SUITE)
        suite = next((suite for suite in self.suites if suite.name == name), None)
        if suite is None:
            return self.task.verify(problem, response)
        return suite.task.verify(problem, response[: suite.end(response)])


@dataclass(frozen=True)
class OwnReward(Reward):
    """Reward of a run with suites: its components know its own problems only, so a suite's have accuracy alone."""

    def __call__(self, problem: Problem, response: str, accuracy: float) -> tuple[float, dict[str, float]]:
        if SUITE in problem.metadata:
            return accuracy, {"accuracy": accuracy}
        return super().__call__(problem, response, accuracy)
