"""Problems with verifiable answers, in three disjoint splits. Imports no JAX, because grading workers import it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Split = Literal["train", "validation", "held_out"]


@dataclass(frozen=True)
class Problem:
    """One problem. `id` is a stable hash that names it in logs and seeds the sampling noise of its responses."""

    id: int
    prompt: str
    answer: str
    difficulty: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """Source of problems. `verify` runs in worker processes, so a task must be picklable (a frozen dataclass is).

    Before a run, its verifier is tried on right and wrong answers (`commands.gate`), written as the shown prompt asks:
    in \\boxed{}, in <answer>, after ####, or bare. A task with answers of another form writes them itself, with a
    method `write_answer(problem, shown_prompt) -> str` that returns a response with `problem.answer` as the final
    answer.
    """

    @property
    def name(self) -> str: ...

    def problems(self, split: Split, count: int, seed: int) -> Sequence[Problem]:
        """Return up to `count` distinct problems of a split. Equal arguments give equal problems."""
        ...

    def verify(self, problem: Problem, response: str) -> float:
        """Score a response from 0.0 (wrong) to 1.0 (right). Junk is wrong, not an error."""
        ...


def problem_id(task: str, prompt: str) -> int:
    """Hash a prompt to 31 bits, to fit the int32 of `jax.random.fold_in`."""
    return _hash31(f"id\0{task}\0{prompt}")


def split_of(prompt: str) -> Split:
    """Assign a prompt to a split by its hash: 80 % train, 10 % validation, 10 % held out.

    No prompt can be in two splits, whatever seed drew it.
    """
    bucket = _hash31(f"split\0{prompt}") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "held_out"


def _hash31(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
