"""Invariances of every component and recipe, found by reflection: order of groups and rows, padding, parts."""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from test_knobs import (
    ARRAYS,
    ENTROPY,
    KNOBS,
    LOGP,
    MASK,
    MEASURED,
    OLD,
    REF,
    REWARD,
    SAMPLER,
    STUDENT,
    TEACHER,
    TRUNCATED,
    K,
    N,
    T,
    of,
)

import rl_llm.algorithms as a
from rl_llm.algorithms import Algorithm, Moments, RunShape
from rl_llm.learner.gradient import split
from rl_llm.learner.train_step import make_batch
from rl_llm.types import Prompts, Rollout

WIDER = 5
TOKENS = np.random.default_rng(0).integers(2, 5, MASK.shape)
MOMENTS = Moments(jnp.float32(30.0), jnp.float32(0.2), jnp.float32(40.0))
# Inputs per row and per token; the group follows from the row.
INPUTS: dict[str, Any] = {
    "tokens": TOKENS,
    "mask": MASK,
    "truncated": TRUNCATED,
    "reward": REWARD.astype(np.float32),
    "logp": SAMPLER,
    "old": OLD,
    # What the networks give when an update begins.
    "learner": LOGP,
    "entropy": np.asarray(ENTROPY),
    "student_logp": np.asarray(STUDENT),
    "critic": ARRAYS["in/vpred"],
    # What only some algorithms need.
    "ref_logp": REF,
    "greedy_reward": ARRAYS["in/greedy_baseline"],
    "value": ARRAYS["in/values"],
    "rewards": np.stack([ARRAYS["in/reward_binary"], REWARD], axis=1).astype(np.float32),
    "kl_baseline": np.full(N * K, 0.3, np.float32),
    "teacher_tokens": np.tile(np.arange(3, dtype=np.int32), (*MASK.shape, 1)),
    "teacher_logp": np.asarray(TEACHER),
    "old_top_logp": np.asarray(STUDENT),
}
OPTIONAL = list(INPUTS)[list(INPUTS).index("ref_logp") :]


@dataclass(frozen=True)
class Found:
    """Results for a whole batch: weight, advantage and gradient of each token, the critic's targets, the loss."""

    weight: Any
    advantage: Any
    value_weight: Any
    returns: Any
    by_logp: Any
    by_entropy: Any
    by_student: Any
    by_value: Any
    loss: Any


@dataclass(frozen=True)
class Cut:
    """Everything that is cut along the rows of a batch."""

    prompts: Any
    batch: Any
    given: Any
    places: Any

    @property
    def groups(self) -> int:
        return self.prompts.lengths.shape[0]


for kind in (Found, Cut):
    jax.tree_util.register_dataclass(kind, [field.name for field in fields(kind)], [])


# Little optimization: these programs are compiled once and run a few times.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@partial(jax.jit, static_argnames=("algorithm", "parts"), compiler_options=QUICKLY)
def learned(algorithm: Algorithm, inputs: dict[str, jax.Array], parts: int = 1) -> Found:
    """Results of make_batch on the whole batch and of losses on parts of it, with their gradients joined again.

    Controllers set the coefficients from a measurement.
    """
    prompts = Prompts(jnp.zeros((N, 1), jnp.int32), jnp.ones(N, jnp.int32), jnp.arange(N))
    x = inputs
    rollout = Rollout(
        prompts, x["tokens"], x["mask"], x["truncated"], x["logp"], x["old"], x["old"], reward=x["reward"]
    )
    made = {name: x[name] for name in OPTIONAL if name in algorithm.needs}
    made |= {"counted": x["counted"]} if "counted" in x else {}
    first = {name: jnp.float32(component.coefficient) for name, component in algorithm.adaptive.items()}
    coefficients = algorithm.adapted(first, MEASURED, 100)
    moments = MOMENTS if "moments" in algorithm.needs else None
    batch, _ = make_batch(algorithm, rollout, made, moments, coefficients)

    def loss(given: tuple[jax.Array, ...], part: Any) -> jax.Array:
        logp, entropy, student, values = given
        part = replace(part, student_logp=student) if "teacher_tokens" in algorithm.needs else part
        losses, _ = algorithm.objective(logp, part)
        for term in algorithm.regularizers:
            losses = losses + term(logp, entropy, part, **a.with_coefficient(term, coefficients))[0]
        total = jnp.sum(part.weight * losses)
        if algorithm.value_loss is None:
            return total
        return total + jnp.sum(part.value_weight * algorithm.value_loss(values, part)[0])

    given = (x["learner"], x["entropy"], x["student_logp"], x["critic"])
    cut = split(Cut(prompts, batch, given, jnp.arange(N * K)), parts)
    value, gradients = jax.vmap(jax.value_and_grad(loss))(cut.given, cut.batch)
    places = cut.places.reshape(-1)
    pulled = (
        jnp.zeros(whole.shape).at[places].set(g.reshape(whole.shape)) for g, whole in zip(gradients, given, strict=True)
    )
    none = jnp.zeros_like(batch.mask)
    critic_parts = (none if found is None else found for found in (batch.value_weight, batch.returns))
    return Found(batch.weight, batch.advantage, *critic_parts, *pulled, jnp.sum(value))


