"""Tokenizer of a Hugging Face folder, with the folder's chat template.

Files are read at first use, so an experiment can be loaded on a machine without the folder. The fingerprint covers the
contents of the files, not their location.
"""

import datetime
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from rl_llm.tasks.chat_template import TemplateError, render_chat
from rl_llm.tasks.messages import Message
from rl_llm.tasks.tokenizer_files import TokenizerFiles, read_files

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # decoded from unknown ids and from invalid UTF-8
PROBE, OTHER = "probe", "c0ffee"  # texts that reveal how a template treats them
CHAT_FIELDS = ("system", "thinking", "date")


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """Text to ids and back, by the files of a folder.

    `folder` has tokenizer.json and tokenizer_config.json, and may have generation_config.json and chat_template.jinja.
    With `chat` a prompt is a user message in the folder's chat template, after the message `system` if given. Without
    it a prompt is the problem's plain text, after the token that tokenizer.json begins a text with, if any. `thinking`
    is the template's `enable_thinking`, `date` (YYYY-MM-DD) the day that a template may write into a prompt.

    Raises ValueError for fields that cannot act: at once without `chat`, at first use if the template ignores them.
    Every use raises FileNotFoundError or ValueError for missing or damaged files.
    """

    folder: str | Path = field(metadata={"fingerprint": False})
    chat: bool = False
    thinking: bool | None = None
    system: str | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        for name in CHAT_FIELDS:
            if getattr(self, name) is not None and not self.chat:
                raise ValueError(f"tokenizer.{name}={getattr(self, name)!r} cannot act without tokenizer.chat=true")
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                raise ValueError(f"tokenizer.date={self.date!r} is not a day of the form YYYY-MM-DD") from error

    @property
    def vocab_size(self) -> int:
        """Largest id plus one. The model's vocabulary may be larger, because published ones are padded."""
        return max(self._ids) + 1

    @property
    def end_id(self) -> int:
        """Id that ends a demonstration: the template's end of turn, or else the end of text."""
        return self.stop_ids[0]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a sampled response: `end_id`, then all others that the folder names."""
        turn = self._end_of_turn() if self.chat else None
        eos = self._files.special.get("eos_token")
        ids = [id for id in (turn, None if eos is None else self._id_of(eos), *self._files.stop_ids) if id is not None]
        if not ids:
            raise ValueError(
                f"{self.folder} has no end token; expected eos_token in tokenizer_config.json or eos_token_id in "
                "generation_config.json"
            )
        return tuple(dict.fromkeys(ids))

    def check_vocabulary(self, size: int) -> None:
        """Raise ValueError unless a model with `size` ids covers the ids of all texts, and the stop ids.

        Only added tokens may lie beyond, which no text has unless it names them (Gemma 3 1B has one, for images):
        `encode_prompts` refuses those. Further ids of the model are decoded to the replacement character.
        """
        added = self._files.tokenizer.get_added_tokens_decoder()
        needed = max((id for id in self._ids if id not in added), default=-1) + 1
        if size < needed:
            raise ValueError(
                f"model.vocabulary={size} is less than the {needed} ids that texts have in the tokenizer in "
                f"{self.folder}: it is another model's"
            )
        for stop in self.stop_ids:
            if stop >= size:
                raise ValueError(
                    f"the end token {self._files.tokenizer.id_to_token(stop)!r} of {self.folder} has id {stop}; "
                    f"model.vocabulary={size} cannot produce it: take it out of eos_token_id in generation_config.json "
                    "and eos_token in tokenizer_config.json"
                )

    def encode(self, text: str) -> list[int]:
        """Encode a text with nothing before or after it. Names of special tokens in it become those tokens."""
        ids: list[int] = self._files.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a problem's text as the model is shown it."""
        if self.chat:
            return self.encode(self._render(self._template, text))
        ids: list[int] = self._files.tokenizer.encode(text, add_special_tokens=True).ids
        return ids

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """Encode a prompt of several messages. Raises ValueError without `chat`."""
        return self.encode(self._render_messages(self._template, messages))

    def encode_chat(self, before: Sequence[Message], response: str) -> tuple[list[int], list[int]]:
        """Encode the messages before a response, and the response with its end token last.

        Raises ValueError without `chat`, and if the template does not separate the response from the text around it.
        """
        shown = self._render_messages(self._template, before)
        whole = self._render_messages(self._template, [*before, {"role": "assistant", "content": response}])
        if not whole.startswith(shown):
            raise ValueError(
                f"the chat template of {self.folder} changes the text before a response once there is one: "
                f"{shown[-60:]!r} before response {response[:40]!r}"
            )
        turn = self.encode(whole[len(shown) :])
        if turn.count(self.end_id) != 1:
            raise ValueError(
                f"the response {response[:40]!r} has {turn.count(self.end_id)} end tokens in the chat template of "
                f"{self.folder}; expected one"
            )
        return self.encode(shown), turn[: turn.index(self.end_id) + 1]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode the ids before the first stop id.

        Other special tokens stay, for a verifier to see. Unknown ids become the replacement character.
        """
        row = [int(token) for token in ids]
        row = row[: min((row.index(stop) for stop in self.stop_ids if stop in row), default=len(row))]
        parts = [(known, list(part)) for known, part in groupby(row, self._ids.__contains__)]
        decode = partial(self._files.tokenizer.decode, skip_special_tokens=False)
        return "".join(decode(part) if known else UNKNOWN * len(part) for known, part in parts)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that determines the ids.

        That is tokenizer.json, the special tokens, the chat template if it is used, and the fields.
        """
        files = self._files
        content = {
            "kind": "huggingface",
            "tokenizer": files.sha256,
            "special": files.special,
            "stop": self.stop_ids,
            "template": self._template if self.chat else None,
            **{name: getattr(self, name) for name in ("chat", *CHAT_FIELDS)},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _files(self) -> TokenizerFiles:
        return read_files(self.folder)

    @cached_property
    def _ids(self) -> frozenset[int]:
        return frozenset(self._files.tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def _template(self) -> str:
        """Chat template of the folder, after a check that every field changes its output."""
        if not self.chat:
            raise ValueError("messages need a chat template; set tokenizer.chat=true")
        template = self._files.template
        if template is None:
            raise ValueError(
                f"tokenizer.chat=true, but {self.folder} has no chat template, neither in chat_template.jinja nor in "
                "tokenizer_config.json; for a base model set tokenizer.chat=false"
            )
        others = {
            "system": f"{self.system} {OTHER}",
            "thinking": not self.thinking,
            "date": "2001-02-03" if self.date != "2001-02-03" else "2004-05-06",
        }
        for name in CHAT_FIELDS:
            value, other = getattr(self, name), dict[str, Any]({name: others[name]})
            if value is not None and self._render(template, PROBE) == self._render(template, PROBE, **other):
                raise ValueError(
                    f"tokenizer.{name}={value!r} cannot act: the chat template of {self.folder} ignores it"
                )
        return template

    def _render(self, template: str, text: str, response: str | None = None, **changed: Any) -> str:
        """Render a prompt, or a prompt with its response, optionally with other values of CHAT_FIELDS."""
        said = [{"role": "user", "content": text}]
        said += [] if response is None else [{"role": "assistant", "content": response}]
        return self._render_messages(template, said, **changed)

    def _render_messages(self, template: str, said: Sequence[Message], **changed: Any) -> str:
        """Render a conversation, and begin a response unless it ends in one. `system` is the default first message."""
        fields = {name: getattr(self, name) for name in CHAT_FIELDS} | changed
        own = said[0]["role"] == "system" or fields["system"] is None
        messages = [*([] if own else [{"role": "system", "content": fields["system"]}]), *said]
        try:
            return render_chat(
                template,
                messages,
                self._files.special,
                thinking=fields["thinking"],
                date=fields["date"],
                begin_response=messages[-1]["role"] != "assistant",
            )
        except TemplateError as error:
            raise ValueError(f"{self.folder}: {error}") from error

    def _end_of_turn(self) -> int | None:
        """Special token that follows a response in the template, if there is one."""
        after = self.encode(self._render(self._template, PROBE, response=OTHER).rpartition(OTHER)[2])
        special = {id for id, token in self._files.tokenizer.get_added_tokens_decoder().items() if token.special}
        return after[0] if after and after[0] in special else None

    def _id_of(self, token: str) -> int:
        found = self._files.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(
                f"{self.folder}: tokenizer_config.json names {token!r}, which tokenizer.json does not have"
            )
        return int(found)
