"""Tokenizer for small alphabets, one id per symbol, so that a tiny model can read and write a task."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar


@dataclass(frozen=True)
class CharacterTokenizer:
    """Ids: 0 pads, 1 ends a response, then the symbols in order. A symbol may have several characters ("<think>").

    The ids depend on the order of the symbols; compare `fingerprint()` before using a model with a tokenizer.
    """

    symbols: tuple[str, ...]

    pad_id: ClassVar[int] = 0
    end_id: ClassVar[int] = 1
    stop_ids: ClassVar[tuple[int, ...]] = (1,)

    def __post_init__(self) -> None:
        for position, symbol in enumerate(self.symbols):
            if not isinstance(symbol, str) or not symbol:
                raise ValueError(f"symbols[{position}] is {symbol!r}; expected a string of one character or more")
        if len(set(self.symbols)) < len(self.symbols):
            repeated = sorted({symbol for symbol in self.symbols if self.symbols.count(symbol) > 1})
            raise ValueError(f"symbols holds {repeated} more than once; every symbol has one id")
        if not self.symbols:
            raise ValueError("symbols is empty; name at least one")

    @property
    def vocab_size(self) -> int:
        return 2 + len(self.symbols)

    def check_vocabulary(self, size: int) -> None:
        """Raise ValueError unless a model has exactly these ids; others could not be decoded."""
        if size != self.vocab_size:
            raise ValueError(f"model.vocabulary={size} does not match the tokenizer; expected {self.vocab_size}")

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a prompt like any text."""
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Encode a text without an end id, taking the longest symbol at each position.

        Raises ValueError where no symbol matches.
        """
        ids = []
        for match in self._longest_symbol.finditer(text):
            if match[0] not in self._ids:
                raise ValueError(
                    f"character {match[0]!r} at position {match.start()} of {text[:80]!r} starts no symbol of this "
                    f"tokenizer; its symbols are {' '.join(self.symbols)}"
                )
            ids.append(self._ids[match[0]])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Decode the ids before the first end id, without padding. Raises ValueError for an id out of range."""
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
        """SHA-256 (hex) of everything that determines the ids."""
        content = json.dumps({"kind": "character", "pad": self.pad_id, "end": self.end_id, "symbols": self.symbols})
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: 2 + position for position, symbol in enumerate(self.symbols)}

    @cached_property
    def _longest_symbol(self) -> re.Pattern[str]:
        # An alternation takes the first branch that matches, so longer symbols come first, any other character last.
        longest_first = sorted(self.symbols, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) + "|.", re.DOTALL)
