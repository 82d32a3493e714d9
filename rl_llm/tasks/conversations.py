"""Conversations of a JSONL file: checked lines -> a prepared copy -> tokens with a loss mask.

A line is {"prompt": "...", "response": "..."} or {"messages": [{"role": ..., "content": ...}, ...]} with the roles
system, user and assistant. The loss covers the assistant's text and the token that ends it, and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from rl_llm.problem import Problem, problem_id
from rl_llm.tasks.chat_template import Message
from rl_llm.tasks.prepared import TextRecord, parse_lines, prepare_copy, text_of

FIELD = "conversation"  # of a prepared record: the line's JSON, reduced to the fields that are read
ROLES = ("system", "user", "assistant")


class Learnable(NamedTuple):
    """Tokens, and the loss mask over them."""

    tokens: list[int]
    learned: list[bool]


class PairTokenizer(Protocol):
    """Tokenizer for pairs; messages also need `encode_chat` (`HuggingFaceTokenizer`)."""

    @property
    def end_id(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_prompt(self, text: str) -> list[int]: ...


def read_conversations(
    path: str | Path, data_dir: str | Path | None, tokenizer: PairTokenizer, row_tokens: int
) -> list[Problem]:
    """Read conversations in file order; `metadata` has "tokens" i32[n] and the loss mask "learned" bool[n].

    Raises FileNotFoundError, or ValueError naming a line that is malformed, that the tokenizer refuses, or that has
    more than `row_tokens` tokens.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"warm_start.demonstrations.path={str(path)!r} is not a file; set it to a JSONL file of conversations, a "
            'line {"prompt": "...", "response": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
        )
    content = path.read_bytes()

    def records() -> Mapping[str, list[TextRecord]]:
        return {"train": list(parse_lines(path, content, _parse))}

    found = prepare_copy(path, content, (FIELD,), records, data_dir, "conversations").read("train")
    return [
        problem
        for number, record in enumerate(found, 1)
        for problem in _encoded(path, number, record[FIELD], tokenizer, row_tokens)
    ]


def _parse(found: dict[str, Any], number: int) -> TextRecord:
    if "messages" not in found:
        if "prompt" not in found:
            raise ValueError(f"neither 'messages' nor 'prompt'; there are {', '.join(map(repr, found)) or 'no fields'}")
        kept: dict[str, Any] = {name: text_of(found, name) for name in ("prompt", "response")}
    else:
        if "prompt" in found or "response" in found:
            raise ValueError("a line has either 'messages', or 'prompt' and 'response'")
        if not isinstance(found["messages"], list):
            raise ValueError(f"'messages' is {found['messages']!r}; expected a list")
        kept = {"messages": [_message(index, message) for index, message in enumerate(found["messages"])]}
        roles = [message["role"] for message in kept["messages"]]
        if "system" in roles[1:]:
            raise ValueError("only the first message may be from the system")
        if not roles or roles[-1] != "assistant":
            raise ValueError("the last message must be the assistant's: later ones would not be learned")
        if "user" not in roles or roles.index("assistant") < roles.index("user"):
            raise ValueError("a user's message must precede the assistant's first one")
        if ("assistant", "assistant") in pairwise(roles):
            raise ValueError("two messages of the assistant are adjacent; join them")
    return {FIELD: json.dumps(kept, ensure_ascii=False)}


def _message(index: int, message: Any) -> Message:
    try:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"expected a role among {', '.join(ROLES)}, not {message!r}")
        if extra := sorted(set(message) - {"role", "content"}):
            raise ValueError(f"unknown {', '.join(map(repr, extra))}; expected only 'role' and 'content'")
        return {"role": message["role"], "content": text_of(message, "content")}
    except ValueError as error:
        raise ValueError(f"messages[{index}]: {error}") from error


def _encoded(path: Path, number: int, text: str, tokenizer: PairTokenizer, row_tokens: int) -> list[Problem]:
    line = json.loads(text)
    try:
        parts = _chat(tokenizer, line["messages"]) if "messages" in line else [_pair(tokenizer, **line)]
        for part in parts:
            if len(part.tokens) > row_tokens:
                raise ValueError(
                    f"the conversation has {len(part.tokens)} tokens; at most warm_start.demonstrations.row_tokens="
                    f"{row_tokens} fit in a row"
                )
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from error
    arrays = [{"tokens": np.array(tokens, np.int32), "learned": np.array(learned)} for tokens, learned in parts]
    return [Problem(problem_id(f"{path.stem}:{number}", text), text, answer="", metadata=found) for found in arrays]


def _pair(tokenizer: PairTokenizer, prompt: str, response: str) -> Learnable:
    """Encode a pair as RL would show the prompt and sample the response."""
    before, after = tokenizer.encode_prompt(prompt), tokenizer.encode(response)
    if tokenizer.end_id in after:
        raise ValueError("the response contains the end token")
    return Learnable([*before, *after, tokenizer.end_id], [False] * len(before) + [True] * (len(after) + 1))


def _chat(tokenizer: PairTokenizer, messages: Sequence[Message]) -> list[Learnable]:
    """Encode every assistant turn after exactly the tokens that it would be sampled after, in few sequences.

    Most templates only append, so a conversation is one sequence. If a template renders earlier turns differently from
    the last one (Qwen3 drops their thoughts), a turn that does not continue the sequence before it starts another.
    """
    if not hasattr(tokenizer, "encode_chat"):
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template for messages; write 'prompt' and 'response' instead"
        )
    found: list[Learnable] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before, turn = tokenizer.encode_chat(messages[:index], message["content"])
            if not found or before[: len(found[-1].tokens)] != found[-1].tokens:
                found.append(Learnable([], []))
            tokens, learned = found[-1]
            learned += [False] * (len(before) - len(tokens)) + [True] * len(turn)
            tokens += before[len(tokens) :] + turn
    return found
