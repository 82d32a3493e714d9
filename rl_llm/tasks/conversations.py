"""Conversations from a JSONL file, to be learned: checked lines -> a prepared copy -> tokens, and which are learned.

A line is {"prompt": "...", "response": "..."} or {"messages": [{"role": ..., "content": ...}, ...]} with the roles
system, user and assistant. What is learned is what the assistant says, with the token that ends it, and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from rl_llm.problem import Problem, problem_id
from rl_llm.tasks.chat_template import Message
from rl_llm.tasks.prepared import Record, parse_lines, prepare, text_of

FIELD = "conversation"  # of a prepared record: the line's JSON, with nothing in it but what is looked at
ROLES = ("system", "user", "assistant")


class Learnable(NamedTuple):
    """Tokens in their order, and which of them are learned."""

    tokens: list[int]
    learned: list[bool]


class PairTokenizer(Protocol):
    """What pairs need of a tokenizer; messages need `encode_chat` besides (`HuggingFaceTokenizer`)."""

    @property
    def end_id(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_prompt(self, text: str) -> list[int]: ...


def read_conversations(
    path: str | Path, data_dir: str | Path | None, tokenizer: PairTokenizer, row_tokens: int
) -> list[Problem]:
    """The conversations of a file in its order, `metadata` having "tokens" i32[n] and "learned" bool[n] of each.

    Raises FileNotFoundError, or ValueError naming the line that is malformed, that the tokenizer cannot serve, or that
    has more than `row_tokens` tokens.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"warm_start.demonstrations.path={str(path)!r} is no file: set it to a JSONL file of conversations, each "
            'line {"prompt": "...", "response": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
        )
    content = path.read_bytes()

    def records() -> Mapping[str, list[Record]]:
        return {"train": list(parse_lines(path, content, _parse))}

    found = prepare(path, content, (FIELD,), records, data_dir, "conversations").read("train")
    return [
        problem
        for number, record in enumerate(found, 1)
        for problem in _encoded(path, number, record[FIELD], tokenizer, row_tokens)
    ]


def _parse(found: dict[str, Any], number: int) -> Record:
    if "messages" not in found:
        if "prompt" not in found:
            raise ValueError(f"neither 'messages' nor 'prompt'; there are {', '.join(map(repr, found)) or 'no fields'}")
        kept: dict[str, Any] = {name: text_of(found, name) for name in ("prompt", "response")}
    else:
        if "prompt" in found or "response" in found:
            raise ValueError("a line has either 'messages', or 'prompt' and 'response'")
        if not isinstance(found["messages"], list):
            raise ValueError(f"'messages' is {found['messages']!r}: it must be a list")
        kept = {"messages": [_message(index, message) for index, message in enumerate(found["messages"])]}
        roles = [message["role"] for message in kept["messages"]]
        if "system" in roles[1:]:
            raise ValueError("only the first message may be the system's")
        if not roles or roles[-1] != "assistant":
            raise ValueError("the last message must be the assistant's: nothing after its last one would be learned")
        if "user" not in roles or roles.index("assistant") < roles.index("user"):
            raise ValueError("a user's message must stand before the assistant's first one")
        if ("assistant", "assistant") in pairwise(roles):
            raise ValueError("two messages of the assistant follow each other: make them one")
    return {FIELD: json.dumps(kept, ensure_ascii=False)}


def _message(index: int, message: Any) -> Message:
    try:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"it needs a role, one of {', '.join(ROLES)}, not {message!r}")
        if extra := sorted(set(message) - {"role", "content"}):
            raise ValueError(f"it has {', '.join(map(repr, extra))}, which would not be learned: only role and content")
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
                    f"the conversation has {len(part.tokens)} tokens; a row has warm_start.demonstrations.row_tokens="
                    f"{row_tokens}"
                )
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from error
    arrays = [{"tokens": np.array(tokens, np.int32), "learned": np.array(learned)} for tokens, learned in parts]
    return [Problem(problem_id(f"{path.stem}:{number}", text), text, answer="", metadata=found) for found in arrays]


def _pair(tokenizer: PairTokenizer, prompt: str, response: str) -> Learnable:
    """As reinforcement learning would show the prompt, and sample the response."""
    before, after = tokenizer.encode_prompt(prompt), tokenizer.encode(response)
    if tokenizer.end_id in after:
        raise ValueError("the end token stands within the response")
    return Learnable([*before, *after, tokenizer.end_id], [False] * len(before) + [True] * (len(after) + 1))


def _chat(tokenizer: PairTokenizer, messages: Sequence[Message]) -> list[Learnable]:
    """Every turn of the assistant behind the very tokens that it would be sampled behind, in as few sequences as this
    allows.

    Most templates only append, and a conversation is one sequence. A template that writes earlier turns otherwise than
    the last one (Qwen3 leaves their thoughts out) makes a sequence for each turn that is not met by the one before.
    """
    if not hasattr(tokenizer, "encode_chat"):
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template, which messages need: write 'prompt' and 'response'"
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
