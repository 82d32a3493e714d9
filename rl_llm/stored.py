"""Stored responses as the answers of a step: what a sampler and a verifier would have given."""

from collections.abc import Sequence

import numpy as np

from rl_llm.actor import Answers
from rl_llm.experiment import Experiment, Tokenizer
from rl_llm.problem import Problem
from rl_llm.rewards.worker import Grade
from rl_llm.text import encode_prompts, pad
from rl_llm.types import Rollout


def stored_answers(experiment: Experiment, problems: Sequence[Problem]) -> tuple[Answers, dict[str, np.ndarray]]:
    """The responses that came with these problems, as answers (a right one is one of reward 1 or more), and the fields
    of their batch. Log-probabilities are 0: nobody knows them.

    Raises ValueError naming a response that does not fit.
    """
    responses = [response for problem in problems for response in problem.metadata["responses"]]
    rewards = [float(reward) for problem in problems for reward in problem.metadata["rewards"]]
    tokenizer, T = experiment.tokenizer, experiment.sampling.max_tokens
    rows = [row for problem in problems for row in _token_rows(tokenizer, problem)]
    _check_tokens(rows, experiment)
    tokens, lengths = pad(rows, T), np.array([len(row) for row in rows])
    mask = (np.arange(T) < lengths[:, None]).astype(np.float32)
    last = tokens[np.arange(len(tokens)), mask.sum(axis=1).astype(int) - 1]
    nothing = np.zeros_like(mask)
    rollout = Rollout(
        prompts=encode_prompts(tokenizer, problems, experiment.max_prompt_tokens),
        tokens=tokens,
        mask=mask,
        truncated=last != tokenizer.end_id,
        logp=nothing,
        policy_logp=nothing,
        model_logp=nothing,
    )
    grades = [Grade("ok", reward, float(reward >= 1.0)) for reward in rewards]
    return Answers(rollout, responses, grades, 0.0, 0.0), _teachers_fields(experiment, problems)


def _token_rows(tokenizer: Tokenizer, problem: Problem) -> list[list[int]]:
    """The tokens that were sampled, or those of the text with an end token."""
    if "tokens" in problem.metadata:
        return list(problem.metadata["tokens"])
    return [[*tokenizer.encode(response), tokenizer.end_id] for response in problem.metadata["responses"]]


def _check_tokens(rows: Sequence[Sequence[int]], experiment: Experiment) -> None:
    T, V = experiment.sampling.max_tokens, experiment.model.vocabulary
    for row in rows:
        if not 1 <= len(row) <= T or not all(isinstance(token, int) and 0 <= token < V for token in row):
            raise ValueError(
                f"stored tokens {str(row)[:60]} ({len(row)}): a response has 1 to sampling.max_tokens={T} tokens, "
                f"each an id below the vocabulary's {V}"
            )


def _teachers_fields(experiment: Experiment, problems: Sequence[Problem]) -> dict[str, np.ndarray]:
    """teacher_tokens i32[B, T, k] and teacher_logp f32[B, T, k] of the stored ones; nothing where none are asked
    for.
    """
    k = experiment.responses.top_tokens if experiment.responses else 0
    if not k:
        return {}
    shape = (len(problems) * experiment.responses_per_prompt, experiment.sampling.max_tokens, k)
    fields = {"teacher_tokens": np.zeros(shape, np.int32), "teacher_logp": np.full(shape, -np.log(k), np.float32)}
    for name, padded in fields.items():
        rows = [row for problem in problems for row in problem.metadata[name]]
        for target, row in zip(padded, rows, strict=True):
            given = np.asarray(row)
            if given.ndim != 2 or given.shape[0] > shape[1] or given.shape[1] < k:
                raise ValueError(
                    f"stored {name} of shape {given.shape}: a response of up to {shape[1]} tokens has {k} or more for "
                    f"each"
                )
            target[: len(given)] = given[:, :k]
    return fields
