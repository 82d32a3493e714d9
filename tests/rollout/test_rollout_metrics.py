"""Metrics of a rollout, each computed by hand for four responses, the last one ungraded."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from rl_llm.model import ModelConfig
from rl_llm.problem import Problem
from rl_llm.rewards.worker import Grade
from rl_llm.rollout.engine import GradedRollout
from rl_llm.rollout.metrics import LOOP_WINDOW, describe_rollout, loops, training_samples
from rl_llm.types import Prompts, Rollout

CONFIG = ModelConfig(vocabulary=10, width=4, layers=2, heads=2, kv_heads=1, head_width=2, feed_forward=8)
LENGTHS = (1, 3, 4, 4)
REWARDS = (1.0, 0.0, 0.25, 0.25)
K = 2


def graded() -> GradedRollout:
    """Two prompts of 2 and 4 tokens with two responses each. The last response is truncated."""
    mask = (np.arange(4) < np.array(LENGTHS)[:, None]).astype(np.float32)
    nothing = np.zeros_like(mask)
    rollout = Rollout(
        prompts=Prompts(np.zeros((2, 4), np.int32), np.array([2, 4], np.int32), np.arange(2, dtype=np.int32)),
        tokens=nothing.astype(np.int32),
        mask=mask,
        truncated=np.array([False, False, False, True]),
        logp=nothing,
        policy_logp=nothing,
        model_logp=nothing,
    )
    grades = [
        Grade(status=status, accuracy=accuracy, reward=reward, components={"length": 4.0} if status == "ok" else {})
        for status, accuracy, reward in zip(("ok", "ok", "ok", "timeout"), (1.0, 0.0, 0.5, 0.0), REWARDS, strict=True)
    ]
    problems = [Problem(id=index, prompt=prompt, answer="1") for index, prompt in enumerate(("p", "q"))]
    return GradedRollout(
        problems, rollout, ["a", "bbb", "cccc", "dddd"], grades, generate_seconds=1.0, grade_seconds=0.5
    )


@pytest.fixture
def numbers() -> dict[str, float]:
    return describe_rollout(graded(), CONFIG)


def test_rewards(numbers: dict[str, float]):
    assert numbers["reward/mean"] == pytest.approx(1.25 / 3)
    assert numbers["reward/accuracy"] == pytest.approx(1.5 / 3)
    assert numbers["reward/zero_variance_groups"] == 0.5


def test_the_two_batch_stds_differ_where_groups_differ(numbers: dict[str, float]):
    """The paper and the frameworks mean different things by "batch std"."""
    assert numbers["reward/std"] == pytest.approx(np.std(REWARDS[:3], ddof=1))
    assert numbers["reward/std_centered"] == pytest.approx(np.std([0.5, -0.5, 0.0], ddof=1))


def test_lengths_by_correctness(numbers: dict[str, float]):
    """Right means an accuracy of 1: partial credit is not enough."""
    assert numbers["response/length"] == 3.0
    assert numbers["response/length_right"] == 1.0
    assert numbers["response/length_wrong"] == pytest.approx(7 / 2)
    assert numbers["response/truncated"] == 0.25
    assert numbers["tokens/generated"] == 12


def test_without_right_responses_their_length_is_zero():
    all_wrong = replace(graded(), grades=[Grade(status="ok", accuracy=0.0, reward=0.0)] * 4)
    numbers = describe_rollout(all_wrong, CONFIG)
    assert (numbers["response/length_right"], numbers["response/length_wrong"]) == (0.0, 3.0)
    assert numbers["reward/zero_variance_groups"] == 1.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ([7, 7, 7, 7], True),
        ([1, 2, 3, 4, 3, 4, 3, 4], True),
        ([1, 2, 3, 1, 2, 3], True),
        ([1, 2, 3, 4, 5, 6, 5, 6], False),  # once again is not yet half of it
        ([1, 2, 3, 4, 5, 6], False),
        ([5], False),
        ([], False),
        ([*range(LOOP_WINDOW), *[8, 9] * (LOOP_WINDOW // 2)], True),  # what came long before does not count
    ],
)
def test_a_loop_is_an_ending_that_occurred_before(response: list[int], expected: bool):
    assert loops(np.array(response, np.int32)) is expected


def test_truncated_responses_in_a_loop_are_counted(numbers: dict[str, float]):
    """The one truncated response repeats a token."""
    assert numbers["response/looping"] == 0.25
    told = graded()
    other = replace(told.rollout, tokens=np.arange(16, dtype=np.int32).reshape(4, 4))
    assert describe_rollout(replace(told, rollout=other), CONFIG)["response/looping"] == 0.0


def test_gradings_are_counted_by_status(numbers: dict[str, float]):
    assert [numbers[f"grading/{status}"] for status in ("ok", "error", "timeout", "crashed")] == [3, 0, 1, 0]


def test_components_are_means_over_graded_responses(numbers: dict[str, float]):
    assert numbers["component/length"] == pytest.approx(4.0)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_if_all_are_graded_the_numbers_are_those_of_plain_arrays(rewards: list[float]):
    """To the last bit, as they were when what could not be graded counted as 0."""
    grades = [Grade("ok", reward, 0.3) for reward in rewards]
    numbers = describe_rollout(replace(graded(), grades=grades), CONFIG)
    groups = np.array(rewards, np.float32).reshape(2, 2)
    centered = groups - groups.mean(axis=1, keepdims=True)
    assert numbers["reward/mean"] == float(groups.mean())
    assert numbers["reward/accuracy"] == float(np.full(4, 0.3, np.float32).mean())
    assert numbers["reward/std"] == float(groups.std(ddof=1))
    assert numbers["reward/std_centered"] == float(centered.std(ddof=1))
    assert numbers["reward/zero_variance_groups"] == float((groups == groups[:, :1]).all(axis=1).mean())


def test_flops_are_counted_from_the_shape(numbers: dict[str, float]):
    """6 prompt and 12 response tokens; a multiply-add is two operations; the backward pass costs twice the forward."""
    weights_of_a_layer = 4 * 2 * (2 * 2 + 2 * 1) + 3 * 4 * 8  # query, output, key, value; gate, up, down
    attention = 2 * (2 * 2)  # scores and weighted values, per slot looked at
    prompts = 2 * 6 * (weights_of_a_layer + attention * 3 / 2) + 2 * 10 * 4  # one position's logits per prompt
    responses = 2 * 12 * (weights_of_a_layer + attention * (3 + 3 / 2)) + 12 * 10 * 4
    assert numbers["flops/generate"] == pytest.approx(2 * (prompts + responses))
    assert numbers["flops/update"] == pytest.approx(3 * numbers["flops/generate"])


def test_samples_are_the_rows_that_are_asked_for():
    samples = training_samples(7, graded(), (0, K))
    assert [(s["step"], s["when"], s["prompt"], s["response"], s["reward"]) for s in samples] == [
        (7, "training", "p", "a", 1.0),
        (7, "training", "q", "cccc", 0.25),
    ]
