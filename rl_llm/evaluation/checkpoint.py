"""Evaluation of a run folder's newest good checkpoint, apart from the run."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rl_llm.actor import open_actor
from rl_llm.evaluation.evaluate import evaluate
from rl_llm.evaluation.samples import SamplesFile
from rl_llm.experiment import Experiment
from rl_llm.mesh import Meshes
from rl_llm.noise import Purpose, key
from rl_llm.problem import Problem
from rl_llm.recorded import newest_state
from rl_llm.sampler import Sampling
from rl_llm.state import policy_of


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
    with open_actor(experiment, meshes) as actor:
        params = policy_of(restored.state)
        with SamplesFile(actor, params, samples, sampling.temperature, logits) if samples else nullcontext() as file:
            keep = file.add if file else None
            outcome = evaluate(actor, params, problems, key(seed, Purpose.EVALUATION), sampling, keep=keep)
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
