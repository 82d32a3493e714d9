"""The tokenizer of a Hugging Face folder, with the folder's own chat template.

Nothing is read before it is needed, so an experiment can be loaded where its folder is not. What the files say, and not
where they lie, is the tokenizer's fingerprint.
"""

import datetime
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rl_llm.tasks.chat_template import Message, TemplateError, render
from rl_llm.tasks.tokenizer_files import TokenizerFiles, read_files

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no UTF-8 are decoded to as well
PROBE, OTHER = "probe", "c0ffee"  # texts that show what a template makes of them
KNOBS = ("system", "thinking", "date")


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """Text to ids and back as the files of a folder say.

    folder: has tokenizer.json and tokenizer_config.json, perhaps generation_config.json and chat_template.jinja. chat:
    a prompt is a user's message in the folder's chat template, after the message `system` if there is one; without it
    a prompt is the problem's text as it is, after the token that begins a text where tokenizer.json puts one. thinking:
    the template's `enable_thinking`. date: YYYY-MM-DD, the day that a template may write into a prompt.

    Raises ValueError for fields that cannot act: at once without chat, with the first use where the template knows
    nothing of them. Every use raises FileNotFoundError or ValueError where the files are missing or damaged.
    """

    folder: str | Path = field(metadata={"fingerprint": False})
    chat: bool = False
    thinking: bool | None = None
    system: str | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        for name in KNOBS:
            if getattr(self, name) is not None and not self.chat:
                raise ValueError(f"tokenizer.{name}={getattr(self, name)!r} cannot act without tokenizer.chat=true")
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                raise ValueError(f"tokenizer.date={self.date!r} is no day of the form YYYY-MM-DD") from error

    @property
    def vocab_size(self) -> int:
        """One more than the largest id. The model's vocabulary may be larger: published ones are padded."""
        return max(self._ids) + 1

    @property
    def end_id(self) -> int:
        """The id that ends a response in a demonstration: what the template ends a turn with, or else the end of a
        text.
        """
        return self.stop_ids[0]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a response when they are sampled: `end_id`, then all that the folder says end one."""
        turn = self._end_of_turn() if self.chat else None
        eos = self._files.special.get("eos_token")
        ids = [id for id in (turn, None if eos is None else self._id_of(eos), *self._files.stop_ids) if id is not None]
        if not ids:
            raise ValueError(
                f"{self.folder} has no end token, neither eos_token in tokenizer_config.json nor eos_token_id in "
                "generation_config.json"
            )
        return tuple(dict.fromkeys(ids))

    def check_vocabulary(self, size: int) -> None:
        """Raises ValueError unless a model of `size` ids has all of this tokenizer. Ids beyond them are decoded to the
        replacement character.
        """
        if size < self.vocab_size or max(self.stop_ids) >= size:
            raise ValueError(
                f"model.vocabulary={size} is less than the {self.vocab_size} ids of the tokenizer in {self.folder}"
            )

    def encode(self, text: str) -> list[int]:
        """The ids of a text alone: nothing is put before or after it. Names of special tokens in it become these."""
        ids: list[int] = self._files.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a problem's text as the model is shown it."""
        if self.chat:
            return self.encode(self._render(self._template, text))
        ids: list[int] = self._files.tokenizer.encode(text, add_special_tokens=True).ids
        return ids

    def encode_chat(self, before: Sequence[Message], response: str) -> tuple[list[int], list[int]]:
        """The ids of the messages of a conversation as the model is shown them, and those of its response to them, the
        end token being the last.

        Raises ValueError without chat, and where the template does not let a response be told from what is before and
        after it.
        """
        if not self.chat:
            raise ValueError("messages need a chat template, and tokenizer.chat=false: set it to true")
        shown = self._render_chat(self._template, before)
        whole = self._render_chat(self._template, [*before, {"role": "assistant", "content": response}])
        if not whole.startswith(shown):
            raise ValueError(
                f"the chat template of {self.folder} shows what is before a response otherwise once there is one: "
                f"{shown[-60:]!r} before response {response[:40]!r}"
            )
        turn = self.encode(whole[len(shown) :])
        if turn.count(self.end_id) != 1:
            raise ValueError(
                f"the response {response[:40]!r} has {turn.count(self.end_id)} end tokens in the chat template of "
                f"{self.folder}: it needs one"
            )
        return self.encode(shown), turn[: turn.index(self.end_id) + 1]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids before the first stop id. Other special tokens stay in it, for a verifier to see, and an
        id that the tokenizer does not have is a replacement character.
        """
        row = [int(token) for token in ids]
        row = row[: min((row.index(stop) for stop in self.stop_ids if stop in row), default=len(row))]
        parts: list[list[int]] = [row]
        if not self._ids.issuperset(row):
            parts = [[]]
            for token in row:
                if token in self._ids:
                    parts[-1].append(token)
                else:
                    parts.append([])
        return UNKNOWN.join(self._files.tokenizer.decode(part, skip_special_tokens=False) for part in parts)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the ids: tokenizer.json, special tokens, the chat template if it is
        used, and the fields.
        """
        files = self._files
        content = {
            "kind": "huggingface",
            "tokenizer": files.sha256,
            "special": files.special,
            "stop": self.stop_ids,
            "template": self._template if self.chat else None,
            **{name: getattr(self, name) for name in ("chat", *KNOBS)},
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
        """The folder's template, once every field is seen to act on it."""
        template = self._files.template
        if template is None:
            raise ValueError(
                f"tokenizer.chat=true, but {self.folder} has no chat template, neither chat_template.jinja nor in "
                "tokenizer_config.json: it may be the folder of a base model (tokenizer.chat=false)"
            )
        others = {
            "system": f"{self.system} {OTHER}",
            "thinking": not self.thinking,
            "date": "2001-02-03" if self.date != "2001-02-03" else "2004-05-06",
        }
        for name in KNOBS:
            value, other = getattr(self, name), dict[str, Any]({name: others[name]})
            if value is not None and self._render(template, PROBE) == self._render(template, PROBE, **other):
                raise ValueError(
                    f"tokenizer.{name}={value!r} cannot act: the chat template of {self.folder} makes the same of "
                    "another value"
                )
        return template

    def _render(self, template: str, text: str, response: str | None = None, **changed: Any) -> str:
        """The template's text of a prompt, or of a prompt with its response; with some of the KNOBS at other values."""
        said = [{"role": "user", "content": text}]
        said += [] if response is None else [{"role": "assistant", "content": response}]
        return self._render_chat(template, said, **changed)

    def _render_chat(self, template: str, said: Sequence[Message], **changed: Any) -> str:
        """The template's text of a conversation, and of the beginning of a response unless it ends with one. `system`
        is said first where nothing else is.
        """
        fields = {name: getattr(self, name) for name in KNOBS} | changed
        own = said[0]["role"] == "system" or fields["system"] is None
        messages = [*([] if own else [{"role": "system", "content": fields["system"]}]), *said]
        try:
            return render(
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
        """The special token that follows a response in the template; None where none does."""
        after = self.encode(self._render(self._template, PROBE, response=OTHER).rpartition(OTHER)[2])
        special = {id for id, token in self._files.tokenizer.get_added_tokens_decoder().items() if token.special}
        return after[0] if after and after[0] in special else None

    def _id_of(self, token: str) -> int:
        found = self._files.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"{self.folder}: tokenizer_config.json names {token!r}; tokenizer.json has no such token")
        return int(found)
