"""Biases of problems: planted ones are found, no others are, and cleaning removes them."""

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.commands.data_report.biases import Limits, Survey, guess_of, survey
from rl_llm.problem import Problem, problem_id
from rl_llm.rewards.components import Reward
from rl_llm.rewards.grader import Grader
from rl_llm.rewards.worker import Verify
from rl_llm.tasks.datasets import JsonlProblems

TASK = JsonlProblems("never_read.jsonl")
LIMITS = Limits()
GRADER = Grader(TASK.verify, Reward(), workers=1)
PLACES = ("harbour", "market", "station", "library", "garden", "bridge", "tower", "valley")


@pytest.fixture(scope="module", autouse=True)
def running() -> Iterator[None]:
    with GRADER:
        yield


def problem(prompt: str, answer: str, difficulty: float = 0.0) -> Problem:
    return Problem(problem_id("t", prompt), prompt, answer, difficulty)


def sound(count: int = 200, start: int = 0) -> list[Problem]:
    """Sound problems: distinct numbers and answers, three difficulties."""
    return [
        problem(f"From the {PLACES[n % 8]}, {n} people walk {7 * n + 3} steps. How far?", str(n * (7 * n + 3)), n % 3)
        for n in range(start, start + count)
    ]


def surveyed(
    problems: Sequence[Problem], others: Mapping[str, Sequence[Problem]] | None = None, limits: Limits = LIMITS
) -> Survey:
    lengths = [len(one.prompt.split()) for one in problems]
    return survey(GRADER, problems, others or {"validation": sound(20, 5000)}, lengths, 40, limits)


def warnings(found: Survey) -> list[str]:
    return [check.name for check in found.checks if check.advice]


def said(found: Survey, name: str) -> str:
    return next(check.found for check in found.checks if check.name == name)


def test_sound_problems_pass_and_are_kept():
    found = surveyed(sound())
    assert (warnings(found), found.removed) == ([], {})
    assert said(found, "difficulty") == "0 to 2, half are at 1 or below; 34% are at 0"
    assert "200 different ones, 7.64 bits" in said(found, "balance of answers")


def binary(count: int) -> list[Problem]:
    return [
        problem(f"Is {n} less than {n * n % 97}?", ("Yes", "no", "TRUE", "False.", "(B)")[n % 5]) for n in range(count)
    ]


def repeated(count: int) -> list[Problem]:
    return [problem(one.prompt.upper().replace(" ", "  "), one.answer) for one in sound(count)]


def reworded(count: int) -> list[Problem]:
    long = "In the old town everybody says that on a sunny day, when the shops are closed and the streets are quiet, "
    pairs = [
        (long + f"{n} birds sit there. How many {word} they?", str(10**6 + n))
        for n in range(count)
        for word in ("are", "were")
    ]
    return [problem(*pair) for pair in pairs]


PUT: dict[str, tuple[list[Problem], int]] = {  # with 200 sound ones; how many must go
    "answers by a guess": (binary(100), 100 - 22),
    "balance of answers": ([problem(f"Count to {n} and back", "0") for n in range(10**4, 10**4 + 300)], 300 - 84),
    "duplicates": (repeated(20), 20),
    "near-duplicates": (reworded(20), 20),
    "answers given away": ([problem(f"{n} trees. (Answer: {3 * n})", str(3 * n)) for n in range(600, 605)], 5),
    "length of prompts": ([problem("so " * 50 + f"{n}?", str(n)) for n in range(300, 302)], 2),
    "leaks, validation": ([problem("  from the garden, 5004 people walk 35031 steps. how far", "9")], 1),
}


@pytest.mark.parametrize("bias", PUT)
def test_a_bias_is_found_and_cleaned_away(bias: str):
    problems, expected = PUT[bias]
    found = surveyed(sound() + problems)
    assert warnings(found) == [bias]
    assert len(found.removed) == expected
    assert min(found.removed) >= 200, "no sound problem is removed"
    cleaned = [one for place, one in enumerate(sound() + problems) if place not in found.removed]
    again = surveyed(cleaned)
    assert (warnings(again), again.removed) == ([], {})


def test_kinds_of_guesses_are_counted():
    found = said(surveyed(sound() + binary(100)), "answers by a guess")
    assert found == "33.3% are answered by a guess, 40 by Yes/No, 40 by True/False, 20 by an option's letter"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("yes", "Yes/No"),
        (" False. ", "True/False"),
        ("(C)", "an option's letter"),
        (r"\text{True}", "True/False"),
        (r"$\text{Yes}$", "Yes/No"),
        (r"\text{(B)}", "an option's letter"),
        (r"$\boxed{\textbf{(B) }}$", "an option's letter"),
        (r"\mathrm{A}", "an option's letter"),
        ("B) 12", "an option's letter"),
        (r"\textbf{(C)}\ 12", "an option's letter"),
        ("option b", "an option's letter"),
        ("a) 3 and b) 4", None),
        ("b + 12", None),
        (r"\{a\}", None),
        (r"\mathbb{C}", None),
        ("e", None),
        ("x", None),
        ("12", None),
        ("", None),
    ],
)
def test_guessable_answers_are_recognised(answer: str, kind: str | None):
    assert guess_of(answer) == kind


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("Which one? A) 1 B) 2 C) 3 D) 4 E) 5", "an option's letter"),
        ("Which one? (a) 1 (b) 2 (c) 3 (d) 4 (e) 5", "an option's letter"),
        ("Which one? A) 1 B) 2 C) 3 D) 4", None),
        ("What is the base of the natural logarithm? We call pi(x) p, and it e.", None),
    ],
)
def test_options_beyond_d_count_only_if_the_prompt_lists_them(prompt: str, kind: str | None):
    assert guess_of("E", prompt) == kind


