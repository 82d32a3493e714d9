"""How a step comes by its experience: problems are chosen, responses sampled and graded, or read from a file.

`begin` starts the sampler, and what follows goes on by itself: a thread reads the rollout, other processes grade it.
`finish` waits for that, and writes down in the run's progress which problems were used up. Between the two the learner
can work; it waits for what `finish` adds: groups in the place of dropped ones, greedy baselines, a reward model's
scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
from rl_llm.rewards.worker import Grade
from rl_llm.rollout.engine import Answers, PendingAnswers, RolloutEngine
from rl_llm.rollout.offline import stored_answers
from rl_llm.rollout.reward_model import Scorer
from rl_llm.runs.run import Run
from rl_llm.types import Experience


@dataclass(frozen=True)
class Begun:
    """A step's first rollout, being sampled and graded (None where responses are stored), and what makes it."""

    step: int
    engine: RolloutEngine
    params: dict
    problems: list[Problem]
    cursor: Cursor
    pending: PendingAnswers | None


@dataclass(frozen=True)
class Collected:
    """What a step learns from: its experience; and for the record all problems asked, all their answers, and numbers
    for metrics.jsonl.
    """

    experience: Experience
    problems: list[Problem]
    answers: Answers
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Collector:
    """Collects for one run. `teacher` answers in the policy's place where the experiment says so; `score` is a reward
    model's.
    """

    run: Run
    engine: RolloutEngine
    problems: Sequence[Problem]
    teacher: tuple[RolloutEngine, dict] | None = None
    score: Scorer | None = None

    def begin(self, step: int, params: dict) -> Begun:
        """Choose the problems of a step and begin to sample responses with these parameters, which must stay until
        `finish`.
        """
        experiment, engine = self.run.experiment, self.engine
        problems, cursor = self._choose(step, Cursor(*self.run.progress.get("cursor", (0, 0))), set())
        if experiment.responses is not None:
            return Begun(step, engine, params, problems, cursor, None)
        if self.teacher is not None and not self._on_policy(step):
            engine, params = self.teacher
        params = engine.placed(params)
        return Begun(step, engine, params, problems, cursor, self._ask(step, engine, params, problems))

    def finish(self, begun: Begun) -> Collected:
        """Wait for the grades and make the step's experience."""
        if begun.pending is None:
            return self._read(begun)
        problems, answers, cursor = list(begun.problems), self._graded(begun.pending), begun.cursor
        chosen, values = np.arange(len(problems)), dict[str, float]()
        if self.run.experiment.dynamic_sampling is not None:
            problems, answers, cursor, chosen, values = self._refilled(begun, problems, answers)
        self._note(problems, answers, cursor)
        learned = picked(answers, chosen, self.run.experiment.responses_per_prompt)
        fields = {"rewards": _components(self.run.experiment, learned)} if self._wants("rewards") else {}
        if self._wants("greedy_reward"):
            fields["greedy_reward"], values["tokens/greedy"] = self._greedy(begun, [problems[i] for i in chosen])
        values |= self._curriculum_values(begun.step)
        return Collected(self._experience(learned, fields), problems, answers, values)

    def _read(self, begun: Begun) -> Collected:
        """Of stored responses."""
        self.run.progress["cursor"] = [begun.cursor.epoch, begun.cursor.place]
        answers, fields = stored_answers(self.run.experiment, begun.problems)
        values: dict[str, float] = {"tokens/generated": 0, "tokens/stored": int(answers.rollout.mask.sum())}
        values |= {"flops/generate": 0.0} | self._curriculum_values(begun.step)
        return Collected(self._experience(answers, fields), begun.problems, answers, values)

    def _refilled(
        self, begun: Begun, problems: list[Problem], answers: Answers
    ) -> tuple[list[Problem], Answers, Cursor, np.ndarray, dict[str, float]]:
        """All problems and answers after dynamic sampling, where that leaves off, the groups to learn from, and how it
        went.
        """
        experiment, cursor, rollouts = self.run.experiment, begun.cursor, 1
        assert experiment.dynamic_sampling is not None
        kept = self._informative(answers)
        while kept.sum() < experiment.prompts_per_step and rollouts < experiment.dynamic_sampling.max_rollouts:
            try:
                more, cursor = self._choose(begun.step, cursor, {problem.id for problem in problems})
            except TooFewProblems:
                break
            further = self._graded(self._ask(begun.step, begun.engine, begun.params, more))
            problems, answers, rollouts = problems + more, joined(answers, further), rollouts + 1
            kept = np.concatenate([kept, self._informative(further)])
        values: dict[str, float] = {"sampling/rollouts": rollouts, "sampling/informative_groups": int(kept.sum())}
        return problems, answers, cursor, np.argsort(~kept, kind="stable")[: experiment.prompts_per_step], values

    def _wants(self, name: str) -> bool:
        return name in self.run.experiment.algorithm.needs

    def _on_policy(self, step: int) -> bool:
        teacher = self.run.experiment.teacher
        return teacher is None or generator(self.run.seed, Purpose.ON_POLICY, step).random() < teacher.on_policy

    def _limit(self, step: int) -> int:
        length, longest = self.run.experiment.curriculum.length, self.run.experiment.sampling.max_tokens
        return longest if length is None else length.limit(longest, step)

    def _ask(self, step: int, engine: RolloutEngine, params: dict, problems: Sequence[Problem]) -> PendingAnswers:
        noise_key = key(self.run.seed, Purpose.ROLLOUT, step)
        return engine.ask(params, problems, noise_key, self.run.experiment.sampling, limit=self._limit(step))

    def _choose(self, step: int, cursor: Cursor, asked: set[int]) -> tuple[list[Problem], Cursor]:
        """The next problems of the curriculum; when too few are left unsolved, all are asked anew."""
        experiment, progress, seed = self.run.experiment, self.run.progress, self.run.seed
        pool = {problem.id for problem in experiment.curriculum.pool(self.problems, step)} - asked
        count = experiment.prompts_per_step
        try:
            unsolved = pool - set(progress.get("solved", ()))
            return next_prompts(self.problems, seed, cursor, count, lambda problem: problem.id in unsolved)
        except TooFewProblems:
            if asked or not progress.get("solved"):
                raise
            self.run.folder.ledger.append("all_solved", step=step, solved=len(progress["solved"]))
            progress["solved"] = []
            return next_prompts(self.problems, seed, cursor, count, lambda problem: problem.id in pool)

    def _note(self, problems: Sequence[Problem], answers: Answers, cursor: Cursor) -> None:
        progress, share = self.run.progress, self.run.experiment.curriculum.drop_solved
        progress["cursor"] = [cursor.epoch, cursor.place]
        if share is not None:
            right = answers.accuracies.reshape(len(problems), -1).mean(axis=1) >= share
            solved = {problem.id for problem, is_right in zip(problems, right, strict=True) if is_right}
            progress["solved"] = sorted(solved | set(progress.get("solved", ())))

    def _graded(self, pending: PendingAnswers) -> Answers:
        answers = pending.result()
        self.run.report_failures(answers.grades)
        if self.score is None:
            return answers
        model, scores = self.run.experiment.reward_model, self.score(answers.rollout)
        assert model is not None
        grades = [with_score(grade, float(score), model) for grade, score in zip(answers.grades, scores, strict=True)]
        return replace(answers, grades=grades)

    def _informative(self, answers: Answers) -> np.ndarray:
        """bool[N]: whether the filters keep any response of a group."""
        batch = first_batch(hosts.to_host(answers.rollout), jnp.asarray(answers.rewards))
        kept = apply_filters(self.run.experiment.algorithm.filters, batch).kept
        of_groups = np.asarray(kept).reshape(-1, self.run.experiment.responses_per_prompt)
        return np.any(of_groups, axis=1, keepdims=False)

    def _greedy(self, begun: Begun, problems: Sequence[Problem]) -> tuple[np.ndarray, int]:
        """The reward f32[B] of the greedy response to each row's prompt, made K times over by the program that is
        there, and the tokens of one of the K.
        """
        noise_key = key(self.run.seed, Purpose.ROLLOUT, begun.step)
        sampling = self.run.experiment.sampling.at(0.0)
        answers = self._graded(
            begun.engine.ask(begun.params, problems, noise_key, sampling, limit=self._limit(begun.step))
        )
        tokens = hosts.to_host(answers.rollout.mask).sum() / self.run.experiment.responses_per_prompt
        return answers.rewards, int(tokens)

    def _curriculum_values(self, step: int) -> dict[str, float]:
        curriculum, values = self.run.experiment.curriculum, dict[str, float]()
        if curriculum.difficulty is not None:
            values["curriculum/problems"] = curriculum.difficulty.count(len(self.problems), step)
        if curriculum.length is not None:
            values["curriculum/max_tokens"] = self._limit(step)
        if curriculum.drop_solved is not None:
            values["curriculum/solved"] = len(self.run.progress.get("solved", ()))
        return values

    def _experience(self, answers: Answers, fields: dict[str, Any]) -> Experience:
        experience: Experience = put_on_batch(
            self.engine.meshes.learner, Experience(answers.rollout, answers.rewards, fields)
        )
        return experience


