"""Duplicate and near-duplicate texts: shingles, MinHash with bands, Jaccard coefficient.

The number of comparisons grows with the number of similar texts, not with the square of all texts.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

SHINGLE = 3  # words or symbols in a row
SIMILAR = 0.8  # Jaccard coefficient of near-duplicates
BANDS, BAND_ROWS = 16, 4
"""Texts whose MinHashes agree in all rows of some band are compared. A pair with Jaccard coefficient 0.8 is compared
with probability 1 - (1 - 0.8^4)^16 = 99.98 %.
"""
BUCKET_EXAMPLES = 16  # texts of a bucket that the others are compared with; too few only for texts from one template

_WORD = re.compile(r"\w+|[^\w\s]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?!*")  # with its factorial


def first_of_each(texts: Sequence[Hashable]) -> list[int]:
    """Index of the first text equal to each text."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(text, place) for place, text in enumerate(texts)]


def near_duplicates(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield pairs i < j of different normalised texts with Jaccard coefficient SIMILAR or more and the same numbers.

    Numbers count in order, because other numbers make another problem. Texts that all resemble one are paired with it,
    not all with each other.
    """
    numbers = [tuple(_NUMBER.findall(text)) for text in texts]
    shared = Counter(numbers)
    first = first_of_each(texts)
    places = [i for i, text in enumerate(texts) if text and first[i] == i and shared[numbers[i]] > 1]
    if not places:
        return
    shingles, starts = _shingles([texts[place] for place in places])
    sets: dict[int, frozenset[int]] = {}

    def shingle_set(index: int) -> frozenset[int]:
        if index not in sets:
            sets[index] = frozenset(shingles[starts[index] : starts[index + 1]].tolist())
        return sets[index]

    paired: set[tuple[int, int]] = set()
    for bucket in _buckets(_minhashes(shingles, starts), first_of_each([numbers[place] for place in places])):
        examples: list[int] = []
        for index in bucket:
            found = next((one for one in examples if _jaccard(shingle_set(one), shingle_set(index)) >= SIMILAR), None)
            if found is None:
                examples += [index] if len(examples) < BUCKET_EXAMPLES else []
            elif (found, index) not in paired:
                paired.add((found, index))
                yield places[found], places[index]


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash every shingle: u64[shingles] of all texts in turn, and offsets i64[texts + 1].

    Shingles that the end of a text cuts short are included.
    """
    vocabulary: dict[str, int] = {}
    end = [0] * (SHINGLE - 1)
    words = [[vocabulary.setdefault(word, len(vocabulary) + 1) for word in _WORD.findall(text)] for text in texts]
    ids = np.array([word for found in words for word in (*found, *end)], np.uint64)
    lengths = np.array([len(found) for found in words])
    mixed = np.zeros(len(ids) - SHINGLE + 1, np.uint64)
    for offset in range(SHINGLE):
        mixed = _scrambled(mixed) + ids[offset : offset + len(mixed)]
    inside = np.ones(len(mixed), bool)
    ends = np.cumsum(lengths + len(end))
    for back in range(1, SHINGLE):  # drop shingles that begin in the padding between texts
        inside[ends[:-1] - back] = False
    return _scrambled(mixed[inside]), np.cumsum([0, *lengths])


def _minhashes(shingles: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """u64[BANDS * BAND_ROWS, texts]: smallest shingle of each text in BANDS * BAND_ROWS random orders."""
    factors = np.random.default_rng(0).integers(2**63, size=BANDS * BAND_ROWS, dtype=np.uint64) | np.uint64(1)
    return np.stack([np.minimum.reduceat(shingles * factor, starts[:-1]) for factor in factors])


def _buckets(minhashes: np.ndarray, keys: Sequence[int]) -> Iterator[list[int]]:
    """Groups of texts with one key that collide in some band, in input order. Singletons are left out."""
    for rows in minhashes.reshape(BANDS, BAND_ROWS, -1):
        mixed = np.array(keys, np.uint64)
        for row in rows:
            mixed = _scrambled(mixed) + row
        order = np.argsort(mixed, kind="stable")
        bounds = np.flatnonzero(np.diff(mixed[order])) + 1
        yield from (bucket.tolist() for bucket in np.split(order, bounds) if len(bucket) > 1)


def _scrambled(values: np.ndarray) -> np.ndarray:
    """Pseudorandom permutation of u64 (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
