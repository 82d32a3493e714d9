"""Evaluation on a split: accuracy of samples and pass@k, with the samples kept to be looked at."""

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
from rl_llm.rewards.grader import refuse_all_failed
from rl_llm.rollout.engine import Answers, RolloutEngine, open_engine
from rl_llm.rollout.samples import SamplesFile
from rl_llm.runs.load import newest_state
from rl_llm.sampler import Sampling


@dataclass(frozen=True)
class Outcome:
    """What K samples for each of a set of problems came to. Lengths are in tokens, the end token included."""

    accuracy: float
    pass_at_k: dict[int, float]
    response_length: float
    truncated: float
    tokens: int
    samples: list[dict[str, Any]]


def evaluate(
    engine: RolloutEngine,
    params: dict,
    problems: Sequence[Problem],
    key: jax.Array,
    sampling: Sampling,
    prefix: str = "",
    keep: Callable[[Sequence[Problem], Answers], None] | None = None,
) -> Outcome:
    """Put every problem to the policy, `prompts_per_step` at a time (the program that is compiled already).

    The last call is filled up with problems again, whose answers are dropped: a row's noise does not depend on its
    neighbours, so the outcome is that of the problems alone. `keep` is given the problems of every call and the
    answers, of which the first rows are theirs. Raises GradingError when no answer could be graded.
    """
    N, K = engine.experiment.prompts_per_step, engine.experiment.responses_per_prompt
    if not problems:
        raise ValueError("nothing to evaluate on: the list of problems is empty")
    params = engine.placed(params)
    accuracies, lengths, cut, samples, grades = [], [], [], [], []
    for start in range(0, len(problems), N):
        part = list(problems[start : start + N])
        filled = (part * (-(-N // len(part))))[:N]
        answers = engine.answer(params, filled, key, sampling, prefix)
        rows = len(part) * K
        if keep is not None:
            keep(part, answers)
        mask, truncated = hosts.to_host((answers.rollout.mask, answers.rollout.truncated))
        accuracies.append(answers.accuracies[:rows].reshape(-1, K))
        lengths.append(mask[:rows].sum(axis=1))
        cut.append(truncated[:rows])
        grades += answers.grades[:rows]
        samples += [
            {
                "prompt": p.prompt,
                "answer": p.answer,
                "response": answers.responses[i * K],
                "reward": answers.grades[i * K].reward,
            }
            for i, p in enumerate(part)
        ]
    refuse_all_failed(grades)
    table, length = np.concatenate(accuracies), np.concatenate(lengths)
    right = (table >= 1.0).sum(axis=1)
    return Outcome(
        accuracy=float(table.mean(dtype=np.float64)),
        pass_at_k={k: pass_at_k(right, K, k) for k in {1, K}},
        response_length=float(length.mean()),
        truncated=float(np.concatenate(cut).mean()),
        tokens=int(length.sum()),
        samples=samples,
    )


def pass_at_k(right: np.ndarray, samples: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from `right` i[N] of n samples (arXiv
    2107.03374, eq. 1).
    """
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
    """Accuracy, pass@k, length and truncation on `problems`, with the noise of the run's own evaluations. All responses
    go to the file `samples`, as `StoredResponses` reads them, with the policy's `logits` likeliest tokens at each
    place.

    Raises CheckpointError when the folder has no good checkpoint.
    """
    restored = newest_state(experiment, folder, meshes.learner)
    with open_engine(experiment, meshes) as engine:
        params = policy_of(restored.state)
        with SamplesFile(engine, params, samples, sampling.temperature, logits) if samples else nullcontext() as file:
            keep = file.add if file else None
            outcome = evaluate(engine, params, problems, key(seed, Purpose.EVALUATION), sampling, keep=keep)
    return {
        "step": restored.step,
        "problems": len(problems),
        "responses_per_prompt": experiment.responses_per_prompt,
        "temperature": sampling.temperature,
        "accuracy": outcome.accuracy,
        "pass_at_k": {str(k): value for k, value in outcome.pass_at_k.items()},
        "response_length": outcome.response_length,
        "truncated": outcome.truncated,
    }
