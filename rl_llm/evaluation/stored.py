"""A file with all responses of an evaluation, for other runs to learn from (`StoredResponses`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from rl_llm.evaluation.samples import shown
from rl_llm.learner.logprobs import compile_over_rows, likeliest
from rl_llm.parallel import hosts
from rl_llm.problem import Problem
from rl_llm.rollout.engine import GradedRollout, RolloutEngine
from rl_llm.runs.files import json_line


class SamplesFile:
    """A samples file, opened in a `with` statement. With several processes, the first one writes it.

    A line holds a prompt, its responses, their rewards (null for a response that could not be graded) and tokens. With
    `logits` k it also holds the policy's k likeliest tokens at each position and their log-probabilities.
    """

    def __init__(self, engine: RolloutEngine, params: dict, path: Path, temperature: float, logits: int = 0) -> None:
        experiment = engine.experiment
        self._engine, self._params, self._path, self._logits = engine, params, path, logits
        self._temperature = temperature
        self._tokenizer = experiment.tokenizer.fingerprint()
        self._unfinished = path.with_name(f"{path.name}.unfinished")
        self._likeliest = compile_over_rows(likeliest, experiment.model, engine.meshes.learner, static=(logits,))

    def __enter__(self) -> Self:
        self._file = self._unfinished.open("wb") if hosts.writes() else None
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            if failure is None:
                self._unfinished.rename(self._path)

    def add(self, problems: Sequence[Problem], graded: GradedRollout) -> None:
        """Write one line per problem. Rows past the last problem are padding and are skipped."""
        K = self._engine.samples
        tokens, mask = hosts.to_host((graded.rollout.tokens, graded.rollout.mask))
        lengths = mask.sum(axis=1).astype(int)
        columns: dict[str, Sequence[Any]] = {
            "responses": graded.responses,
            "rewards": [grade.reward if grade.status == "ok" else None for grade in graded.grades],
            "tokens": cut(tokens, lengths),
        }
        if self._logits:
            found = self._likeliest(self._params, graded.rollout, jnp.float32(self._temperature))
            ids, logps = hosts.to_host(found)
            columns |= {"teacher_tokens": cut(ids, lengths), "teacher_logp": cut(logps, lengths)}
        if self._file is None:
            return
        for n, problem in enumerate(problems):
            rows = slice(n * K, (n + 1) * K)
            line = {"prompt": shown(problem), "tokenizer": self._tokenizer, "temperature": self._temperature}
            line |= {name: list(column[rows]) for name, column in columns.items()}
            self._file.write(json_line(line))


def cut(rows: np.ndarray, lengths: np.ndarray) -> list[list]:
    """Rows without their padding, as lists for JSON."""
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
