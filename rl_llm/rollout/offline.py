"""Offline responses: stored responses as the graded rollout of a step."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rl_llm.experiment import Experiment
from rl_llm.parallel import hosts
from rl_llm.problem import Problem
from rl_llm.rewards.grader import Grader
from rl_llm.rewards.worker import Grade, failed
from rl_llm.rollout.engine import GradedRollout
from rl_llm.rollout.text import encode_prompts, pad
from rl_llm.types import Rollout


def grade_stored(grader: Grader, problems: Sequence[Problem]) -> list[Problem]:
    """Grade the stored responses without rewards: problems with `Grade`s in metadata["grades"].

    One process grades, so that all processes of a run have the same grades.
    """
    ungraded = [problem for problem in problems if "rewards" not in problem.metadata]
    asked = [replace(problem, metadata={}) for problem in ungraded for _ in problem.metadata["responses"]]
    responses = [response for problem in ungraded for response in problem.metadata["responses"]]
    grades = iter(hosts.on_writer(lambda: grader.grade(asked, responses)))
    return [
        replace(problem, metadata={**problem.metadata, "grades": [next(grades) for _ in problem.metadata["responses"]]})
        if "rewards" not in problem.metadata
        else problem
        for problem in problems
    ]


def read_rollout(experiment: Experiment, problems: Sequence[Problem]) -> GradedRollout:
    """Make a graded rollout of the responses stored with these problems, by `grade_stored` if they have no rewards.

    A response with a reward is right if that is at least 1. Raises ValueError naming a response that does not fit.
    """
    responses = [response for problem in problems for response in problem.metadata["responses"]]
    grades = [grade for problem in problems for grade in _grades(problem)]
    return GradedRollout(list(problems), read_responses(experiment, problems), responses, grades)


def _grades(problem: Problem) -> list[Grade]:
    if "rewards" not in problem.metadata:
        return list(problem.metadata["grades"])
    missing = failed("error", f"{problem.metadata['place']}: its stored reward is null")
    rewards = problem.metadata["rewards"]
    return [missing if reward is None else Grade("ok", float(reward), float(reward >= 1.0)) for reward in rewards]


def read_responses(experiment: Experiment, problems: Sequence[Problem]) -> Rollout:
    """Make an ungraded rollout of the responses stored with these problems.

    Log-probabilities are unknown, and 0. Raises ValueError naming a response that does not fit.
    """
    tokenizer, T = experiment.tokenizer, experiment.sampling.max_tokens
    for problem in problems:
        _check_origin(problem, experiment)
    rows = [row for problem in problems for row in _token_rows(problem, experiment)]
    tokens, lengths = pad(rows, T), np.array([len(row) for row in rows])
    mask = (np.arange(T) < lengths[:, None]).astype(np.float32)
    last = tokens[np.arange(len(tokens)), mask.sum(axis=1).astype(int) - 1]
    nothing = np.zeros_like(mask)
    return Rollout(
        prompts=encode_prompts(
            tokenizer, problems, experiment.max_prompt_tokens, vocabulary=experiment.model.vocabulary
        ),
        tokens=tokens,
        mask=mask,
        truncated=~np.isin(last, tokenizer.stop_ids),
        logp=nothing,
        policy_logp=nothing,
        model_logp=nothing,
        **_teacher_fields(experiment, problems),
    )


def _check_origin(problem: Problem, experiment: Experiment) -> None:
    place, tokenizer = problem.metadata["place"], experiment.tokenizer.fingerprint()
    if problem.metadata.get("tokenizer", tokenizer) != tokenizer:
        raise ValueError(f"{place}: the tokens come from another tokenizer; use the tokenizer they were sampled with")
    temperature = problem.metadata.get("temperature", experiment.sampling.temperature)
    if "teacher_logp" in problem.metadata and temperature != experiment.sampling.temperature:
        raise ValueError(
            f"{place}: its logits are those at temperature {temperature}, not at sampling.temperature="
            f"{experiment.sampling.temperature}"
        )


def _token_rows(problem: Problem, experiment: Experiment) -> list[list[int]]:
    """Token rows as sampled, or encoded from the text with an end token."""
    tokenizer, T, V = experiment.tokenizer, experiment.sampling.max_tokens, experiment.model.vocabulary
    rows = problem.metadata.get("tokens")
    if rows is None:
        rows = [[*tokenizer.encode(response), tokenizer.end_id] for response in problem.metadata["responses"]]
    for row in rows:
        ids = isinstance(row, list) and all(type(token) is int and 0 <= token < V for token in row)
        fits = ids and 1 <= len(row) <= T
        if not fits or not set(tokenizer.stop_ids).isdisjoint(row[:-1]):
            raise ValueError(
                f"{problem.metadata['place']}: the tokens {str(row)[:60]}: a response has 1 to sampling.max_tokens={T} "
                f"of them, ids below {V}, the end's only at the end"
            )
    return list(rows)


def _teacher_fields(experiment: Experiment, problems: Sequence[Problem]) -> dict[str, np.ndarray]:
    """Stored teacher_tokens i32[B, T, k] and teacher_logp f32[B, T, k], if the experiment asks for them.

    Padding holds the same for all and has no weight.
    """
    k = experiment.responses.top_tokens if experiment.responses else 0
    if not k:
        return {}
    shape = (len(problems) * experiment.responses_per_prompt, experiment.sampling.max_tokens, k)
    tokens, logps = np.zeros(shape, np.int32), np.full(shape, -np.log(k), np.float32)
    row = 0
    for problem in problems:
        lengths = map(len, _token_rows(problem, experiment))
        taught = (problem.metadata[name] for name in ("teacher_tokens", "teacher_logp"))
        for length, ids, logp in zip(lengths, *taught, strict=True):
            _check_taught(problem, experiment, length, ids, logp)
            tokens[row, :length], logps[row, :length] = np.array(ids)[:, :k], np.array(logp)[:, :k]
            row += 1
    return {"teacher_tokens": tokens, "teacher_logp": logps}


def _check_taught(problem: Problem, experiment: Experiment, length: int, ids: Any, logp: Any) -> None:
    """Raises ValueError unless ids and logp are those of distributions at every place of a response."""
    V, k = experiment.model.vocabulary, experiment.responses.top_tokens if experiment.responses else 0
    try:
        given, logps = np.array(ids), np.array(logp, np.float64)
    except (ValueError, TypeError):
        given = logps = np.zeros(0)
    fits = given.ndim == 2 and given.shape == logps.shape and given.shape[0] == length and given.shape[1] >= k
    if not fits or given.dtype.kind != "i":
        raise ValueError(
            f"{problem.metadata['place']}: teacher_tokens and teacher_logp have, for each of the {length} tokens of a "
            f"response, {k} or more ids and as many log-probabilities"
        )
    different = all(len(set(place)) == len(place) for place in given.tolist())
    if not different or given.min() < 0 or given.max() >= V:
        raise ValueError(f"{problem.metadata['place']}: teacher_tokens are different ids below the vocabulary's {V}")
    if not np.isfinite(logps).all() or (np.exp(logps).sum(axis=1) > 1 + 1e-4).any():
        raise ValueError(
            f"{problem.metadata['place']}: teacher_logp are finite, and probabilities sum to no more than 1"
        )
