"""A suite's problems among training texts: 13 words in a row, and shorter problems whole."""

import pytest

from rl_llm.evaluation.contamination import Hit, contamination

LONG = "A farmer has 12 cows and 7 sheep, and each of them eats 3 kilograms of hay a day. How much is eaten in a week?"


def test_thirteen_words_in_a_row_are_found_whatever_case_and_punctuation():
    training = ["Nothing of it.", "Task: A FARMER has 12 cows and 7 sheep -- and each of them (eats) a lot"]
    shared = "a farmer has 12 cows and 7 sheep and each of them eats"
    assert contamination([LONG], training) == [Hit(0, 1, shared)]


def test_twelve_words_in_a_row_are_not_enough_for_a_long_problem():
    words = LONG.split()
    assert contamination([LONG], [" ".join(words[:12])]) == []
    assert len(contamination([LONG], [" ".join(words[:13])])) == 1


def test_other_numbers_make_another_problem():
    assert contamination([LONG], [LONG.replace("7 sheep", "8 sheep").replace("3 kilograms", "4 kilograms")]) == []


def test_a_problem_of_eight_to_twelve_words_must_stand_whole_in_a_text():
    problem = "How many days are there in a leap year?"
    assert contamination([problem], [f"User: {problem} Assistant: 366"])[0].problem == 0
    assert contamination([problem], ["How many days are there in a year?"]) == []


def test_a_problem_of_few_words_must_be_the_whole_text():
    assert contamination(["1+2="], ["11+2=", "1+2=3"]) == []
    assert contamination(["1+2="], ["9", "1 + 2 = "]) == [Hit(0, 1, "1 2")]


def test_each_problem_counts_once():
    assert len(contamination([LONG, LONG], [LONG, LONG])) == 2


@pytest.mark.parametrize(
    "problem",
    [
        "小明有十二个苹果，又买了七个，他现在一共有多少个苹果？",
        "太郎はりんごを12個持っていて、さらに7個買いました。全部で何個ですか。",
        "ในตะกร้ามีส้มสิบสองผลและซื้อเพิ่มอีกเจ็ดผล รวมมีส้มกี่ผล",
    ],
)
def test_a_problem_in_a_script_without_spaces_is_found_between_other_sentences(problem: str):
    training = ["没有关系。", f"问题:{problem}请写出步骤。"]
    assert [(hit.problem, hit.text) for hit in contamination([problem], training)] == [(0, 1)]
    assert contamination([problem], [problem[:8] + problem[-5:]]) == []


def test_full_width_digits_are_digits_and_other_digits_make_another_problem():
    problem = "一年有多少天，如果有12个月？"
    assert contamination([problem], ["一年有多少天,如果有１２个月"]) != []
    assert contamination([problem], ["一年有多少天,如果有13个月"]) == []


@pytest.mark.parametrize(
    "text", ["What is 2+2? Think step by step.", "Do this.\nWhat is 2+2?\nAnswer:", "什么？What is 2+2?"]
)
def test_a_short_problem_is_found_as_a_sentence_or_line_of_a_text(text: str):
    assert contamination(["What is 2+2?"], ["What is 2+2+1? Think.", text]) == [Hit(0, 1, "what is 2 2")]


def test_a_larger_ngram_wants_longer_problems_whole():
    part, whole = " ".join(LONG.split()[:20]), f"User: {LONG} Assistant:"
    assert len(contamination([LONG], [part])) == 1
    assert [hit.text for hit in contamination([LONG], [part, whole], ngram=10**6)] == [1]
