"""Randomness by name: every draw has its own noise, and one name always gives the same noise."""

import jax
import numpy as np
import pytest

from rl_llm import prng
from rl_llm.prng import Purpose

IDS = np.array([7, 0, 2**31 - 1, 12345], np.int32)


def bits(keys: jax.Array) -> np.ndarray:
    """Numbers u32[keys, 2] of keys [...]."""
    return np.asarray(jax.random.key_data(keys)).reshape(-1, 2)


def test_no_two_seeds_purposes_steps_problems_or_samples_share_noise():
    keys = [
        bits(prng.row_keys(prng.key(seed, purpose, step), IDS, responses_per_prompt=3))
        for seed in (0, 1)
        for purpose in (Purpose.PARAMETERS, Purpose.ROLLOUT, Purpose.EVALUATION)
        for step in (0, 1, 1000)
    ]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 2 * 3 * 3 * len(IDS) * 3


def test_a_rows_key_depends_on_its_problem_and_sample_only():
    step_key = prng.key(3, Purpose.ROLLOUT, 5)
    together = bits(prng.row_keys(step_key, IDS, 3)).reshape(len(IDS), 3, 2)
    backwards = bits(prng.row_keys(step_key, IDS[::-1], 3)).reshape(len(IDS), 3, 2)
    alone = bits(prng.row_keys(step_key, IDS[2:3], 2))
    np.testing.assert_array_equal(together, backwards[::-1])
    np.testing.assert_array_equal(together[2, :2], alone)


def test_a_traced_step_has_the_key_of_a_plain_one():
    traced = jax.jit(lambda step: prng.key(0, Purpose.ROLLOUT, step))(np.int32(9))
    np.testing.assert_array_equal(bits(traced), bits(prng.key(0, Purpose.ROLLOUT, 9)))


def test_the_numbers_of_purposes_are_fixed():
    """They are part of a run's identity: with other numbers, a resumed run would draw other samples."""
    names = ["PARAMETERS", "DEMONSTRATIONS", "PROMPT_ORDER", "ROLLOUT", "EVALUATION", "SKILL"]
    assert [Purpose(number).name for number in range(len(names))] == names
    assert sorted(Purpose) == list(range(len(Purpose)))


def test_the_hosts_generator_repeats():
    first, again = (prng.generator(1, Purpose.PROMPT_ORDER, 2).random(4) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    "other", [(2, Purpose.PROMPT_ORDER, 2), (1, Purpose.DEMONSTRATIONS, 2), (1, Purpose.PROMPT_ORDER, 3)]
)
def test_the_hosts_generators_share_no_noise(other: tuple[int, Purpose, int]):
    draws = [prng.generator(*name).random(4) for name in ((1, Purpose.PROMPT_ORDER, 2), other)]
    assert not np.intersect1d(*draws).size
