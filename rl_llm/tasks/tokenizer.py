"""A tokenizer for small alphabets: one id for each symbol, so that a tiny model can read and write a task."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class CharacterTokenizer:
    """Ids: 0 pads, 1 ends a response, then come the symbols in their order.

    A symbol may be several characters long ("<think>"). The ids depend on the order of the symbols, so a
    model trained with one tokenizer must never meet another: compare `fingerprint()`.
    """

    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        for position, symbol in enumerate(self.symbols):
            if not isinstance(symbol, str) or not symbol:
                raise ValueError(f"symbols[{position}] is {symbol!r}: a symbol is a string of one character or more")
        if len(set(self.symbols)) < len(self.symbols):
            repeated = sorted({symbol for symbol in self.symbols if self.symbols.count(symbol) > 1})
            raise ValueError(f"symbols holds {repeated} more than once: every symbol needs one id")
        if not self.symbols:
            raise ValueError("symbols is empty: name at least one symbol")

    @property
    def pad_id(self) -> int:
        return 0

    @property
    def end_id(self) -> int:
        return 1

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.end_id,)

    @property
    def vocab_size(self) -> int:
        return 2 + len(self.symbols)

    def check_vocabulary(self, size: int) -> None:
        """Raises ValueError unless a model knows as many ids: others could not be decoded."""
        if size != self.vocab_size:
            raise ValueError(f"model.vocabulary={size} must be the tokenizer's {self.vocab_size}")

    def encode_prompt(self, text: str) -> list[int]:
        """A prompt is its symbols, as any text."""
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, the longest symbol first at each position. It adds no end id.

        Raises ValueError where no symbol fits.
        """
        ids = []
        position = 0
        while position < len(text):
            match = self._longest_symbol.match(text, position)
            if match is None:
                raise ValueError(
                    f"character {text[position]!r} at position {position} of {_shorten(text)} starts no "
                    f"symbol of this tokenizer; its symbols are {' '.join(self.symbols)}"
                )
            ids.append(self._ids[match.group()])
            position = match.end()
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids before the first end id; pad ids are left out. Takes any integers, NumPy's too.

        Raises ValueError on an id outside the vocabulary.
        """
        text = []
        for position, token in enumerate(ids):
            if token == self.end_id:
                break
            if token == self.pad_id:
                continue
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"id {token} at position {position} is outside the vocabulary of {self.vocab_size}")
            text.append(self.symbols[token - 2])
        return "".join(text)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the ids."""
        content = json.dumps({"kind": "character", "pad": self.pad_id, "end": self.end_id, "symbols": self.symbols})
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: 2 + position for position, symbol in enumerate(self.symbols)}

    @cached_property
    def _longest_symbol(self) -> re.Pattern[str]:
        # An alternation takes its first branch that fits, so longer symbols come first.
        return re.compile("|".join(re.escape(symbol) for symbol in sorted(self.symbols, key=len, reverse=True)))


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else f"{text[:limit]}...")
