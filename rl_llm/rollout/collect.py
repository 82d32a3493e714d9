"""Collects the graded rollout of each step: choose problems, sample responses, grade them (or read stored ones).

`start` starts the sampler and returns; a thread then reads the rollout and other processes grade it. `wait` waits for
them and records in the run's progress which problems were used. The learner can work between the two. It waits for the
work that `wait` adds: resampled groups, greedy baselines, and the scores of a reward model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rl_llm.algorithms import apply_filters
from rl_llm.experiment import Experiment, RewardModel
from rl_llm.experiment.curriculum import Cursor, TooFewProblems, next_prompts
from rl_llm.learner.train_step import first_batch
from rl_llm.parallel import hosts
from rl_llm.parallel.mesh import put_on_batch
from rl_llm.prng import Purpose, generator, key
from rl_llm.problem import Problem
from rl_llm.rewards.grader import refuse_ungraded
from rl_llm.rewards.worker import LARGEST_REWARD, Grade, failed
from rl_llm.rollout.engine import GradedRollout, PendingRollout, RolloutEngine
from rl_llm.rollout.offline import read_rollout
from rl_llm.rollout.reward_model import Scorer
from rl_llm.runs.run import Run
from rl_llm.types import Rollout


@dataclass(frozen=True)
class Collector:
    """Collects for one run.

    `teacher` answers instead of the policy in the steps that the experiment gives it; `score` is a reward model's.
    """

    run: Run
    engine: RolloutEngine
    problems: Sequence[Problem]
    teacher: tuple[RolloutEngine, dict] | None = None
    score: Scorer | None = None

    def start(self, step: int, params: dict) -> PendingRollout:
        """Choose the problems of a step and start to sample responses with `params`, which must stay until `wait`."""
        experiment, engine = self.run.experiment, self.engine
        problems, cursor = self._choose(step, Cursor(*self.run.progress.get("cursor", (0, 0))), set())
        if experiment.responses is not None:
            stored = partial(read_rollout, experiment, problems)
            return PendingRollout(engine, params, problems, stored, cursor=cursor)
        if self.teacher is not None and not self._on_policy(step):
            engine, params = self.teacher
        return replace(self._submit(step, engine, engine.place(params), problems), cursor=cursor)

    def wait(self, step: int, pending: PendingRollout) -> GradedRollout:
        """Wait for the grades of a step; returns its rollout with the part to learn from."""
        experiment = self.run.experiment
        if experiment.responses is not None:
            graded, cursor = self._grade(pending), pending.cursor
            self.run.progress["cursor"] = [cursor.epoch, cursor.place]
            stored = {"tokens/generated": 0, "tokens/stored": int(graded.rollout.mask.sum()), "flops/generate": 0.0}
            return self._with_learned(graded, graded, stored | self._curriculum_values(step))
        graded, cursor, values = self._grade(pending), pending.cursor, dict[str, float]()
        groups = np.arange(len(graded.problems))
        if experiment.dynamic_sampling is not None:
            graded, cursor, groups, values = self._refill(step, pending, graded)
        self._record(graded, cursor)
        learned = select_groups(graded, groups, experiment.responses_per_prompt)
        rollout = learned.rollout
        if "rewards" in experiment.algorithm.needs:
            rollout = replace(rollout, rewards=_components(experiment, learned.grades))
        if "greedy_reward" in experiment.algorithm.needs:
            greedy, values["tokens/greedy"] = self._greedy(step, pending, learned.problems)
            rollout = replace(rollout, greedy_reward=greedy)
        return self._with_learned(graded, replace(learned, rollout=rollout), values | self._curriculum_values(step))

    def _with_learned(self, graded: GradedRollout, learned: GradedRollout, values: dict[str, float]) -> GradedRollout:
        rollout: Rollout = put_on_batch(self.engine.meshes.learner, replace(learned.rollout, reward=learned.rewards))
        return replace(graded, learned=rollout, values=values)

    def _refill(
        self, step: int, pending: PendingRollout, graded: GradedRollout
    ) -> tuple[GradedRollout, Cursor, np.ndarray, dict[str, float]]:
        """Dynamic sampling: sample more problems until enough groups are informative.

        Returns everything sampled, the cursor behind it, the groups to learn from, and metrics.
        """
        experiment, cursor, rollouts = self.run.experiment, pending.cursor, 1
        assert experiment.dynamic_sampling is not None
        kept = self._informative(graded)
        while kept.sum() < experiment.prompts_per_step and rollouts < experiment.dynamic_sampling.max_rollouts:
            try:
                more, cursor = self._choose(step, cursor, {problem.id for problem in graded.problems})
            except TooFewProblems:
                break
            further = self._grade(self._submit(step, pending.engine, pending.params, more))
            graded, rollouts = concatenate(graded, further), rollouts + 1
            kept = np.concatenate([kept, self._informative(further)])
        values: dict[str, float] = {"sampling/rollouts": rollouts, "sampling/informative_groups": int(kept.sum())}
        return graded, cursor, np.argsort(~kept, kind="stable")[: experiment.prompts_per_step], values

    def _on_policy(self, step: int) -> bool:
        teacher = self.run.experiment.teacher
        return teacher is None or generator(self.run.seed, Purpose.ON_POLICY, step).random() < teacher.on_policy

    def _limit(self, step: int) -> int:
        length, longest = self.run.experiment.curriculum.length, self.run.experiment.sampling.max_tokens
        return longest if length is None else length.limit(longest, step)

    def _submit(self, step: int, engine: RolloutEngine, params: dict, problems: Sequence[Problem]) -> PendingRollout:
        noise_key = key(self.run.seed, Purpose.ROLLOUT, step)
        return engine.submit(params, problems, noise_key, self.run.experiment.sampling, limit=self._limit(step))

    def _choose(self, step: int, cursor: Cursor, used: set[int]) -> tuple[list[Problem], Cursor]:
        """Choose the next problems of the curriculum; if too few are unsolved, all count as unsolved again."""
        experiment, progress, seed = self.run.experiment, self.run.progress, self.run.seed
        pool = {problem.id for problem in experiment.curriculum.pool(self.problems, step)} - used
        count = experiment.prompts_per_step
        try:
            unsolved = pool - set(progress.get("solved", ()))
            return next_prompts(self.problems, seed, cursor, count, lambda problem: problem.id in unsolved)
        except TooFewProblems:
            if used or not progress.get("solved"):
                raise
            self.run.folder.ledger.append("all_solved", step=step, solved=len(progress["solved"]))
            progress["solved"] = []
            return next_prompts(self.problems, seed, cursor, count, lambda problem: problem.id in pool)

    def _record(self, graded: GradedRollout, cursor: Cursor) -> None:
        """Record the cursor and the solved problems in the run's progress."""
        progress, share = self.run.progress, self.run.experiment.curriculum.drop_solved
        progress["cursor"] = [cursor.epoch, cursor.place]
        if share is not None:
            right = (graded.by_group(graded.accuracies).mean(axis=1) >= share).filled(False)
            solved = {problem.id for problem, is_right in zip(graded.problems, right, strict=True) if is_right}
            progress["solved"] = sorted(solved | set(progress.get("solved", ())))

    def _grade(self, pending: PendingRollout) -> GradedRollout:
        """Wait for the grades of a rollout. Raises GradingError if too many responses could not be graded."""
        graded, run = pending.result(), self.run
        if self.score is not None:
            model, scores = run.experiment.reward_model, self.score(graded.rollout)
            assert model is not None
            grades = [
                with_score(grade, float(found), model) for grade, found in zip(graded.grades, scores, strict=True)
            ]
            graded = replace(graded, grades=grades)
        run.record_ungraded(run.step + 1, graded.problems, graded.responses, graded.grades)
        refuse_ungraded(graded.grades, run.experiment.grading.ungraded)
        return graded

    def _informative(self, graded: GradedRollout) -> np.ndarray:
        """bool[N]: whether the filters keep any response of a group."""
        rollout = replace(hosts.to_host(graded.rollout), reward=jnp.asarray(graded.rewards))
        batch = first_batch(rollout, graded_rows(rollout))
        kept = apply_filters(self.run.experiment.algorithm.filters, batch).kept
        by_group = np.asarray(kept).reshape(-1, self.run.experiment.responses_per_prompt)
        return np.any(by_group, axis=1, keepdims=False)

    def _greedy(self, step: int, pending: PendingRollout, problems: Sequence[Problem]) -> tuple[np.ndarray, int]:
        """Reward f32[B] of each row's greedy response, NaN if ungraded, and the tokens of one response per prompt.

        The compiled sampler draws K responses per prompt, which at temperature 0 are K times the same.
        """
        noise_key = key(self.run.seed, Purpose.ROLLOUT, step)
        sampling = self.run.experiment.sampling.at(0.0)
        limit = self._limit(step)
        graded = self._grade(pending.engine.submit(pending.params, problems, noise_key, sampling, limit=limit))
        tokens = hosts.to_host(graded.rollout.mask).sum() / self.run.experiment.responses_per_prompt
        return graded.rewards, int(tokens)

    def _curriculum_values(self, step: int) -> dict[str, float]:
        curriculum, values = self.run.experiment.curriculum, dict[str, float]()
        if curriculum.difficulty is not None:
            values["curriculum/problems"] = curriculum.difficulty.count(len(self.problems), step)
        if curriculum.length is not None:
            values["curriculum/max_tokens"] = self._limit(step)
        if curriculum.drop_solved is not None:
            values["curriculum/solved"] = len(self.run.progress.get("solved", ()))
        return values


