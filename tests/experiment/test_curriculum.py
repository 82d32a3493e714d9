"""Order of problems: once per epoch, easiest first, no solved ones."""

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from program import EXPERIMENT

from rl_llm.experiment.curriculum import (
    Curriculum,
    Cursor,
    Difficulty,
    DynamicSampling,
    Replay,
    ResponseLength,
    TooFewProblems,
    next_prompts,
)
from rl_llm.problem import Problem

PROBLEMS = [Problem(id=7 * index, prompt=str(index), answer="", difficulty=float(index % 3)) for index in range(9)]


def asked(steps: int, count: int, seed: int = 0, banned: frozenset[int] = frozenset()) -> list[list[int]]:
    """Problem ids of the first steps."""
    cursor, found = Cursor(), []
    for _ in range(steps):
        problems, cursor = next_prompts(PROBLEMS, seed, cursor, count, lambda problem: problem.id not in banned)
        found.append([problem.id for problem in problems])
    return found


@given(st.integers(1, 9), st.integers(0, 5))
def test_no_problem_is_asked_twice_in_an_epoch_and_a_small_remainder_is_skipped(count: int, seed: int):
    per_epoch = 9 // count
    steps = asked(3 * per_epoch, count, seed)
    for epoch in range(3):
        ids = list(chain(*steps[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert len(ids) == len(set(ids)) == per_epoch * count


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    orders = {tuple(chain(*asked(9, 3, seed)[3 * e : 3 * e + 3])) for e in range(3) for seed in range(3)}
    assert len(orders) == 9
    assert asked(5, 2, 4) == asked(5, 2, 4)


@given(st.sets(st.sampled_from([problem.id for problem in PROBLEMS]), max_size=6))
def test_only_allowed_problems_are_asked_and_all_of_them_before_any_repeats(banned: set[int]):
    allowed = 9 - len(banned)
    ids = list(chain(*asked(allowed, 1, 0, frozenset(banned))))
    assert set(ids) == {problem.id for problem in PROBLEMS} - banned
    assert len(ids) == allowed


def test_too_few_problems_are_an_error():
    with pytest.raises(TooFewProblems, match="fewer than 3 of 9 problems may be asked"):
        asked(1, 3, 0, frozenset(problem.id for problem in PROBLEMS[2:]))


def test_the_pool_begins_with_the_easiest_and_grows_to_all():
    curriculum = Curriculum(difficulty=Difficulty(first_share=1 / 3, steps=2))
    pools = [curriculum.pool(PROBLEMS, step) for step in range(4)]
    assert [problem.difficulty for problem in pools[0]] == [0.0] * 3
    assert [len(pool) for pool in pools] == [3, 6, 9, 9]
    assert all(set(p.id for p in less) <= set(p.id for p in more) for less, more in pairwise(pools))
    assert Curriculum().pool(PROBLEMS, 0) is PROBLEMS


def test_the_limit_on_responses_grows_to_max_tokens():
    length = ResponseLength(first=4, steps=3)
    assert [length.limit(16, step) for step in range(5)] == [4, 8, 12, 16, 16]


@given(st.integers(1, 5), st.data(), st.integers(0, 20), st.integers(0, 3))
def test_replayed_rollouts_are_recent_enough_and_count_as_updates(max_age: int, data, step: int, seed: int):
    replay = Replay(max_age, data.draw(st.integers(1, max_age)))
    ages = replay.drawn(seed, step)
    assert len(set(ages)) == len(ages) == min(step, replay.rollouts)
    assert all(1 <= age <= min(step, max_age) for age in ages)
    assert replay.updates(step, 2) == 2 * sum(1 + len(replay.drawn(seed, earlier)) for earlier in range(step))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Difficulty(1.0, 3), "Difficulty.first_share=1.0 is out of range; expected > 0 and < 1"),
        (lambda: ResponseLength(0, 3), "ResponseLength.first=0 is out of range; expected >= 1"),
        (lambda: Curriculum(drop_solved=1.5), "drop_solved=1.5 is out of range; expected > 0 and <= 1"),
        (lambda: DynamicSampling(1), "max_rollouts=1 is out of range; expected >= 2"),
        (lambda: Replay(2, 3), "rollouts=3 is more than max_age=2"),
    ],
)
def test_values_out_of_range_are_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_problems_of_the_task_differ_in_difficulty():
    assert len({problem.difficulty for problem in EXPERIMENT.task.problems("train", 40, 0)}) > 1