def widened(filled: bool) -> dict[str, np.ndarray]:
    """Inputs with further masked positions; `filled` puts conspicuous values there and into the existing padding.

    Log-probabilities of a rollout are 0 at padding.
    """
    wide = {}
    for name, value in INPUTS.items():
        if value.shape[:2] == MASK.shape:
            fill = 0 if name in ("mask", "logp", "old") or not filled else -3 if value.ndim == 3 else 3
            padding = MASK.reshape(*MASK.shape, *[1] * (value.ndim - 2)) == 0
            kept = value if fill == 0 else np.where(padding, np.asarray(fill, value.dtype), value)
            value = np.pad(kept, ((0, 0), (0, WIDER), (0, 0))[: value.ndim], constant_values=fill)
        wide[name] = value
    return wide


WIDE, FILLED = widened(filled=False), widened(filled=True)


def same(found: Found, expected: Found, order: Any = slice(None)) -> None:
    """Assert equality up to rounding, relative to the largest number of each kind."""
    for field in fields(Found):
        ours, theirs = np.asarray(getattr(found, field.name)), np.asarray(getattr(expected, field.name))
        if ours.ndim >= 2:
            assert not ours[:, T:].any(), field.name
            ours, theirs = ours[:, :T], theirs[order][:, :T]
        scale = max(np.abs(theirs).max(), 1e-6)
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=2e-5, err_msg=field.name)


RECIPES = {name: value for name, value in vars(a).items() if isinstance(value, Algorithm)} | {"DR_GRPO": a.dr_grpo(T)}
ALGORITHMS = {kind.__name__: of(component) for kind, (component, _) in KNOBS.items()}
ALGORITHMS |= {
    f"{kind.__name__}.{name}={getattr(other, name)}": of(other)
    for kind, (component, others) in KNOBS.items()
    for name, value in others.items()
    if isinstance(value, str | bool)
    for other in (replace(component, **{name: value}),)
}
ALGORITHMS |= RECIPES
COMPONENTS = {kind.__name__ for kind in KNOBS}
NAMES = [pytest.param(name, marks=[] if name in COMPONENTS else [pytest.mark.slow]) for name in sorted(ALGORITHMS)]
# These choose a share of the tokens by the covariance over a whole batch, and refuse micro-batches.
WHOLE = {"ClipCov", "KLCov"}


def found_with(name: str, inputs: dict[str, np.ndarray]) -> Found:
    """Results of three parts of two groups each, if possible. One program serves inputs of one width."""
    return learned(ALGORITHMS[name], inputs, 1 if name in WHOLE else 3)


@settings(max_examples=5)
@given(order=st.permutations(range(N)), rows=st.lists(st.permutations(range(K)), min_size=N, max_size=N))
@pytest.mark.parametrize("name", NAMES)
def test_groups_and_rows_may_come_in_any_order_and_in_any_parts(name: str, order: list[int], rows: list[list[int]]):
    places = (np.array(order)[:, None] * K + np.array(rows)).reshape(-1)
    same(found_with(name, {key: value[places] for key, value in WIDE.items()}), found_with(name, WIDE), places)


@pytest.mark.parametrize("name", NAMES)
def test_values_in_the_padding_change_nothing(name: str):
    same(found_with(name, FILLED), found_with(name, WIDE))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_width_changes_nothing_and_parts_add_up_to_the_whole(name: str):
    same(found_with(name, FILLED), learned(ALGORITHMS[name], INPUTS))


UNGRADED = np.arange(N * K) % 5 == 2  # one response or two of most groups
REPLACED = {"truncated", "rewards", "greedy_reward", "value", "critic", "ref_logp", "old", "logp", "tokens"}
PULLED = {"weight", "value_weight", "by_logp", "by_entropy", "by_student", "by_value"}


@pytest.mark.parametrize("name", NAMES)
def test_a_response_that_could_not_be_graded_changes_nothing_else(name: str):
    """An ungraded row has no gradient, and its content changes no advantage, weight or gradient of other rows.

    Its length stays: some sums are divided by all tokens of the batch, those of dropped rows included.
    """

    def row(values: np.ndarray) -> np.ndarray:
        return UNGRADED.reshape(-1, *[1] * (values.ndim - 1))

    reward = np.where(UNGRADED, np.nan, WIDE["reward"]).astype(np.float32)
    inputs = WIDE | {"reward": reward, "counted": ~UNGRADED}
    other = {key: np.where(row(inputs[key]), inputs[key][::-1], inputs[key]) for key in REPLACED}
    other |= {key: other[key] * WIDE["mask"] for key in ("old", "logp")}
    found, expected = found_with(name, inputs), found_with(name, inputs | other)
    for field in fields(Found):
        ours, theirs = (np.asarray(getattr(one, field.name)) for one in (found, expected))
        assert np.isfinite(ours).all(), field.name
        assert field.name not in PULLED or not ours[UNGRADED].any(), field.name
        if ours.ndim:
            ours, theirs = ours[~UNGRADED], theirs[~UNGRADED]
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4, err_msg=field.name)


