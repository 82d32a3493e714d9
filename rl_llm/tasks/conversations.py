"""Conversations of a data file: checked rows -> a prepared copy -> tokens with a loss mask.

A row has messages, ShareGPT's `conversations`, Alpaca's `instruction` and `output`, or a `prompt` with a `response` or
`completion`. The roles are system, user and assistant. The loss covers the assistant's text and the token that ends it,
and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from rl_llm.problem import Problem, problem_id
from rl_llm.tasks.messages import Message, messages_of, prompt_of, refuse_shown
from rl_llm.tasks.prepared import prepare_copy
from rl_llm.tasks.tables import Fields, TextRecord, parse_rows, read_files, text_of

FIELD, PLACE = "conversation", "place"  # of a prepared record: the row's JSON, reduced to what is read, and its place
PARSER = 3  # raised with every change of code that makes other records of the same file
RESPONSES = ("completion", "response")
SPEAKERS = {"human": "user", "gpt": "assistant"}  # of ShareGPT


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

    Raises FileNotFoundError, or ValueError naming a row that is malformed, that the tokenizer refuses, or that has
    more than `row_tokens` tokens.
    """
    files = read_files(
        path,
        f"warm_start.demonstrations.path={str(path)!r} is not a file; set it to a file of conversations, e.g. with "
        'lines {"prompt": "...", "response": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}',
    )

    def records() -> Mapping[str, list[TextRecord]]:
        found: list[TextRecord] = []
        for place, _, record in parse_rows(files, _parse):
            if isinstance(record, ValueError):
                raise record
            found.append({**record, PLACE: place})
        return {"train": found}

    decided_by = f"conversations {PARSER} {path}"
    found = prepare_copy(Path(path), [*files.items()], (FIELD, PLACE), records, data_dir, decided_by).read("train")
    return [
        problem
        for number, record in enumerate(found, 1)
        for problem in _encoded(f"{Path(path).stem}:{number}", record, tokenizer, row_tokens)
    ]


def _parse(row: Fields) -> TextRecord:
    refuse_shown(row, {"system"})
    read = next((read for name, read in _FORMS.items() if row.get(name) is not None), None)
    if read is None:
        raise ValueError(
            f"none of {', '.join(map(repr, _FORMS))} is filled; there are {', '.join(map(repr, row)) or 'no fields'}"
        )
    return {FIELD: json.dumps(_with_system(row, read(row)), ensure_ascii=False)}


def _from_messages(row: Fields) -> dict[str, Any]:
    messages = messages_of(row["messages"])
    asked = next((message["content"] for message in messages if message["role"] == "user"), None)
    if any(row.get(name) is not None for name in RESPONSES) or row.get("prompt") not in (None, asked):
        raise ValueError("a line has either 'messages', or 'prompt' and 'response'")
    return _conversation(messages)


def _from_sharegpt(row: Fields) -> dict[str, Any]:
    if not isinstance(row["conversations"], list):
        raise ValueError(f"'conversations' is {row['conversations']!r}; expected a list")
    said = []
    for turn in row["conversations"]:
        turn = dict(turn) if isinstance(turn, dict) else {"": turn}
        if "from" in turn and "value" in turn:
            speaker = turn.pop("from")
            turn = {"role": SPEAKERS.get(speaker, speaker), "content": turn.pop("value"), **turn}
        said.append(turn)
    return _conversation(messages_of(said, "conversations"))


def _from_alpaca(row: Fields) -> dict[str, Any]:
    below = [text_of(row, "input")] if row.get("input") else []
    return {"prompt": "\n".join([text_of(row, "instruction"), *below]), "response": text_of(row, "output")}


def _from_pair(row: Fields) -> dict[str, Any]:
    prompt, messages = prompt_of(row["prompt"])
    name = next((name for name in RESPONSES if row.get(name) is not None), "response")
    if all(row.get(name) is not None for name in RESPONSES):
        raise ValueError("a line has either 'completion' or 'response'; remove one")
    if not isinstance(row.get(name), list):
        response = text_of(row, name)
    else:
        answer = messages_of(row[name], name)
        if [message["role"] for message in answer] != ["assistant"]:
            raise ValueError(f"{name!r} has {len(answer)} messages; expected one of the assistant")
        response = answer[0]["content"]
    if not messages:
        return {"prompt": prompt, "response": response}
    return _conversation([*messages, {"role": "assistant", "content": response}], learned_from=len(messages))


_FORMS = {
    "messages": _from_messages,
    "conversations": _from_sharegpt,
    "instruction": _from_alpaca,
    "prompt": _from_pair,
}


def _with_system(row: Fields, kept: dict[str, Any]) -> dict[str, Any]:
    """Put the row's own system message before a conversation."""
    if not row.get("system"):
        return kept
    pair = [{"role": role, "content": kept.get(name)} for role, name in (("user", "prompt"), ("assistant", "response"))]
    later = {"learned_from": kept["learned_from"] + 1} if "learned_from" in kept else {}
    system = {"role": "system", "content": row["system"]}
    return {"messages": messages_of([system, *kept.get("messages", pair)]), **later}


def _conversation(messages: Sequence[Message], learned_from: int = 0) -> dict[str, Any]:
    """Check the order of roles. Of the assistant's turns, those from `learned_from` on are learned."""
    roles = [message["role"] for message in messages]
    if roles[-1] != "assistant":
        raise ValueError("the last message must be the assistant's: later ones would not be learned")
    if "user" not in roles or roles.index("assistant") < roles.index("user"):
        raise ValueError("a user's message must precede the assistant's first one")
    if ("assistant", "assistant") in pairwise(roles):
        raise ValueError("two messages of the assistant are adjacent; join them")
    return {"messages": messages, **({"learned_from": learned_from} if "assistant" in roles[:learned_from] else {})}


def _encoded(name: str, record: TextRecord, tokenizer: PairTokenizer, row_tokens: int) -> list[Problem]:
    text = record[FIELD]
    line = json.loads(text)
    try:
        parts = [_pair(tokenizer, **line)] if "prompt" in line else _chat(tokenizer, **line)
        for part in parts:
            if len(part.tokens) > row_tokens:
                raise ValueError(
                    f"the conversation has {len(part.tokens)} tokens; at most warm_start.demonstrations.row_tokens="
                    f"{row_tokens} fit in a row"
                )
    except ValueError as error:
        raise ValueError(f"{record[PLACE]}: {error}") from error
    arrays = [{"tokens": np.array(tokens, np.int32), "learned": np.array(learned)} for tokens, learned in parts]
    return [Problem(problem_id(name, text), text, answer="", metadata=found) for found in arrays]


def _pair(tokenizer: PairTokenizer, prompt: str, response: str) -> Learnable:
    """Encode a pair as RL would show the prompt and sample the response."""
    before, after = tokenizer.encode_prompt(prompt), tokenizer.encode(response)
    if tokenizer.end_id in after:
        raise ValueError("the response contains the end token")
    return Learnable([*before, *after, tokenizer.end_id], [False] * len(before) + [True] * (len(after) + 1))


def _chat(tokenizer: PairTokenizer, messages: Sequence[Message], learned_from: int = 0) -> list[Learnable]:
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
        if message["role"] == "assistant" and index >= learned_from:
            before, turn = tokenizer.encode_chat(messages[:index], message["content"])
            if not found or before[: len(found[-1].tokens)] != found[-1].tokens:
                found.append(Learnable([], []))
            tokens, learned = found[-1]
            learned += [False] * (len(before) - len(tokens)) + [True] * len(turn)
            tokens += before[len(tokens) :] + turn
    return found
