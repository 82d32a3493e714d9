"""Losses of labels (preferences, right answers, a teacher's distribution) and of critics.

The expected gradient, exact by enumeration, is that of the documented objective.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_enumeration import (
    ANY_VALUE,
    BIASED,
    BINARY,
    OFF,
    PLAIN,
    ROWS,
    SAMPLED,
    STATE_VALUES,
    TRUE_VALUE,
    K,
    Row,
    kl_at,
    right_times,
    seen,
)
from toy import LENGTHS, MASK, POLICY, REF, REWARD, RIGHT, SAMPLER, expected_ascent, expected_reward, gradient

import rl_llm.algorithms as a
from rl_llm.algorithms import SequenceMean, SequenceSum


def away_from_ref(table: Any) -> jax.Array:
    """log pi / ref of each response."""
    return jnp.sum(toy.logps(table) - toy.logps(REF), axis=1)


def pair_loss(scores: jax.Array, loss: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Minus the expected loss of the margin between the better and the worse of two samples; 0 for a tie."""
    better = np.outer(SAMPLED, SAMPLED) * (REWARD[:, None] > REWARD)
    return -2 * jnp.sum(better * loss(scores[:, None] - scores[None, :]))


def kto(table: Any) -> jax.Array:
    gain = 0.5 * (away_from_ref(table) - toy.KL_BASELINE)
    return -jnp.sum(SAMPLED * jnp.where(RIGHT > 0, 2.0 * jax.nn.sigmoid(-gain), 3.0 * jax.nn.sigmoid(gain)))


def taught(beta: float) -> a.Algorithm:
    """Distillation on the teacher's likeliest two tokens; the bucket of the rest is the third and last token."""
    return seen(a.Nothing(), regularizers=(a.Distillation(a.GeneralizedJSD(beta), 0.3),))


def jsd_at(table: Any) -> Callable[[tuple[int, ...]], jax.Array]:
    """Generalized JSD with beta = 1/4, written out."""

    def of(state: tuple[int, ...]) -> jax.Array:
        p, q = (jax.nn.softmax(toy.at_state(x, state)) for x in (table, REF))
        m = 0.25 * q + 0.75 * p
        return 0.25 * jnp.sum(q * jnp.log(q / m)) + 0.75 * jnp.sum(p * jnp.log(p / m))

    return of


LABELLED: dict[str, Row] = {
    "likelihood of right answers": (  # which is their policy gradient
        replace(PLAIN, regularizers=(a.PositiveLikelihood(0.3),)),
        right_times(lambda p: 1.3),
        BINARY,
    ),
    "likelihood of right answers, by length": (
        replace(PLAIN, aggregate=SequenceMean(), regularizers=(a.PositiveLikelihood(0.3),)),
        lambda table: 1.3 * expected_reward(table, RIGHT / LENGTHS),
        BINARY,
    ),
    "likelihood of a sampler's right answers": (
        seen(a.Nothing(), regularizers=(a.PositiveLikelihood(0.3),)),
        lambda table: 0.3 * jnp.sum(SAMPLED * RIGHT * jnp.sum(toy.logps(table), axis=1)),
        OFF | BINARY,
    ),
    "DPO": (
        seen(a.Pairwise(a.DPO(0.5, label_smoothing=0.1))),
        lambda table: pair_loss(
            away_from_ref(table), lambda h: 0.9 * jnp.log1p(jnp.exp(-h / 2)) + 0.1 * jnp.log1p(jnp.exp(h / 2))
        ),
        OFF | {"k": 2},
    ),
    "IPO": (
        seen(a.Pairwise(a.IPO(0.5))),
        lambda table: pair_loss(away_from_ref(table), lambda h: (h - 1.0) ** 2),
        OFF | {"k": 2},
    ),
    "DPO, two groups": (  # the mean over groups
        seen(a.Pairwise(a.DPO(0.5))),
        lambda table: pair_loss(away_from_ref(table), lambda h: jnp.log1p(jnp.exp(-h / 2))),
        OFF | {"k": 2, "groups": 2},
    ),
    "KTO": (seen(a.Unpaired(a.KTO(0.5, 2.0, 3.0))), kto, OFF | BINARY | {"k": 1}),
    "a teacher's distribution, forward": (
        taught(0.0),
        lambda table: -0.3 * toy.over_states(kl_at(table, "reference"), SAMPLER),
        OFF,
    ),
    "a teacher's distribution, reverse": (
        taught(1.0),
        lambda table: -0.3 * toy.over_states(kl_at(table), SAMPLER),
        OFF,
    ),
    "a teacher's distribution, between": (
        taught(0.25),
        lambda table: -0.3 * toy.over_states(jsd_at(table), SAMPLER),
        OFF,
    ),
}