def test_a_question_with_two_answers_is_removed_entirely():
    problems = [*sound(), problem(sound()[7].prompt.lower(), "-1")]
    found = surveyed(problems)
    assert warnings(found) == ["duplicates"]
    assert found.removed == dict.fromkeys((7, 200), "one question with different answers")


def test_a_few_duplicates_are_removed_without_a_warning():
    found = surveyed(sound() + repeated(2))
    assert (warnings(found), len(found.removed)) == ([], 2)


def test_a_near_duplicate_of_another_split_leaks():
    one, other = reworded(1)
    found = surveyed([*sound(), one], {"held_out": [other]})
    assert warnings(found) == ["leaks, held_out"]
    assert said(found, "leaks, held_out") == "0 are also there, 1 nearly"
    assert found.removed == {200: "also in held_out"}


def test_options_in_the_prompt_are_distinguished_from_chance():
    options = [
        problem(f"Where is number {n}: at {PLACES[n % 8]} or {PLACES[n * 5 % 7]}?", PLACES[n % 8]) for n in range(200)
    ]
    assert warnings(surveyed(options)) == ["answers within prompts"]
    same = [problem(f"Is number {n} at the harbour or market?", PLACES[n % 2]) for n in range(200)]
    assert "answers within prompts" not in warnings(surveyed(same))


@pytest.mark.parametrize(
    ("prompt", "answer", "given"),
    [
        ("The answer is 12. Why?", "12", True),
        ("2 + 2? #### 4", "4", True),
        ("So \\boxed{x+1}, or not?", "x+1", True),
        ("The answer is 120.", "12", False),
        ("The answer is 3, or is it?", "3", True),
        ("The answer is 3.14; round it.", "3", False),
        ("Suppose the answer is 3,000 items. How many a day?", "3", False),
        ("The answer is 3/4. What is four times as much?", "3", False),
        ("12 apples. What is the answer?", "12", False),
        ("Choose your answer: A) red B) blue", "A", False),
        ("Name it. Answer:", "", False),
    ],
)
def test_an_answer_after_a_mark_is_given_away(prompt: str, answer: str, given: bool):
    assert ("answers given away" in warnings(surveyed([*sound(), problem(prompt, answer)]))) == given


def lenient(problem: Problem, response: str) -> float:
    return 1.0 if "199" in response or problem.answer in response else 0.0


def zero_or_not(problem: Problem, response: str) -> float:
    return float((problem.answer == "0") == ("<answer>0</answer>" in response))


def hanging(problem: Problem, response: str) -> float:
    while True:
        time.sleep(1)


def survey_by(verify: Verify, problems: Sequence[Problem], time_limit: float = 5.0) -> Survey:
    with Grader(verify, Reward(), workers=1, time_limit=time_limit) as grader:
        return survey(grader, problems, {}, [1] * len(problems), 9, LIMITS)


def test_a_lenient_verifier_is_found_out():
    problems = [*sound(), problem("And how many are there?", str(199 * (7 * 199 + 3)))]
    found = survey_by(lenient, [problem("First?", "199"), problem("Same?", "199"), *problems])
    assert warnings(found) == ["balance of answers"]
    assert "always answering '199' earns 100.0%" in said(found, "balance of answers")


def test_an_answer_accepted_for_others_is_found_even_if_another_is_more_frequent():
    problems = [problem(f"{n}?", str(max(0, n % 10 - 1))) for n in range(100)]
    found = survey_by(zero_or_not, problems)
    assert warnings(found) == ["balance of answers"]
    assert "the most frequent, '0', answers 20.0%; always answering '1' earns 80.0%" in said(
        found, "balance of answers"
    )


@pytest.mark.slow
def test_a_verifier_that_hangs_costs_a_few_time_limits():
    found = survey_by(hanging, [problem(f"{n}?", "7") for n in range(100)], time_limit=0.2)
    assert "always answering '7' earns 0.0%" in said(found, "balance of answers")


@given(st.lists(st.sampled_from(["yes", "true", "b", "1", "2", "3", "4", "5", "6", "7"]), min_size=1, max_size=200))
def test_remaining_problems_are_within_the_limits(answers: list[str]):
    """For any answers. The only exception is a share that no subset can have."""
    problems = [problem(f"{n}?", answer) for n, answer in enumerate(answers)]
    removed = surveyed(problems, limits=Limits(0.2, 0.4)).removed
    left = [answer for place, answer in enumerate(answers) if place not in removed]
    assert sum(guess_of(answer) is not None for answer in left) <= 0.2 * len(left) + 1e-9
    counts = np.unique(left, return_counts=True)[1]
    assert all(count <= max(0.4, 1 / len(counts)) * len(left) + 1e-9 for count in counts)
    assert left or all(guess_of(answer) for answer in answers)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_limit_out_of_range_is_refused(share: float):
    with pytest.raises(ValueError, match=r"Limits.guess=.* is out of range; expected > 0 and <= 1"):
        Limits(guess=share)


def test_no_problems_are_refused():
    with pytest.raises(ValueError, match="has no problems to check"):
        surveyed([])
