"""What no component and no recipe may depend on: the order of groups and rows, padding, parts; by reflection."""

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
# What a row and a token are given; the group's number comes with the row.
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
    """Of a whole batch: what each token weighs, earns and pulls, f32[B, T], what a critic learns of it, and the
    loss.
    """

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
    """What goes with the rows of a batch."""

    prompts: Any
    batch: Any
    given: Any
    places: Any

    @property
    def groups(self) -> int:
        return self.prompts.lengths.shape[0]


for kind in (Found, Cut):
    jax.tree_util.register_dataclass(kind, [field.name for field in fields(kind)], [])


# Hardly optimised: these programs are compiled once and run a few times.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@partial(jax.jit, static_argnames=("algorithm", "parts"), compiler_options=QUICKLY)
def learned(algorithm: Algorithm, inputs: dict[str, jax.Array], parts: int = 1) -> Found:
    """make_batch of the whole, then the losses of parts of it, their gradients put together again; coefficients are
    those that controllers make of a measurement.
    """
    prompts = Prompts(jnp.zeros((N, 1), jnp.int32), jnp.ones(N, jnp.int32), jnp.arange(N))
    x = inputs
    rollout = Rollout(prompts, x["tokens"], x["mask"], x["truncated"], x["logp"], x["old"], x["old"])
    made = {name: x[name] for name in OPTIONAL if name in algorithm.needs}
    first = {name: jnp.float32(component.coefficient) for name, component in algorithm.adaptive.items()}
    coefficients = algorithm.adapted(first, MEASURED, 100)
    moments = MOMENTS if "moments" in algorithm.needs else None
    batch, _ = make_batch(algorithm, rollout, x["reward"], made, moments, coefficients)

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
    of_critic = (none if found is None else found for found in (batch.value_weight, batch.returns))
    return Found(batch.weight, batch.advantage, *of_critic, *pulled, jnp.sum(value))


def widened(filled: bool) -> dict[str, np.ndarray]:
    """Further positions that the mask leaves out; `filled`, with values there, and in the padding that there was, that
    would show. Log-probabilities of a rollout are 0 at padding.
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
    """Equal but for rounding, relative to the largest number of each kind."""
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
# The covariance is over the whole batch of an update: these choose a share of its tokens, and refuse parts.
WHOLE = {"ClipCov", "KLCov"}


def found_with(name: str, inputs: dict[str, np.ndarray]) -> Found:
    """In three parts, of two groups each, where it can be. One program serves inputs of one width."""
    return learned(ALGORITHMS[name], inputs, 1 if name in WHOLE else 3)


@settings(max_examples=5)
@given(order=st.permutations(range(N)), rows=st.lists(st.permutations(range(K)), min_size=N, max_size=N))
@pytest.mark.parametrize("name", NAMES)
def test_groups_and_rows_may_come_in_any_order_and_in_any_parts(name: str, order: list[int], rows: list[list[int]]):
    places = (np.array(order)[:, None] * K + np.array(rows)).reshape(-1)
    same(found_with(name, {key: value[places] for key, value in WIDE.items()}), found_with(name, WIDE), places)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_the_padding_changes_nothing(name: str):
    same(found_with(name, FILLED), found_with(name, WIDE))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_width_changes_nothing_and_parts_add_up_to_the_whole(name: str):
    same(found_with(name, FILLED), learned(ALGORITHMS[name], INPUTS))


@pytest.mark.parametrize(
    ("name", "pulled"),
    [("ValueLoss", "value"), ("BradleyTerry", "value"), ("Distillation", "student"), ("EntropyTarget", "entropy")],
)
def test_what_a_loss_pulls_would_show(name: str, pulled: str):
    pulls = {
        kind: np.abs(getattr(found_with(name, WIDE), f"by_{kind}")).max()
        for kind in ("logp", "entropy", "student", "value")
    }
    assert {kind for kind, most in pulls.items() if most > 0} == {"logp", pulled}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_what_cannot_be_computed_in_parts_would_differ_and_is_refused(name: str):
    with pytest.raises(AssertionError, match="by_logp"):
        same(learned(ALGORITHMS[name], WIDE, 2), found_with(name, WIDE))
    with pytest.raises(ValueError, match="set micro_batches=1"):
        ALGORITHMS[name].objective.check(RunShape(N, K, 2, micro_batches=2))  # type: ignore[attr-defined]


# {0, 1} -> {-1, 1} is r -> 2 r - 1. A component in Lite PPO's place changes nothing about that, but:
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
    """What a linear change of the rewards does to the advantages of the tokens that weigh anything, and to weights."""

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
def test_rewards_of_minus_one_and_one_change_nothing_where_they_are_normalised(name: str):
    assert answer(name) == ("double" if name in DOUBLE else "seen" if name in SEEN else "same")