@pytest.mark.parametrize("name", list(LABELLED))
def test_the_expected_gradient_is_that_of_the_objective(name: str):
    algorithm, objective, how = LABELLED[name]
    np.testing.assert_allclose(expected_ascent(algorithm, **({"k": K} | how)), gradient(objective), atol=2e-6)


def learning(loss: Any, **changes: Any) -> a.Algorithm:
    return replace(PLAIN, value_loss=loss, value_aggregate=SequenceSum(), **changes)


def to_true_value(values: Any) -> jax.Array:
    """Minus half the squared distance to the value of each state, weighted by visits."""
    return -0.5 * jnp.sum(toy.probability(POLICY)[:, None] * MASK * (toy.values_of(values) - TRUE_VALUE) ** 2)


CRITICS: dict[str, Row] = {
    "a critic of returns": (
        learning(a.ValueLoss(), advantage=a.GAE(lam=0.3, critic_lam=1.0)),
        to_true_value,
        {"value": ANY_VALUE},
    ),
    "a critic of what the true value leads to": (
        learning(a.ValueLoss(), advantage=a.GAE(lam=0.3)),
        to_true_value,
        {"value": TRUE_VALUE},
    ),
    "a reward model": (
        learning(a.BradleyTerry()),
        lambda values: pair_loss(
            toy.values_of(values)[np.arange(len(LENGTHS)), LENGTHS - 1], lambda h: jnp.log1p(jnp.exp(-h))
        ),
        OFF | {"k": 2},
    ),
}


@pytest.mark.parametrize("name", list(CRITICS))
def test_a_critics_expected_gradient_is_that_of_its_objective(name: str):
    algorithm, objective, how = CRITICS[name]
    found = expected_ascent(algorithm, **({"k": 1, "critic": STATE_VALUES} | how))
    np.testing.assert_allclose(found, jax.grad(objective)(STATE_VALUES), atol=2e-6)


def test_every_component_that_has_an_expectation_is_enumerated():
    """The rest are masks, penalties and bounds, with no expectation beyond their effect on a response; and
    controllers, which turn measurements into coefficients between steps.
    """
    tried = {
        type(part)
        for algorithm, *_ in (*ROWS.values(), *LABELLED.values(), *CRITICS.values(), *BIASED.values())
        for part in parts(algorithm)
    }
    left_out = {
        "FullKLInReward",
        "SoftOverlong",
        "RepetitionPenalty",
        "WhitenRewards",
        "ZeroVariance",
        "DifficultyWindow",
    }
    left_out |= {"DivergenceMask", "OffPolicyMask", "RunShape", "Moments", "Reference", "AdaptiveKL", "EntropyTarget"}
    kinds = {kind for kind in vars(a).values() if is_dataclass(kind) and isinstance(kind, type)}
    assert {kind.__name__ for kind in kinds - tried} == left_out


def parts(component: Any) -> list[Any]:
    """A component and its parts, recursively."""
    if isinstance(component, tuple):
        return [part for item in component for part in parts(item)]
    inner = [getattr(component, field.name) for field in fields(component)] if is_dataclass(component) else []
    return [component, *parts(tuple(inner))]
