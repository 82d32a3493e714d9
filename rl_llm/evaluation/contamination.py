"""Contamination of suites: their problems among the texts that a run is trained on.

As in GPT-3's analysis (arXiv 2005.14165, appendix C), a problem counts as seen if 13 of its words in a row stand in a
training text. A shorter problem must stand there whole; one of fewer than 8 words must be the whole training text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NGRAM, SHORTEST = 13, 8
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Hit:
    """A suite's problem that a training text holds: both places, and the words that they share."""

    problem: int
    text: int
    words: str


def contamination(problems: Sequence[str], training: Iterable[str]) -> list[Hit]:
    """Problems found in training texts, each with the first text that has it. Case and punctuation do not count."""
    wanted: dict[tuple[str, ...], list[int]] = {}  # runs of words, and whole short problems
    whole: dict[tuple[str, ...], list[int]] = {}
    for place, problem in enumerate(problems):
        words = words_of(problem)
        if len(words) < SHORTEST:
            whole.setdefault(words, []).append(place)
            continue
        length = min(NGRAM, len(words))
        for start in range(len(words) - length + 1):
            wanted.setdefault(words[start : start + length], []).append(place)
    lengths = sorted({len(run) for run in wanted})
    found: dict[int, Hit] = {}
    for index, text in enumerate(training):
        words = words_of(text)
        runs = (words[start : start + n] for n in lengths for start in range(len(words) - n + 1))
        hits = [(run, wanted[run]) for run in runs if run in wanted]
        if words and words in whole:
            hits.append((words, whole[words]))
        for run, places in hits:
            for place in places:
                found.setdefault(place, Hit(place, index, " ".join(run)))
    return [found[place] for place in sorted(found)]


def words_of(text: str) -> tuple[str, ...]:
    """The words and numbers of a text in lower case."""
    return tuple(_WORD.findall(text.casefold()))
