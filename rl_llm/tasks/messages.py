"""Messages and judged pairs in data files: checked, and refused if they hold more than the model would be shown."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rl_llm.tasks.tables import Fields, text_of

Message = Mapping[str, str]  # role and content
TURN = "\n\nAssistant:"  # before the last response in transcripts such as those of HH-RLHF

ROLES = ("system", "user", "assistant")
SHOWN = (
    *("tools", "functions", "chat_template_kwargs", "documents", "system", "system_prompt", "history"),
    *("image", "images", "audio", "audios", "video", "videos", "multi_modal_data"),
    *("agent_name", "extra_info.tools_kwargs", "extra_info.need_tools_kwargs", "extra_info.interaction_kwargs"),  # verl
)
"""Fields of a row that change what a model is shown. A row that fills one is never read as if it were not there."""
EMPTY: tuple[Any, ...] = (None, "", [], {})
NEUTRAL = {"weight": 1, "agent_name": "single_turn_agent", "need_tools_kwargs": False}  # change nothing, as EMPTY ones
REMEDIES = {
    "chat_template_kwargs": "set its values in the tokenizer (thinking, date)",
    "system": "set tokenizer.system",
    "system_prompt": "set tokenizer.system",
}


def refuse_shown(
    found: Mapping[str, Any],
    used: Collection[str] = (),
    names: Sequence[str] = SHOWN,
    remedy: str = "take it out of the file",
) -> None:
    """Raise ValueError if one of the fields `names` is filled but not `used`."""
    for name in names:
        parent, _, field = name.rpartition(".")
        holder = found.get(parent) if parent else found
        if name not in used and isinstance(holder, Mapping) and not _is_neutral(field, holder.get(field)):
            raise ValueError(
                f"the field {name!r} would change what the model is shown, and nothing uses it; "
                f"{REMEDIES.get(name, remedy)}"
            )


def _is_neutral(field: str, value: Any) -> bool:
    """Whether a field changes nothing. Parquet gives every object all fields, with None where it has none."""
    if isinstance(value, Mapping):
        return all(_is_neutral("", part) for part in value.values())
    return value in EMPTY or (field in NEUTRAL and value == NEUTRAL[field])


def messages_of(found: Any, name: str = "messages") -> list[Message]:
    """Return checked messages: one of the system at most, and that first. Raises ValueError naming the message."""
    if not isinstance(found, list) or not found:
        raise ValueError(f"{name!r} is {found!r}; expected a list of messages")
    messages = [_message(f"{name}[{index}]", message) for index, message in enumerate(found)]
    if any(message["role"] == "system" for message in messages[1:]):
        raise ValueError("only the first message may be from the system")
    return messages


def prompt_of(found: Any, name: str = "prompt") -> tuple[str, list[Message]]:
    """Return a prompt's text, and its messages if it is more than one user's message.

    Messages must end with the user's. Their text, which names a problem in logs, has a line "role: content" each.
    """
    if not isinstance(found, list):
        return text_of({name: found}, name), []
    messages = messages_of(found, name)
    if messages[-1]["role"] != "user":
        raise ValueError(f"{name!r} ends with a message of the {messages[-1]['role']}; expected the user's last")
    if len(messages) == 1:
        return messages[0]["content"], []
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages), messages


def _message(place: str, message: Any) -> Message:
    try:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"expected a role among {', '.join(ROLES)}, not {message!r}")
        further = set(message) - {"role", "content"}
        if extra := sorted(key for key in further if not _is_neutral(key, message[key])):
            raise ValueError(f"unknown {', '.join(map(repr, extra))}; expected only 'role' and 'content'")
        return {"role": message["role"], "content": text_of({"content": _content(message)}, "content")}
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _content(message: Mapping[str, Any]) -> Any:
    """Content as a text, or joined from parts of text alone."""
    if "content" not in message:
        raise ValueError(f"the field 'content' is missing; there are {', '.join(map(repr, message))}")
    content = message["content"]
    if not isinstance(content, list) or not content:
        return content
    kept = [{key: value for key, value in part.items() if value is not None} for part in content if part]
    if any(set(part) != {"type", "text"} or part["type"] != "text" for part in kept):
        raise ValueError(f"its content has parts that are no text: {str(content)[:80]}")
    return "".join(part["text"] for part in kept)


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
