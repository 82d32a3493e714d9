"""Evaluation of a policy on problems: accuracy and pass@k, with samples to look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rl_llm.experiment.suite import Suite
from rl_llm.parallel import hosts
from rl_llm.problem import Problem
from rl_llm.rewards.grader import refuse_ungraded
from rl_llm.rollout.engine import GradedRollout, RolloutEngine
from rl_llm.rollout.text import longest_prompt
from rl_llm.sampler import Sampling


@dataclass(frozen=True)
class Evaluated:
    """Result of K samples for each of a set of problems. Lengths are in tokens, the end token included."""

    accuracy: float
    pass_at_k: dict[int, float]
    response_length: float
    truncated: float
    tokens: int
    samples: list[dict[str, Any]]

    def numbers(self) -> dict[str, Any]:
        """Everything but tokens and samples, as JSON values."""
        return {
            "accuracy": self.accuracy,
            "pass_at_k": {str(k): value for k, value in self.pass_at_k.items()},
            "response_length": self.response_length,
            "truncated": self.truncated,
        }


def evaluate(
    engine: RolloutEngine,
    keep: Callable[[Sequence[Problem], GradedRollout], None] | None,
    params: dict,
    problems: Sequence[Problem],
    noise_key: jax.Array,
    sampling: Sampling,
    prefix: str = "",
) -> Evaluated:
    """Evaluate a policy on problems, `engine.prompts` at a time.

    At temperature 0 a problem is asked once, and its response stands for all K. The last call is filled up with
    repeated problems whose responses are dropped. A row's noise does not depend on its neighbours, so this does not
    change the result. `keep` receives the problems of every call and its rollout, whose first rows answer them. A
    response that could not be graded counts as wrong. Raises GradingError for too many.
    """
    N, K = engine.prompts, engine.samples
    if not problems:
        raise ValueError("the list of problems is empty; expected at least one problem to evaluate on")
    if sampling.temperature == 0 and K > 1:
        engine = engine.sized(samples=1)
    params = engine.place(params)
    accuracies, lengths, truncated, samples, grades = [], [], [], [], []
    for start in range(0, len(problems), N):
        part = list(problems[start : start + N])
        filled = (part * (-(-N // len(part))))[:N]
        graded = engine.submit(params, filled, noise_key, sampling, prefix).result()
        rows = len(part) * engine.samples
        if keep is not None:
            keep(part, graded)
        mask, cut = hosts.to_host((graded.rollout.mask, graded.rollout.truncated))
        accuracies.append(graded.accuracies[:rows].reshape(len(part), -1))
        lengths.append(mask[:rows].sum(axis=1))
        truncated.append(cut[:rows])
        grades += graded.grades[:rows]
        samples += [
            {
                "prompt": problem.prompt,
                "answer": problem.answer,
                "response": graded.responses[n * engine.samples],
                "reward": graded.grades[n * engine.samples].reward,
            }
            for n, problem in enumerate(part)
        ]
    refuse_ungraded(grades, engine.experiment.grading.ungraded)
    table, length = np.concatenate(accuracies), np.concatenate(lengths)
    right = (table >= 1.0).sum(axis=1) * (K // engine.samples)
    return Evaluated(
        accuracy=float(table.mean(dtype=np.float64)),
        # Every k between the two needs binomial coefficients: `rl_llm.evaluation.statistics`.
        pass_at_k={1: float(np.mean(1.0 - (K - right) / K)), K: float(np.mean(right > 0))},
        response_length=float(length.mean()),
        truncated=float(np.concatenate(truncated).mean()),
        tokens=int(length.sum()),
        samples=samples,
    )


def engine_of(engine: RolloutEngine, suite: Suite, problems: Sequence[Problem], rows: int = 0) -> RolloutEngine:
    """A run's engine in the size that a suite needs, with at most `rows` responses at once (0: as many as the run)."""
    experiment = engine.experiment
    sampling = suite.sampling or experiment.sampling
    K = 1 if sampling.temperature == 0 else suite.samples or experiment.responses_per_prompt
    rows = rows or experiment.prompts_per_step * experiment.responses_per_prompt
    longest = longest_prompt(experiment.tokenizer, problems, experiment.model.vocabulary)
    width = experiment.max_prompt_tokens if longest <= experiment.max_prompt_tokens else -(-longest // 64) * 64
    return engine.sized(K, max(rows // K // engine.unit, 1) * engine.unit, width, sampling.max_tokens)
