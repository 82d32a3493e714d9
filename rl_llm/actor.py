"""The actor: a policy put to problems. prompts -> rollout -> text -> grades, with the compiled sampler and the
grading pool of one run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from rl_llm.experiment import Experiment
from rl_llm.mesh import put_on_batch
from rl_llm.problem import Problem
from rl_llm.rewards.grader import Grade, Grader, PendingGrades
from rl_llm.sampler import Sampler, Sampling
from rl_llm.text import decode_responses, encode_prompts
from rl_llm.types import Rollout


@dataclass(frozen=True)
class Answers:
    """A rollout with its texts and grades, row by row, the seconds it took to generate, and those waited for grades."""

    rollout: Rollout
    responses: list[str]
    grades: list[Grade]
    generate_seconds: float
    grade_seconds: float

    @property
    def rewards(self) -> np.ndarray:
        """f32[B]"""
        return np.array([grade.reward for grade in self.grades], np.float32)

    @property
    def accuracies(self) -> np.ndarray:
        """f32[B]"""
        return np.array([grade.accuracy for grade in self.grades], np.float32)


@dataclass(frozen=True)
class PendingAnswers:
    """A rollout whose responses are being graded, in other processes."""

    rollout: Rollout
    responses: list[str]
    grades: PendingGrades
    generate_seconds: float

    def result(self) -> Answers:
        """Wait for the grades."""
        start = time.perf_counter()
        grades = self.grades.result()
        return Answers(self.rollout, self.responses, grades, self.generate_seconds, time.perf_counter() - start)


@dataclass(frozen=True)
class Actor:
    """What it takes to answer `experiment.prompts_per_step` problems at a time, K responses each."""

    experiment: Experiment
    mesh: Mesh
    sample: Sampler
    grader: Grader

    def ask(
        self,
        params: dict,
        problems: Sequence[Problem],
        key: jax.Array,
        sampling: Sampling,
        prefix: str = "",
        limit: int | None = None,
    ) -> PendingAnswers:
        """Sample, and begin to grade. Responses are made to begin with `prefix`, which is graded as a part of them, and
        are cut after `limit` tokens.
        """
        tokenizer = self.experiment.tokenizer
        start = time.perf_counter()
        width = self.experiment.max_prompt_tokens
        prompts = put_on_batch(self.mesh, encode_prompts(tokenizer, problems, width, prefix))
        rollout = self.sample(params, prompts, key, sampling.values(tokenizer.stop_ids, limit))
        responses = [prefix + response for response in decode_responses(tokenizer, rollout)]
        seconds = time.perf_counter() - start
        asked = [problem for problem in problems for _ in range(self.experiment.responses_per_prompt)]
        return PendingAnswers(rollout, responses, self.grader.submit(asked, responses), seconds)

    def answer(
        self, params: dict, problems: Sequence[Problem], key: jax.Array, sampling: Sampling, prefix: str = ""
    ) -> Answers:
        """Sample and grade."""
        return self.ask(params, problems, key, sampling, prefix).result()
