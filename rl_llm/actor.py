"""The actor: a policy put to problems. prompts -> rollout -> text -> grades, with the compiled sampler, the grading
pool and the reading thread of one run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from rl_llm.experiment import Experiment
from rl_llm.mesh import one_cpu, put_on_batch
from rl_llm.problem import Problem
from rl_llm.rewards.grader import Grade, Grader, PendingGrades
from rl_llm.sampler import Sampler, Sampling, compile_sampler
from rl_llm.text import decode_responses, encode_prompts
from rl_llm.types import Rollout


@dataclass(frozen=True)
class Answers:
    """A rollout with its texts and grades, row by row, and the seconds that were waited for the rollout and for the
    grades: what the device and the graders did while something else was done does not count.
    """

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
    """A rollout on its way: being sampled by the device, then read by the actor's thread, which hands its texts to the
    graders.
    """

    read: Future[tuple[Rollout, list[str], PendingGrades]]
    dispatch_seconds: float

    def result(self) -> Answers:
        """Wait for the rollout and its grades. What went wrong with either is raised here."""
        start = time.perf_counter()
        rollout, responses, pending = self.read.result()
        read = time.perf_counter()
        grades = pending.result()
        waited = self.dispatch_seconds + read - start
        return Answers(rollout, responses, grades, waited, time.perf_counter() - read)


@dataclass(frozen=True)
class Actor:
    """What it takes to answer `experiment.prompts_per_step` problems at a time, K responses each. Made by
    `open_actor`.
    """

    experiment: Experiment
    mesh: Mesh
    sample: Sampler
    grader: Grader
    reader: ThreadPoolExecutor

    def ask(
        self,
        params: dict,
        problems: Sequence[Problem],
        key: jax.Array,
        sampling: Sampling,
        prefix: str = "",
        limit: int | None = None,
    ) -> PendingAnswers:
        """Begin to sample, and return at once: the device samples while other programs are dispatched, a thread reads
        the rollout and has it graded. Responses are made to begin with `prefix`, which is graded as a part of them, and
        are cut after `limit` tokens. `params` must not be given away (donated) before the result is there: that would
        wait for it.
        """
        start = time.perf_counter()
        tokenizer, width = self.experiment.tokenizer, self.experiment.max_prompt_tokens
        prompts = put_on_batch(self.mesh, encode_prompts(tokenizer, problems, width, prefix))
        dispatch = partial(self.sample, params, prompts, key, sampling.values(tokenizer.stop_ids, limit))
        if not one_cpu(self.mesh):
            rollout = dispatch()
            dispatch = partial(lambda rollout: rollout, rollout)
        read = self.reader.submit(self._read, dispatch, problems, prefix)
        return PendingAnswers(read, time.perf_counter() - start)

    def _read(
        self, sampled: Callable[[], Rollout], problems: Sequence[Problem], prefix: str
    ) -> tuple[Rollout, list[str], PendingGrades]:
        """Wait for a rollout: it, its responses, and their grades under way."""
        rollout = sampled()
        responses = [prefix + response for response in decode_responses(self.experiment.tokenizer, rollout)]
        asked = [problem for problem in problems for _ in range(self.experiment.responses_per_prompt)]
        return rollout, responses, self.grader.submit(asked, responses)

    def answer(
        self, params: dict, problems: Sequence[Problem], key: jax.Array, sampling: Sampling, prefix: str = ""
    ) -> Answers:
        """Sample and grade."""
        return self.ask(params, problems, key, sampling, prefix).result()


@contextmanager
def open_actor(experiment: Experiment, mesh: Mesh) -> Iterator[Actor]:
    """An experiment's actor; its grading processes and its thread end with the `with` block, which waits for a rollout
    that is under way.
    """
    grading, K = experiment.grading, experiment.responses_per_prompt
    sample = compile_sampler(experiment.model, mesh, K, experiment.sampling.max_tokens)
    with (
        Grader(experiment.task.verify, experiment.reward, grading.workers, grading.time_limit) as grader,
        ThreadPoolExecutor(1, thread_name_prefix="reader") as reader,
    ):
        yield Actor(experiment, mesh, sample, grader, reader)
