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
from rl_llm.rewards.grader import Grade, Grader
from rl_llm.sampler import Sampler, Sampling
from rl_llm.text import decode_responses, encode_prompts
from rl_llm.types import Rollout


@dataclass(frozen=True)
class Answers:
    """A rollout (on device) with its texts and grades, row by row, and the seconds that each part took."""

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
class Actor:
    """What it takes to answer `experiment.prompts_per_step` problems at a time, K responses each."""

    experiment: Experiment
    mesh: Mesh
    sample: Sampler
    grader: Grader

    def answer(
        self, params: dict, problems: Sequence[Problem], key: jax.Array, sampling: Sampling, prefix: str = ""
    ) -> Answers:
        """Sample and grade. Responses are made to begin with `prefix`, which is graded as a part of them."""
        tokenizer = self.experiment.tokenizer
        start = time.perf_counter()
        width = self.experiment.max_prompt_tokens
        prompts = put_on_batch(self.mesh, encode_prompts(tokenizer, problems, width, prefix))
        rollout = self.sample(params, prompts, key, sampling.values((tokenizer.end_id,)))
        responses = [prefix + response for response in decode_responses(tokenizer, rollout)]
        generated = time.perf_counter()
        asked = [problem for problem in problems for _ in range(self.experiment.responses_per_prompt)]
        grades = self.grader.grade(asked, responses)
        return Answers(rollout, responses, grades, generated - start, time.perf_counter() - generated)
