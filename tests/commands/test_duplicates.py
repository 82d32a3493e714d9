"""Duplicates: normalised texts, near-duplicate pairs, and that all of them are found."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.commands.data_report.duplicates import SHINGLE, SIMILAR, first_of_each, near_duplicates
from rl_llm.tasks.datasets import normalize_text

WORDS = [a + b for a in "bdfgklmnprst" for b in ("a", "em", "il", "o", "und")]


@pytest.mark.parametrize(
    "text", ["What is 3 + 4?", " what  is 3 + 4 ", "What is 3 + 4 =", "WHAT IS 3\n+ 4.", "What is \uff13 + 4?"]
)
def test_case_spacing_spelling_and_the_last_mark_do_not_matter(text: str):
    assert normalize_text(text) == "what is 3 + 4"


@pytest.mark.parametrize("text", ["What is 3 - 4?", "What is 34?", "What is 4 + 3?"])
def test_other_content_makes_another_text(text: str):
    assert normalize_text(text) != normalize_text("What is 3 + 4?")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("What is 4!", "what is 4!"),
        ("What is 4! ?", "what is 4!"),
        ("What is (2 + 1)!.", "what is (2 + 1)!"),
        ("What is 4?", "what is 4"),
        ("What is 4?!", "what is 4"),
        ("Find it!!", "find it"),
        ("!", ""),
    ],
)
def test_a_factorial_is_kept(text: str, left: str):
    assert normalize_text(text) == left


def test_a_factorial_is_another_number():
    story = "Ann has a calculator with which she goes to the market, and the first thing that she asks of it there is "
    assert list(near_duplicates([normalize_text(story + "14?"), normalize_text(story + "14!")])) == []


def test_the_first_of_each():
    assert first_of_each(["a", "b", "a", "b", "c"]) == [0, 1, 0, 1, 4]


def shingles(text: str) -> set[tuple[str, ...]]:
    """Shingles as in `near_duplicates`, for texts of words, including those cut short at the end."""
    words = text.split() + [""] * (SHINGLE - 1)
    return {tuple(words[i : i + SHINGLE]) for i in range(len(text.split()))}


def alike(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


@given(st.integers(0, 2**32), st.integers(2, 40), st.integers(1, 30))
def test_all_pairs_and_no_others_are_found(seed: int, length: int, others: int):
    """Compare with all pairs; every text here has at most one near-duplicate."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=length)) for _ in range(others)]
    for text in texts[:10]:
        words = text.split()
        words[draw.randrange(length)] = "other"
        texts.append(" ".join(words))
    expected = {
        (i, j)
        for j in range(len(texts))
        for i in range(j)
        if texts[i] != texts[j] and alike(texts[i], texts[j]) >= SIMILAR
    }
    found = list(near_duplicates(texts))
    assert len(found) == len(set(found))
    if len({place for pair in expected for place in pair}) == 2 * len(expected):
        assert set(found) == expected
    assert set(found) <= expected


@pytest.mark.parametrize(("numbers", "pairs"), [("3 and 4", [(0, 1)]), ("4 and 3", []), ("3 and 5", []), ("3 4", [])])
def test_other_numbers_make_another_problem(numbers: str, pairs: list[tuple[int, int]]):
    story = "On her way to the market Ann met {} merchants, each with {} baskets full of apples and of ripe plums"
    one = normalize_text(story.format("3 and 4", "many") + ". How much fruit is there in all of them together?")
    other = normalize_text(story.format(numbers, "many") + ". How much fruit is there in all of them altogether?")
    assert list(near_duplicates([one, other])) == pairs


def test_texts_from_one_template_are_paired_with_few_not_with_all():
    names = random.Random(0).sample(range(10**6), 2000)
    letters = str.maketrans("0123456789", "abcdefghij")
    texts = [f"{' '.join(WORDS)} of {str(name).translate(letters)}" for name in names]
    pairs = list(near_duplicates(texts))
    assert {later for _, later in pairs} == set(range(1, 2000))
    assert len(pairs) < 20 * 2000


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["a"], ["a", "b"], ["a", "a"]])
def test_few_and_short_texts_have_none(texts: list[str]):
    assert list(near_duplicates(texts)) == []
