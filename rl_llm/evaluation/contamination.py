"""Contamination of suites: their problems among the texts that a run is trained on.

As in GPT-3's analysis (arXiv 2005.14165, appendix C), a problem counts as seen if 13 of its words in a row stand in a
training text. A shorter problem must stand there whole; one of fewer than 8 words must be a whole sentence or line
there, and one of fewer than 4 the whole text. In scripts without spaces each character counts as a word.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NGRAM, SHORTEST, SENTENCE = 13, 8, 4
# Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_END = re.compile(r"\n|(?<=[.?!])\s+|(?<=[。？！｡])")  # of a sentence or line


@dataclass(frozen=True)
class Hit:
    """A suite's problem that a training text holds: both places, and the words that they share."""

    problem: int
    text: int
    words: str


def contamination(problems: Sequence[str], training: Iterable[str], ngram: int = NGRAM) -> list[Hit]:
    """Problems found in training texts, each with the first text that has it. Case and punctuation do not count.

    `ngram` words in a row are enough; with a larger number, longer problems must stand there whole as well.
    """
    wanted: dict[tuple[str, ...], list[int]] = {}  # runs of words, and whole short problems
    for place, problem in enumerate(problems):
        words = words_of(problem)
        length = min(ngram, len(words))
        for start in range(len(words) - length + 1 if words else 0):
            wanted.setdefault(words[start : start + length], []).append(place)
    begun: dict[tuple[str, ...], list[tuple[str, ...]]] = {}  # the runs with the same first words
    for run in wanted:
        if len(run) >= SHORTEST:
            begun.setdefault(run[:SHORTEST], []).append(run)
    sentences = any(SENTENCE <= len(run) < SHORTEST for run in wanted)
    found: dict[int, Hit] = {}
    for index, text in enumerate(training):
        words = words_of(text)
        hits = [words] if len(words) < SHORTEST else []
        if sentences:
            hits += [part for part in map(words_of, _END.split(text)) if SENTENCE <= len(part) < SHORTEST]
        for start in range(len(words) - SHORTEST + 1):
            for run in begun.get(words[start : start + SHORTEST], ()):
                if words[start : start + len(run)] == run:
                    hits.append(run)
        for run in hits:
            for place in wanted.get(run, ()):
                found.setdefault(place, Hit(place, index, " ".join(run)))
    return [found[place] for place in sorted(found)]


def words_of(text: str) -> tuple[str, ...]:
    """The words and numbers of a text in lower case, and the characters of scripts without spaces."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)  # full-width letters and digits are letters
    return tuple(_WORD.findall(plain.casefold()))
