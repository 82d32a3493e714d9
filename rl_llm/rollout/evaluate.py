"""Evaluation of a policy on problems: accuracy and pass@k, with samples to look at."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rl_llm.experiment import Experiment
from rl_llm.learner.state import policy_of
from rl_llm.parallel import hosts
from rl_llm.parallel.mesh import Meshes
from rl_llm.prng import Purpose, key
from rl_llm.problem import Problem
from rl_llm.rewards.grader import refuse_ungraded
from rl_llm.rollout.engine import GradedRollout, RolloutEngine, open_engine
from rl_llm.rollout.samples import SamplesFile
from rl_llm.runs.load import newest_state
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
    """Evaluate a policy on problems, `prompts_per_step` at a time, with the sampler that is already compiled.

    The last call is filled up with repeated problems whose responses are dropped. A row's noise does not depend on its
    neighbours, so this does not change the result. `keep` receives the problems of every call and its rollout, whose
    first rows answer them. A response that could not be graded counts as wrong. Raises GradingError for too many.
    """
    N, K = engine.experiment.prompts_per_step, engine.experiment.responses_per_prompt
    if not problems:
        raise ValueError("the list of problems is empty; expected at least one problem to evaluate on")
    params = engine.place(params)
    accuracies, lengths, truncated, samples, grades = [], [], [], [], []
    for start in range(0, len(problems), N):
        part = list(problems[start : start + N])
        filled = (part * (-(-N // len(part))))[:N]
        graded = engine.submit(params, filled, noise_key, sampling, prefix).result()
        rows = len(part) * K
        if keep is not None:
            keep(part, graded)
        mask, cut = hosts.to_host((graded.rollout.mask, graded.rollout.truncated))
        accuracies.append(graded.accuracies[:rows].reshape(-1, K))
        lengths.append(mask[:rows].sum(axis=1))
        truncated.append(cut[:rows])
        grades += graded.grades[:rows]
        samples += [
            {
                "prompt": problem.prompt,
                "answer": problem.answer,
                "response": graded.responses[n * K],
                "reward": graded.grades[n * K].reward,
            }
            for n, problem in enumerate(part)
        ]
    refuse_ungraded(grades, engine.experiment.grading.ungraded)
    table, length = np.concatenate(accuracies), np.concatenate(lengths)
    right = (table >= 1.0).sum(axis=1)
    return Evaluated(
        accuracy=float(table.mean(dtype=np.float64)),
        pass_at_k={k: pass_at_k(right, K, k) for k in {1, K}},
        response_length=float(length.mean()),
        truncated=float(np.concatenate(truncated).mean()),
        tokens=int(length.sum()),
        samples=samples,
    )


def pass_at_k(right: np.ndarray, samples: int, k: int) -> float:
    """Unbiased estimate of pass@k from `right` i[N], the right ones among `samples` (arXiv 2107.03374, eq. 1)."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {samples} samples")
    return float(np.mean([1.0 - comb(samples - int(count), k) / comb(samples, k) for count in right]))


def evaluate_checkpoint(
    experiment: Experiment,
    seed: int,
    folder: Path,
    meshes: Meshes,
    problems: Sequence[Problem],
    sampling: Sampling,
    samples: Path | None = None,
    logits: int = 0,
) -> dict[str, Any]:
    """Evaluate a run folder's newest good checkpoint on `problems`, with the noise of the run's own evaluations.

    Returns accuracy, pass@k, length and truncation as JSON values. All responses go to the file `samples` in the format
    of `StoredResponses`, with the policy's `logits` likeliest tokens at each position. Raises CheckpointError if the
    folder has no good checkpoint.
    """
    restored = newest_state(experiment, folder, meshes.learner)
    with open_engine(experiment, meshes) as engine:
        params = policy_of(restored.state)
        with SamplesFile(engine, params, samples, sampling.temperature, logits) if samples else nullcontext() as file:
            keep = file.add if file else None
            found = evaluate(engine, keep, params, problems, key(seed, Purpose.EVALUATION), sampling)
    return {
        "step": restored.step,
        "problems": len(problems),
        "responses_per_prompt": experiment.responses_per_prompt,
        "temperature": sampling.temperature,
        **found.numbers(),
    }
