"""The rollout engine: prompts -> rollout -> text -> grades.

It holds the compiled sampler, the grading pool and the reading thread of one run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.profiler import TraceAnnotation

from rl_llm.experiment import Experiment
from rl_llm.experiment.curriculum import Cursor
from rl_llm.experiment.suite import OwnReward, Verifiers
from rl_llm.model import ModelConfig, split_flat, weight_table
from rl_llm.parallel import hosts, population
from rl_llm.parallel.mesh import (
    Meshes,
    data_parallel_size,
    one_at_a_time,
    one_cpu,
    over_batch,
    put_on_batch,
    weight_shardings,
)
from rl_llm.parallel.programs import ROWS, compile_program
from rl_llm.parallel.transfer import move
from rl_llm.problem import Problem
from rl_llm.rewards.grader import Grade, Grader, PendingGrades
from rl_llm.rollout.text import decode_responses, encode_prompts
from rl_llm.sampler import Sampler, Sampling, SamplingValues, compile_sampler
from rl_llm.types import Prompts, Rollout


@dataclass(frozen=True)
class GradedRollout:
    """A rollout with its problems, texts and grades, row by row.

    generate_seconds and grade_seconds are the time waited for each; work that overlapped with something else does not
    count. `learned` is the part to learn from, with its rewards, on the learner's mesh; `values` are numbers for
    metrics.jsonl. The collector fills in both.
    """

    problems: list[Problem]
    rollout: Rollout
    responses: list[str]
    grades: list[Grade]
    generate_seconds: float = 0.0
    grade_seconds: float = 0.0
    learned: Rollout | None = None
    values: dict[str, float] = field(default_factory=dict)

    @property
    def rewards(self) -> np.ndarray:
        """f32[B], NaN where a response could not be graded."""
        return np.array([grade.reward if grade.status == "ok" else np.nan for grade in self.grades], np.float32)

    @property
    def graded(self) -> np.ndarray:
        """bool[B]: which responses could be graded."""
        return np.array([grade.status == "ok" for grade in self.grades], bool)

    @property
    def accuracies(self) -> np.ndarray:
        """f32[B], 0 where a response could not be graded."""
        return np.array([grade.accuracy for grade in self.grades], np.float32)

    def by_group(self, rows: np.ndarray) -> np.ma.MaskedArray:
        """Reshape f32[B] -> f32[N, K], masked where a response could not be graded."""
        graded = self.graded.reshape(len(self.problems), -1)
        # Without a mask, sums are those of an ordinary array to the last bit.
        return np.ma.array(rows.reshape(graded.shape), mask=np.ma.nomask if graded.all() else ~graded)


@dataclass(frozen=True)
class PendingRollout:
    """A rollout under way: being sampled, read and graded (or read from a file).

    `result` waits for it and raises the errors of every process. `params` must not be donated before that. `read` is
    the future of the thread that reads it, None for stored responses. `cursor` is the place of the curriculum after
    these problems.
    """

    engine: "RolloutEngine"
    params: dict
    problems: list[Problem]
    result: Callable[[], GradedRollout]
    read: "Future[_Read] | None" = None
    cursor: Cursor = field(default_factory=Cursor)


class _Read(NamedTuple):
    """The rows of a rollout that this process answers for, as texts that are being graded."""

    rollout: Rollout
    rows: np.ndarray
    responses: list[str]
    grades: PendingGrades


@dataclass(frozen=True)
class RolloutEngine:
    """Samples and grades responses, `prompts` problems at a time, `samples` responses each.

    Prompts have at most `width` tokens, responses at most `max_tokens`: a run's own sizes, if made by `open_engine`.
    Rollouts are returned on the learner's mesh, wherever they were sampled. `weights` are the shardings of the
    sampler's parameters. `sent` caches the frozen parameters of a sampler with its own devices, by path: the source
    array and its copy.
    """

    experiment: Experiment
    meshes: Meshes
    sample: Sampler
    weights: dict
    grader: Grader
    reader: ThreadPoolExecutor
    prompts: int
    samples: int
    width: int
    max_tokens: int
    sent: dict[str, tuple[jax.Array, jax.Array]] = field(default_factory=dict)

    def sized(self, samples: int, prompts: int = 0, width: int = 0, max_tokens: int = 0) -> "RolloutEngine":
        """The engine with another size; 0 keeps one. `prompts` must be a multiple of `unit`."""
        prompts, width, max_tokens = prompts or self.prompts, width or self.width, max_tokens or self.max_tokens
        sample, _ = compile_policy_sampler(self.experiment.model, self.experiment, self.meshes, samples, max_tokens)
        return replace(self, sample=sample, prompts=prompts, samples=samples, width=width, max_tokens=max_tokens)

    @property
    def unit(self) -> int:
        """Least number of prompts to sample at once: one for each device in each sampling batch."""
        return data_parallel_size(self.meshes.sampler) * self.experiment.sampling_batches

    def place(self, params: dict) -> dict:
        """Move parameters to the sampler's mesh, frozen ones only once; on a shared mesh return them as they are."""
        if not self.meshes.apart:
            return params
        flat, shardings = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, self.weights))
        _, frozen = split_flat(self.experiment.model, flat)
        known = {path: moved for path, (source, moved) in self.sent.items() if frozen.get(path) is source}
        new = {path: array for path, array in flat.items() if path not in known}
        moved = known | move(new, {path: shardings[path] for path in new})
        self.sent.update({path: (array, moved[path]) for path, array in frozen.items()})
        return traverse_util.unflatten_dict(moved, sep="/")

    def submit(
        self,
        params: dict,
        problems: Sequence[Problem],
        key: jax.Array,
        sampling: Sampling,
        prefix: str = "",
        limit: int | None = None,
    ) -> PendingRollout:
        """Start a rollout and return at once, except on several CPU devices (`one_at_a_time`).

        The device samples while other programs are dispatched; a thread reads the rollout and has it graded. Responses
        are forced to start with `prefix`, which is graded with them, and are cut after `limit` tokens. `params` must be
        placed (`place`), and must not be donated before the result is there.
        """
        start = time.perf_counter()
        tokenizer = self.experiment.tokenizer
        prompts = encode_prompts(tokenizer, problems, self.width, prefix, self.experiment.model.vocabulary)
        dispatch = partial(self.sample, params, prompts, key, sampling.values(tokenizer.stop_ids, limit))
        if population.is_member() or not one_cpu(self.meshes.sampler):
            rollout = dispatch()
            if one_at_a_time(self.meshes.sampler):
                jax.block_until_ready(rollout)
            dispatch = partial(lambda rollout: rollout, rollout)
        read = self.reader.submit(self._read, dispatch, problems, prefix)
        result = partial(self._wait, list(problems), read, time.perf_counter() - start)
        return PendingRollout(self, params, list(problems), result, read)

    def _read(self, sampled: Callable[[], Rollout], problems: Sequence[Problem], prefix: str) -> _Read:
        """Wait for a rollout and start to grade it."""
        rollout = sampled()
        (rows, tokens), (_, mask) = hosts.own_rows(rollout.tokens), hosts.own_rows(rollout.mask)
        own = replace(rollout, tokens=tokens, mask=mask)
        responses = [prefix + response for response in decode_responses(self.experiment.tokenizer, own)]
        row_problems = [problems[row // self.samples] for row in rows]
        return _Read(rollout, rows, responses, self.grader.submit(row_problems, responses))

    def _wait(self, problems: list[Problem], read: "Future[_Read]", dispatch_seconds: float) -> GradedRollout:
        """Wait for the rollout and the grades of all its rows."""
        start = time.perf_counter()
        with population.others_run(), TraceAnnotation("generate"):
            wait([read])
        sampled = time.perf_counter()

        def graded() -> tuple[np.ndarray, list[str], list[Grade]]:
            own = read.result()
            with population.others_run():
                return own.rows, own.responses, own.grades.result()

        with TraceAnnotation("grade"):
            parts = hosts.together(graded)
        order = np.argsort(np.concatenate([rows for rows, _, _ in parts]))
        responses = [response for _, found, _ in parts for response in found]
        grades = [grade for _, _, found in parts for grade in found]
        return GradedRollout(
            problems,
            self._on_learner(read.result().rollout),
            [responses[i] for i in order],
            [grades[i] for i in order],
            dispatch_seconds + sampled - start,
            time.perf_counter() - sampled,
        )

    def _on_learner(self, rollout: Rollout) -> Rollout:
        rows = over_batch(self.meshes.learner)
        return move(rollout, jax.tree.map(lambda _: rows, rollout)) if self.meshes.apart else rollout


@contextmanager
def open_grader(experiment: Experiment) -> Iterator[Grader]:
    """Start an experiment's grading processes, which end with the `with` block.

    Members of a population share them; they end with the population. Raises GradingError if they do not start.
    """
    grading, suites = experiment.grading, experiment.evaluation.suites
    verify, reward = experiment.task.verify, experiment.reward
    if suites:
        verify, reward = Verifiers(experiment.task, suites), OwnReward(reward.components)
    own = Grader(verify, reward, grading.workers, grading.time_limit)
    with population.shared(own, own.key) as grader:
        yield grader


@contextmanager
def open_engine(experiment: Experiment, meshes: Meshes, grader: Grader | None = None) -> Iterator[RolloutEngine]:
    """Open an experiment's engine, with grading processes of its own unless `grader` is running already.

    They and its thread end with the `with` block, which waits for a rollout under way.
    """
    with (
        open_grader(experiment) if grader is None else nullcontext(grader) as grader,
        ThreadPoolExecutor(1, thread_name_prefix="reader") as reader,
    ):
        sample, weights = compile_policy_sampler(experiment.model, experiment, meshes)
        sizes = experiment.prompts_per_step, experiment.responses_per_prompt, experiment.max_prompt_tokens
        yield RolloutEngine(experiment, meshes, sample, weights, grader, reader, *sizes, experiment.sampling.max_tokens)


def compile_policy_sampler(
    model: ModelConfig, experiment: Experiment, meshes: Meshes, samples: int = 0, max_tokens: int = 0
) -> tuple[Sampler, dict]:
    """Compile an experiment's sampler for a model; returns it with the shardings of the model's weights.

    The sampler takes prompts on the host. It samples `sampling_batches` parts of them one after the other, so only one
    part has its KV caches in memory. Without `samples` and `max_tokens` it has the experiment's sizes.
    """
    mesh, batches = meshes.sampler, experiment.sampling_batches
    sizes = samples or experiment.responses_per_prompt, max_tokens or experiment.sampling.max_tokens
    sample = compile_sampler(model, mesh, *sizes)

    def in_batches(params: dict, prompts: Prompts, key: jax.Array, values: SamplingValues) -> Rollout:
        parts = [jax.tree.map(lambda rows, i=i: np.split(rows, batches)[i], prompts) for i in range(batches)]
        rollouts = [sample(params, put_on_batch(mesh, part), key, values) for part in parts]
        return rollouts[0] if batches == 1 else compile_program(_join, mesh, outputs=ROWS)(*rollouts)

    return in_batches, weight_shardings(mesh, weight_table(model))


def _join(*parts: Rollout) -> Rollout:
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)
