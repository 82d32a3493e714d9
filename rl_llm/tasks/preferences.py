"""Judged pairs in the layouts of TRL: a prompt with a chosen and a rejected response, as texts or as messages."""

from typing import Any

from rl_llm.tasks.messages import Message, messages_of, prompt_of
from rl_llm.tasks.tables import Fields, text_of

TURN = "\n\nAssistant:"  # before the last response in transcripts such as those of HH-RLHF


def judged_pair(row: Fields) -> dict[str, Any]:
    """Reduce a row with `chosen` and `rejected` to a prompt, two responses and their rewards, 1 and 0.

    Without a `prompt` it is what both sides begin with. Raises ValueError if the sides answer different prompts.
    """
    if isinstance(row["chosen"], list):
        prompt, responses = _of_messages(row)
    elif row.get("prompt") is not None:
        prompt, responses = row["prompt"], [text_of(row, side) for side in ("chosen", "rejected")]
    else:
        prompt, responses = _of_transcripts(row)
    if responses[0] == responses[1]:
        raise ValueError(
            "'chosen' and 'rejected' are the same text, which teaches nothing; take the row out of the file"
        )
    return {"prompt": prompt, "responses": responses, "rewards": [1.0, 0.0]}


def _of_messages(row: Fields) -> tuple[Any, list[str]]:
    (before, chosen), (other, rejected) = (_last_turn(row[side], side) for side in ("chosen", "rejected"))
    if before != other:
        raise ValueError("'chosen' and 'rejected' answer different prompts")
    given = row.get("prompt")
    asked = [message["content"] for message in before if message["role"] == "user"]
    if given is not None and before and [given] != asked and prompt_of(given) != prompt_of(before):
        raise ValueError("'prompt' is not the prompt that 'chosen' and 'rejected' begin with; remove one of the two")
    return before or given, [chosen, rejected]


def _last_turn(found: Any, side: str) -> tuple[list[Message], str]:
    messages = messages_of(found, side)
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{side!r} ends with a message of the {messages[-1]['role']}; expected the assistant's last")
    return messages[:-1], messages[-1]["content"]


def _of_transcripts(row: Fields) -> tuple[str, list[str]]:
    chosen, rejected = (text_of(row, side) for side in ("chosen", "rejected"))
    cut = chosen.rfind(TURN) + len(TURN)
    if cut < len(TURN) or not rejected.startswith(chosen[:cut]):
        raise ValueError(f"there is no 'prompt', and 'chosen' and 'rejected' do not share a text up to {TURN!r}")
    return chosen[:cut], [chosen[cut:], rejected[cut:]]
