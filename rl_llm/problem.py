"""What a task gives to the rest of the system: problems with verifiable answers, in three disjoint splits.

This module imports no JAX: grading workers are fresh processes that import it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Split = Literal["train", "validation", "held_out"]


@dataclass(frozen=True)
class Problem:
    """One problem. `id` is a stable hash: it names the problem in logs and seeds the noise its responses are sampled
    with.
    """

    id: int
    prompt: str
    answer: str
    difficulty: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A source of problems and the verifier that knows their answers.

    `verify` runs in a worker process, so a task must be picklable (a frozen dataclass is).
    """

    @property
    def name(self) -> str: ...

    def problems(self, split: Split, count: int, seed: int) -> Sequence[Problem]:
        """At most `count` distinct problems of one split; the same arguments give the same problems."""
        ...

    def verify(self, problem: Problem, response: str) -> float:
        """1.0 for a right response, 0.0 for a wrong one, between for partial credit. A junk response is wrong, not an
        error.
        """
        ...


def problem_id(task: str, prompt: str) -> int:
    """A 31-bit id (it must fit the int32 that `jax.random.fold_in` takes)."""
    return _hash31(f"id\0{task}\0{prompt}")


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to, by its hash: 80 % train, 10 % validation, 10 % held out.

    The split is a function of the prompt alone, so no prompt can be in two of them, whatever seed drew it.
    """
    bucket = _hash31(f"split\0{prompt}") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "held_out"


def _hash31(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