def graded_rows(rollout: Rollout) -> np.ndarray | None:
    """Rows with a reward, and with a greedy baseline if there are any, bool[B]; None if all have them.

    Decided on the host: rollouts without ungraded rows keep a program that knows of none, to the last bit.
    """
    reward, greedy = hosts.to_host((rollout.reward, rollout.greedy_reward))
    graded = ~np.isnan(reward if greedy is None else reward + greedy)
    return None if graded.all() else graded


def with_score(grade: Grade, score: float, model: RewardModel) -> Grade:
    """Add a reward model's score to a grade; a response that could not be graded gets none of it."""
    if grade.status != "ok":
        return grade
    reward = model.weight * score + (grade.reward if model.added else 0.0)
    if not abs(reward) <= LARGEST_REWARD:
        return failed("error", f"the reward model's score {score} makes the reward {reward}")
    return replace(grade, reward=reward, components={**grade.components, "reward_model": score})


def concatenate(first: GradedRollout, second: GradedRollout) -> GradedRollout:
    """Join two rollouts into one, on the host."""
    rollout = jax.tree.map(lambda *parts: np.concatenate(parts), *hosts.to_host((first.rollout, second.rollout)))
    return GradedRollout(
        first.problems + second.problems,
        rollout,
        first.responses + second.responses,
        first.grades + second.grades,
        first.generate_seconds + second.generate_seconds,
        first.grade_seconds + second.grade_seconds,
    )


def select_groups(graded: GradedRollout, groups: np.ndarray, responses_per_prompt: int) -> GradedRollout:
    """Select some groups, on the host; all of them in their order are returned as they are."""
    if len(groups) == len(graded.problems) and (np.diff(groups) > 0).all():
        return graded
    rows = (groups[:, None] * responses_per_prompt + np.arange(responses_per_prompt)).reshape(-1)
    rollout = hosts.to_host(graded.rollout)
    prompts = jax.tree.map(lambda x: x[groups], rollout.prompts)
    row_fields = jax.tree.map(lambda x: x[rows], replace(rollout, prompts=None))
    return replace(
        graded,
        problems=[graded.problems[group] for group in groups],
        rollout=replace(row_fields, prompts=prompts),
        responses=[graded.responses[row] for row in rows],
        grades=[graded.grades[row] for row in rows],
    )


def _components(experiment: Experiment, grades: Sequence[Grade]) -> np.ndarray:
    """Unweighted components f32[B, C], in the order of the reward; 0 for a response that could not be graded."""
    names = experiment.reward.names
    return np.array([[grade.components.get(name, 0.0) for name in names] for grade in grades], np.float32)
