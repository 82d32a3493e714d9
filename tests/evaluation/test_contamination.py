"""A suite's problems among training texts: 13 words in a row, and shorter problems whole."""

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
