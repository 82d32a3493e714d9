"""The tokenizer, the built-in task and the marks around answers."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.problem import split_of
from rl_llm.tasks.modular_sum import Demonstrations, ModularSum
from rl_llm.tasks.tokenizer import CharacterTokenizer

TASK = ModularSum()
SPLITS = ("train", "validation", "held_out")
TOKENIZER = CharacterTokenizer(("a", "ab", "abc", "b", "c", "<", "<think>", "think"))


def only(**shares: float) -> ModularSum:
    nothing = {"direct": 0.0, "two_per_step": 0.0, "one_per_step": 0.0, "slip": 0.0}
    return ModularSum(demonstrations=Demonstrations(**(nothing | shares)))


@given(st.lists(st.sampled_from(TOKENIZER.symbols)).map("".join))
def test_decoding_undoes_encoding(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.integers(0, 2**32 - 1))
def test_the_task_s_texts_can_be_encoded(seed):
    (problem,) = TASK.problems("train", 1, seed)
    for text in (problem.prompt, TASK.demonstrate(problem, np.random.default_rng(seed))):
        assert TASK.tokenizer.decode(TASK.tokenizer.encode(text)) == text


def test_the_longest_symbol_comes_first():
    assert [TOKENIZER.symbols[token - 2] for token in TOKENIZER.encode("abcab<think><")] == [
        *("abc", "ab", "<think>", "<")
    ]


def test_decoding_stops_at_the_end_and_skips_padding():
    a = TOKENIZER.symbols.index("a") + 2
    assert TOKENIZER.decode(np.array([0, a, 0, a, 1, a, 0])) == "aa"


def test_an_unknown_character_is_named_with_its_place():
    with pytest.raises(ValueError, match="character 'x' at position 3 of 'abcx'"):
        TOKENIZER.encode("abcx")


@pytest.mark.parametrize("token", [-1, TOKENIZER.vocab_size])
def test_an_id_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=f"id {token} at position 1 is outside the vocabulary of 10"):
        TOKENIZER.decode([2, token])


@pytest.mark.parametrize(
    ("symbols", "message"),
    [((), "is empty"), (("a", "b", "a"), r"\['a'\] more than once"), (("a", ""), r"symbols\[1\] is ''")],
)
def test_wrong_symbols_are_refused(symbols, message):
    with pytest.raises(ValueError, match=message):
        CharacterTokenizer(symbols)


def test_the_fingerprint_distinguishes_tokenizers():
    same, swapped = CharacterTokenizer(("a", "b")), CharacterTokenizer(("b", "a"))
    assert CharacterTokenizer(("a", "b")).fingerprint() == same.fingerprint()
    assert same.fingerprint() != swapped.fingerprint()
    assert len({CharacterTokenizer(symbols).fingerprint() for symbols in [("ab",), ("a", "b"), ("a b",)]}) == 3


def test_the_task_needs_few_symbols():
    assert TASK.tokenizer.vocab_size <= 24


def test_the_splits_are_disjoint_and_decided_by_the_prompt():
    prompts = {split: {p.prompt for p in TASK.problems(split, 300, seed=0)} for split in SPLITS}
    assert {split: {split_of(prompt) for prompt in prompts[split]} for split in SPLITS} == {
        split: {split} for split in SPLITS
    }
    assert [len(prompts[split]) for split in SPLITS] == [300, 300, 300]


def test_problems_are_right_and_distinct():
    problems = TASK.problems("train", 500, seed=1)
    for problem in problems:
        terms = [int(term) for term in problem.prompt.removesuffix("=").split("+")]
        assert all(0 <= term < 7 for term in terms)
        assert (problem.answer, problem.difficulty) == (str(sum(terms) % 7), len(terms))
    assert len({problem.id for problem in problems}) == 500


def test_the_seed_decides_the_problems():
    assert TASK.problems("train", 50, seed=3) == TASK.problems("train", 50, seed=3)
    assert TASK.problems("train", 50, seed=3) != TASK.problems("train", 50, seed=4)


def test_the_number_of_terms_is_uniform():
    lengths = Counter(problem.difficulty for problem in ModularSum(min_terms=5).problems("train", 4000, seed=0))
    assert sorted(lengths) == [5, 6, 7, 8]
    # Four standard deviations of a binomial with 4000 draws and probability 1/4.
    assert all(abs(count - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5 for count in lengths.values())


def test_long_sums_replace_short_ones_that_are_used_up():
    lengths = Counter(problem.difficulty for problem in TASK.problems("held_out", 200, seed=0))
    shorter = [f"{a}+{b}=" for a in range(7) for b in range(7)]
    assert lengths[2] == sum(split_of(prompt) == "held_out" for prompt in shorter)
    assert sum(lengths.values()) == 200


def test_every_problem_of_a_split_can_be_drawn():
    task = ModularSum(max_terms=3)
    counts = {}
    for split in SPLITS:
        with pytest.raises(ValueError, match=r"99999 \w+ problems asked for, but sums of 2 to 3 terms") as caught:
            task.problems(split, 99999, seed=0)
        counts[split] = int(str(caught.value).partition("have ")[2].partition(";")[0])
        assert len({problem.prompt for problem in task.problems(split, counts[split], seed=0)}) == counts[split]
    assert sum(counts.values()) == 7**2 + 7**3


@pytest.mark.parametrize(
    ("shares", "response"),
    [
        ({"direct": 1.0}, "<answer>0</answer>"),
        ({"two_per_step": 1.0}, "<think>4+5+4=6;6+1=0;</think><answer>0</answer>"),
        ({"one_per_step": 1.0}, "<think>4+5=2;2+4=6;6+1=0;</think><answer>0</answer>"),
    ],
)
def test_demonstrations_write_the_right_number_of_terms(shares, response):
    assert only(**shares).demonstrate(TASK.problem("4+5+4+1="), np.random.default_rng(0)) == response


def test_demonstrations_mix_their_strategies():
    generator = np.random.default_rng(0)
    problem = TASK.problem("4+5+4+1=")
    mixed = replace(TASK, demonstrations=Demonstrations(0.6, 0.15, 0.25, slip=0.0))
    responses = Counter(mixed.demonstrate(problem, generator) for _ in range(4000))
    shares = {response.count(";"): count / 4000 for response, count in responses.items()}
    assert shares == {
        0: pytest.approx(0.6, abs=0.04),
        2: pytest.approx(0.15, abs=0.03),
        3: pytest.approx(0.25, abs=0.04),
    }


@given(st.integers(0, 2**32 - 1))
def test_a_slip_carries_on_to_the_answer(seed):
    response = only(one_per_step=1.0, slip=1.0).demonstrate(TASK.problem("4+5+4+1="), np.random.default_rng(seed))
    steps, _, answer = response.removeprefix("<think>").partition("</think>")
    before = "4"
    for step, term in zip(steps.rstrip(";").split(";"), "541", strict=True):
        written, _, result = step.partition("=")
        assert written == f"{before}+{term}"
        assert result != str((int(before) + int(term)) % 7)
        before = result
    assert answer == f"<answer>{before}</answer>"


def test_demonstrations_without_slips_are_right():
    generator = np.random.default_rng(0)
    for task in (only(two_per_step=1.0), only(one_per_step=1.0), only(direct=1.0)):
        for problem in task.problems("train", 100, seed=0):
            assert task.verify(problem, task.demonstrate(problem, generator)) == 1.0


@pytest.mark.parametrize(
    ("response", "accuracy"),
    [
        ("<answer>0</answer>", 1.0),
        ("<think>anything</think><answer>0</answer>", 1.0),
        ("<answer>1</answer>", 0.0),
        ("<answer>0", 0.0),
        ("<answer>0</answer>;", 0.0),
        ("<answer>0</answer><answer>0</answer>", 0.0),
        ("<answer>1</answer><answer>0</answer>", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer>00</answer>", 0.0),
        ("0", 0.0),
        ("", 0.0),
    ],
)
def test_only_one_right_answer_at_the_end_counts(response, accuracy):
    assert TASK.verify(TASK.problem("4+5+4+1="), response) == accuracy


@given(st.text())
def test_junk_is_wrong_and_raises_nothing(response):
    assert TASK.verify(TASK.problem("4+5+4+1="), response) == 0.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_terms": 1}, "min_terms=1"),
        ({"min_terms": 5, "max_terms": 4}, "min_terms=5 is more than max_terms=4"),
        ({"modulus": 11}, "modulus=11"),
        ({"modulus": 1}, "modulus=1"),
    ],
)
def test_wrong_fields_of_the_task_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ModularSum(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"direct": 0.7}, "is 1.1; the three shares must sum to 1"),
        ({"direct": -0.1, "two_per_step": 0.85}, "direct=-0.1"),
        ({"slip": 1.5}, "slip=1.5"),
        ({"slip": float("nan")}, "slip=nan"),
    ],
)
def test_wrong_shares_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Demonstrations(**fields)


def test_a_task_travels_by_pickle():
    problem = TASK.problem("1+1=")
    task, problem_again = pickle.loads(pickle.dumps((TASK, problem)))
    assert (task, problem_again) == (TASK, problem)
    assert task.verify(problem_again, "<answer>2</answer>") == 1.0
