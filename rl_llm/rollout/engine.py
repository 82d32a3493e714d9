"""The engine: a policy put to problems. prompts -> rollout -> text -> grades, with the compiled sampler, the grading
pool and the reading thread of one run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from rl_llm.experiment import Experiment
from rl_llm.model import ModelConfig, split_flat, weight_table
from rl_llm.parallel import hosts, population
from rl_llm.parallel.mesh import Meshes, one_at_a_time, one_cpu, over_batch, put_on_batch, weight_shardings
from rl_llm.parallel.numbers import PROGRAMS
from rl_llm.parallel.transfer import move
from rl_llm.problem import Problem
from rl_llm.rewards.grader import Grade, Grader, PendingGrades
from rl_llm.rollout.text import decode_responses, encode_prompts
from rl_llm.sampler import Sampler, Sampling, SamplingValues, compile_sampler
from rl_llm.types import Prompts, Rollout


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
    """A rollout on its way: being sampled by the devices, then read by the engine's thread, which hands the texts of the
    rows that this process answers for to the graders.
    """

    read: Future["Read"]
    moved: Callable[[Rollout], Rollout]  # onto the learner's mesh
    dispatch_seconds: float

    def result(self) -> Answers:
        """Wait for the rollout and the grades of all its rows. What went wrong with either, in any process, is raised
        here.
        """
        start = time.perf_counter()
        with population.others_run():
            wait([self.read])
        sampled = time.perf_counter()

        def graded() -> tuple[np.ndarray, list[str], list[Grade]]:
            read = self.read.result()
            with population.others_run():
                return read.rows, read.responses, read.grades.result()

        parts = hosts.together(graded)
        order = np.argsort(np.concatenate([rows for rows, _, _ in parts]))
        responses = [response for _, found, _ in parts for response in found]
        grades = [grade for _, _, found in parts for grade in found]
        return Answers(
            self.moved(self.read.result().rollout),
            [responses[i] for i in order],
            [grades[i] for i in order],
            self.dispatch_seconds + sampled - start,
            time.perf_counter() - sampled,
        )


@dataclass(frozen=True)
class Read:
    """What the thread makes of a rollout: the rows of this process as texts, being graded."""

    rollout: Rollout
    rows: np.ndarray
    responses: list[str]
    grades: PendingGrades


@dataclass(frozen=True)
class RolloutEngine:
    """What it takes to answer `experiment.prompts_per_step` problems at a time, K responses each. Made by
    `open_engine`. Rollouts come on the learner's mesh, wherever they were sampled; `weights` are the shardings of what
    samples, `sent` the frozen ones that a sampler on devices of its own has, by path: from what, and as they are there.
    """

    experiment: Experiment
    meshes: Meshes
    sample: Sampler
    weights: dict
    grader: Grader
    reader: ThreadPoolExecutor
    sent: dict[str, tuple[jax.Array, jax.Array]] = field(default_factory=dict)

    def placed(self, params: dict) -> dict:
        """The parameters where the sampler reads them: they themselves on a shared mesh, else moved to its own; what is
        frozen beside adapters only once.
        """
        if not self.meshes.apart:
            return params
        ours, there = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, self.weights))
        _, frozen = split_flat(self.experiment.model, ours)
        known = {path: moved for path, (source, moved) in self.sent.items() if frozen.get(path) is source}
        new = {path: array for path, array in ours.items() if path not in known}
        moved = known | move(new, {path: there[path] for path in new})
        self.sent.update({path: (array, moved[path]) for path, array in frozen.items()})
        return traverse_util.unflatten_dict(moved, sep="/")

    def _returned(self, rollout: Rollout) -> Rollout:
        """A rollout on the learner's mesh."""
        rows = over_batch(self.meshes.learner)
        return move(rollout, jax.tree.map(lambda _: rows, rollout)) if self.meshes.apart else rollout

    def ask(
        self,
        params: dict,
        problems: Sequence[Problem],
        key: jax.Array,
        sampling: Sampling,
        prefix: str = "",
        limit: int | None = None,
    ) -> PendingAnswers:
        """Begin to sample, and return at once (but on several CPU devices: `one_at_a_time`): the device samples while
        other programs are dispatched, a thread reads the rollout and has it graded. Responses are made to begin with
        `prefix`, which is graded as a part of them, and are cut after `limit` tokens. `params` are `placed`, and must
        not be given away (donated) before the result is there: that would wait for it.
        """
        start = time.perf_counter()
        tokenizer, width = self.experiment.tokenizer, self.experiment.max_prompt_tokens
        prompts = encode_prompts(tokenizer, problems, width, prefix)
        dispatch = partial(self.sample, params, prompts, key, sampling.values(tokenizer.stop_ids, limit))
        if population.is_member() or not one_cpu(self.meshes.sampler):
            rollout = dispatch()
            if one_at_a_time(self.meshes.sampler):
                jax.block_until_ready(rollout)
            dispatch = partial(lambda rollout: rollout, rollout)
        read = self.reader.submit(self._read, dispatch, problems, prefix)
        return PendingAnswers(read, self._returned, time.perf_counter() - start)

    def _read(self, sampled: Callable[[], Rollout], problems: Sequence[Problem], prefix: str) -> Read:
        """Wait for a rollout, and begin to grade it."""
        rollout = sampled()
        (rows, tokens), (_, mask) = hosts.own_rows(rollout.tokens), hosts.own_rows(rollout.mask)
        own = replace(rollout, tokens=tokens, mask=mask)
        responses = [prefix + response for response in decode_responses(self.experiment.tokenizer, own)]
        asked = [problems[row // self.experiment.responses_per_prompt] for row in rows]
        return Read(rollout, rows, responses, self.grader.submit(asked, responses))

    def answer(
        self, params: dict, problems: Sequence[Problem], key: jax.Array, sampling: Sampling, prefix: str = ""
    ) -> Answers:
        """Sample and grade."""
        return self.ask(params, problems, key, sampling, prefix).result()


@contextmanager
def open_engine(experiment: Experiment, meshes: Meshes) -> Iterator[RolloutEngine]:
    """An experiment's engine; its grading processes and its thread end with the `with` block, which waits for a rollout
    that is under way. Members of a population share the processes, which end with it.
    """
    grading = experiment.grading
    own = Grader(experiment.task.verify, experiment.reward, grading.workers, grading.time_limit)
    with (
        population.shared(own, own.key) as grader,
        ThreadPoolExecutor(1, thread_name_prefix="reader") as reader,
    ):
        sample, weights = compile_policy_sampler(experiment.model, experiment, meshes)
        yield RolloutEngine(experiment, meshes, sample, weights, grader, reader)


def compile_policy_sampler(model: ModelConfig, experiment: Experiment, meshes: Meshes) -> tuple[Sampler, dict]:
    """The sampler of an experiment for a model, given prompts on the host, and the shardings of the model's weights. It
    samples `sampling_batches` parts of the prompts one after the other: only one of them has its caches in memory.
    """
    mesh, batches = meshes.sampler, experiment.sampling_batches
    sample = compile_sampler(model, mesh, experiment.responses_per_prompt, experiment.sampling.max_tokens)

    def in_batches(params: dict, prompts: Prompts, key: jax.Array, values: SamplingValues) -> Rollout:
        parts = [jax.tree.map(lambda rows, i=i: np.split(rows, batches)[i], prompts) for i in range(batches)]
        rollouts = [sample(params, put_on_batch(mesh, part), key, values) for part in parts]
        return rollouts[0] if batches == 1 else _compile_join(mesh)(*rollouts)

    return in_batches, weight_shardings(mesh, weight_table(model))


@lru_cache(maxsize=PROGRAMS)
def _compile_join(mesh: Mesh) -> Callable[..., Rollout]:
    def join(*parts: Rollout) -> Rollout:
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)

    return jax.jit(join, out_shardings=over_batch(mesh))