def with_score(grade: Grade, score: float, model: RewardModel) -> Grade:
    """A grade with a reward model's score; what could not be graded earns nothing of it either."""
    if grade.status != "ok":
        return grade
    reward = model.weight * score + (grade.reward if model.added else 0.0)
    return replace(grade, reward=reward, components={**grade.components, "reward_model": score})


def joined(first: Answers, second: Answers) -> Answers:
    """Two rollouts as one, on the host."""
    rollout = jax.tree.map(lambda *parts: np.concatenate(parts), *hosts.to_host((first.rollout, second.rollout)))
    return Answers(
        rollout,
        first.responses + second.responses,
        first.grades + second.grades,
        first.generate_seconds + second.generate_seconds,
        first.grade_seconds + second.grade_seconds,
    )


def picked(answers: Answers, groups: np.ndarray, responses_per_prompt: int) -> Answers:
    """Some of the groups, on the host; all of them in their order are the answers as they are."""
    if len(groups) * responses_per_prompt == len(answers.grades) and (np.diff(groups) > 0).all():
        return answers
    rows = (groups[:, None] * responses_per_prompt + np.arange(responses_per_prompt)).reshape(-1)
    rollout = hosts.to_host(answers.rollout)
    prompts = jax.tree.map(lambda x: x[groups], rollout.prompts)
    of_rows = jax.tree.map(lambda x: x[rows], replace(rollout, prompts=None))
    return replace(
        answers,
        rollout=replace(of_rows, prompts=prompts),
        responses=[answers.responses[row] for row in rows],
        grades=[answers.grades[row] for row in rows],
    )


def _components(experiment: Experiment, answers: Answers) -> np.ndarray:
    """f32[B, C], unweighted, in the order of the reward; 0 for what could not be graded."""
    names = experiment.reward.names
    return np.array([[grade.components.get(name, 0.0) for name in names] for grade in answers.grades], np.float32)
