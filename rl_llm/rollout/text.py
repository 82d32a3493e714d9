"""Text to arrays and back: problems to padded prompts, responses to token rows, rollouts to text. Host side, NumPy."""

from collections.abc import Sequence

import jax
import numpy as np

from rl_llm.experiment import Tokenizer
from rl_llm.experiment.suite import SHOWN
from rl_llm.problem import Problem
from rl_llm.types import Prompts, Rollout


def encode_prompts(
    tokenizer: Tokenizer, problems: Sequence[Problem], width: int, prefix: str = "", vocabulary: int | None = None
) -> Prompts:
    """Encode right-padded prompts i32[N, width], each followed by `prefix`, the forced start of its response.

    Raises ValueError naming a prompt that is empty, longer than `width` tokens, or not in a model's `vocabulary`.
    """
    start = tokenizer.encode(prefix)
    rows = [encode_shown(tokenizer, problem) + start for problem in problems]
    for problem, row in zip(problems, rows, strict=True):
        if not 1 <= len(row) <= width:
            prefixed = f" with the prefix {prefix!r}" if prefix else ""
            raise ValueError(
                f"prompt {problem.prompt[:60]!r} has {len(row)} tokens{prefixed}; expected 1 to "
                f"max_prompt_tokens={width}"
            )
    check_ids(tokenizer, rows, [problem.prompt for problem in problems], vocabulary)
    ids = np.array([problem.id for problem in problems], np.int32)
    return Prompts(tokens=pad(rows, width), lengths=np.array([len(row) for row in rows], np.int32), ids=ids)


def encode_shown(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    """Encode a problem as the model is shown it: its text, or its messages by the tokenizer's chat template."""
    messages = problem.metadata.get("messages")
    if messages is None:
        return tokenizer.encode_prompt(problem.metadata.get(SHOWN, problem.prompt))
    try:
        encode = tokenizer.encode_messages  # type: ignore[attr-defined]
    except AttributeError as error:
        raise ValueError(
            f"the prompt {problem.prompt[:60]!r} has {len(messages)} messages, and {type(tokenizer).__name__} has no "
            "chat template; use HuggingFaceTokenizer with chat=true, or a file of prompts of one message each"
        ) from error
    return list(encode(messages))


def longest_prompt(tokenizer: Tokenizer, problems: Sequence[Problem], vocabulary: int) -> int:
    """Length of the longest prompt in tokens. Raises ValueError for one that is not in the vocabulary."""
    rows = [encode_shown(tokenizer, problem) for problem in problems]
    check_ids(tokenizer, rows, [problem.prompt for problem in problems], vocabulary)
    return max(map(len, rows))


def encode_responses(
    tokenizer: Tokenizer, responses: Sequence[str], width: int, name: str, vocabulary: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode right-padded responses with their end token: tokens i32[B, width] and mask f32[B, width].

    Raises ValueError naming a response that is longer, and the field `name` that limits its length, or one that is not
    in a model's `vocabulary`.
    """
    rows = [[*tokenizer.encode(response), tokenizer.end_id] for response in responses]
    lengths = np.array([len(row) for row in rows])
    if lengths.max() > width:
        longest = responses[int(lengths.argmax())]
        raise ValueError(f"response {longest[:60]!r} has {lengths.max()} tokens with its end; {name}={width}")
    check_ids(tokenizer, rows, responses, vocabulary)
    return pad(rows, width), (np.arange(width) < lengths[:, None]).astype(np.float32)


def check_ids(
    tokenizer: Tokenizer, rows: Sequence[Sequence[int]], texts: Sequence[str], vocabulary: int | None
) -> None:
    """Raise ValueError naming a token of a text that a model has no embedding for (None: any model).

    A tokenizer may have more ids than its model, such as Gemma 3's placeholder of images.
    """
    for text, row in zip(texts, rows, strict=True):
        if vocabulary is not None and len(row) and (largest := int(max(row))) >= vocabulary:
            raise ValueError(
                f"{text[:60]!r} has the token {tokenizer.decode([largest])!r} (id {largest}), for which the model has "
                f"no embedding: model.vocabulary={vocabulary}; take it out of the text or the chat template"
            )


def decode_responses(tokenizer: Tokenizer, rollout: Rollout) -> list[str]:
    """Decode the text of each row of a rollout, up to its end token."""
    tokens, mask = jax.device_get((rollout.tokens, rollout.mask))
    return [tokenizer.decode(row[: int(length)].tolist()) for row, length in zip(tokens, mask.sum(axis=1), strict=True)]


def pad(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Right-pad rows with 0 to i32[len(rows), width]."""
    padded = np.zeros((len(rows), width), np.int32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