@pytest.mark.parametrize(
    ("name", "pulled"),
    [("ValueLoss", "value"), ("BradleyTerry", "value"), ("Distillation", "student"), ("EntropyTarget", "entropy")],
)
def test_the_harness_sees_what_each_loss_pulls(name: str, pulled: str):
    pulls = {
        kind: np.abs(getattr(found_with(name, WIDE), f"by_{kind}")).max()
        for kind in ("logp", "entropy", "student", "value")
    }
    assert {kind for kind, most in pulls.items() if most > 0} == {"logp", pulled}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_objectives_that_differ_in_parts_are_refused_with_micro_batches(name: str):
    with pytest.raises(AssertionError, match="by_logp"):
        same(learned(ALGORITHMS[name], WIDE, 2), found_with(name, WIDE))
    with pytest.raises(ValueError, match="set micro_batches=1"):
        ALGORITHMS[name].objective.check(RunShape(N, K, 2, micro_batches=2))  # type: ignore[attr-defined]


# {0, 1} -> {-1, 1} is r -> 2 r - 1. Components leave the advantage of Lite PPO unchanged by it, except:
DOUBLE = {  # without a std: the scale of the rewards is that of the step
    "RLOO", "OPO", "GPG", "ReMax", "BestOfGroup.std=none", "DR_GRPO", "LEAVE_ONE_OUT", "REINFORCE",
    "OLMO_3_ZERO",
}  # fmt: skip
SEEN = {
    "GAE": "a value is in the units of the rewards",
    "LengthAdaptive": "a value is in the units of the rewards",
    "ValueLoss": "a value is in the units of the rewards",
    "PPO": "a value is in the units of the rewards",
    "VAPO": "a value is in the units of the rewards",
    "MaxRL": "divides by the mean reward",
    "RewardToGo": "has no baseline",
    "DIRECT_PREFERENCE": "has the reward as its advantage, which it does not read",
    "KAHNEMAN_TVERSKY": "has the reward as its advantage, which it does not read",
    "REWARD_MODEL": "has the reward as its advantage, which it does not read",
    "ON_POLICY_DISTILLATION": "has the reward as its advantage, which it does not read",
    "GKD": "has the reward as its advantage, which it does not read",
    "REINFORCE_PLUS_PLUS": "fines the KL in units of the reward",
    "KLInReward": "fines in units of the reward",
    "FullKLInReward": "fines in units of the reward",
    "KLInReward.level=token": "fines in units of the reward",
    "SoftOverlong": "fines in units of the reward",
    "SoftOverlong.capped=False": "fines in units of the reward",
    "RepetitionPenalty": "fines in units of the reward",
    "WhitenRewards": "whitens with the zeros of the tokens before the last",
    "WhitenRewards.keep_mean=True": "whitens with the zeros of the tokens before the last",
    "DifficultyWindow": "has bounds in units of the reward",
    "DifficultyWindow.counts=False": "has bounds in units of the reward",
    "RewardAtLeast": "has a threshold in units of the reward",
    "RewardAtLeast.counts=False": "has a threshold in units of the reward",
}
RIGHT = (np.median(REWARD) < REWARD).astype(np.float32)


def answer(name: str) -> str:
    """Effect of a linear change of rewards on the advantages of weighted tokens, and on weights."""

    def with_rewards(change: Any) -> tuple[np.ndarray, np.ndarray]:
        greedy, both = (change(x) for x in (RIGHT[::-1], np.stack([RIGHT, RIGHT[::-1]], axis=1)))
        given = {"reward": change(RIGHT), "greedy_reward": greedy, "rewards": both}
        found = found_with(name, WIDE | given)
        return np.asarray(found.advantage * (found.weight > 0)), np.asarray(found.weight)

    (before, weight), (after, other_weight) = with_rewards(lambda r: r), with_rewards(lambda r: 2 * r - 1)
    if not np.allclose(weight, other_weight, rtol=1e-5):
        return "seen"
    for word, factor in (("same", 1), ("double", 2)):
        if np.abs(after - factor * before).max() < 1e-4 * np.abs(before).max():
            return word
    return "seen"


@pytest.mark.parametrize("name", NAMES)
def test_rewards_of_minus_one_and_one_equal_zero_and_one_after_normalization(name: str):
    assert answer(name) == ("double" if name in DOUBLE else "seen" if name in SEEN else "same")
