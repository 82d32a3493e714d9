"""Objectives: losses and gradients at one token, agreement on-policy, and refusals."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from peers.case import batch

from rl_llm.algorithms import RunShape
from rl_llm.algorithms.aggregate import SequenceMean, SequenceSum, TokenMean
from rl_llm.algorithms.covariance_objective import ClipCov, KLCov
from rl_llm.algorithms.critic import ValueLoss
from rl_llm.algorithms.distillation import ReverseKL
from rl_llm.algorithms.objective import DPPO, GMPO, GPPO, GSPO, SAPO, Clip, PolicyGradient, SequenceClip
from rl_llm.algorithms.score_objective import AIPO, CISPO, TOPR, VESPO
from rl_llm.types import Batch

B, T = 6, 4
LENGTHS = np.array([4, 1, 2, 3, 4, 1])

ON_POLICY = [
    PolicyGradient(),
    Clip(),
    Clip(cap=3.0),
    GPPO(),
    SAPO(),
    DPPO(),
    CISPO(),
    CISPO(masked=True),
    AIPO(),
    TOPR(),
    TOPR(level="token"),
    VESPO(),
    GSPO(),
    GSPO(gradient="token"),
    GMPO(),
    KLCov(share=0.2),
    ClipCov(floor=1e3, ceiling=1e4),
]
ids = {"ids": str}


@jax.jit(static_argnums=0)
def evaluate(objective: Any, logp: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, dict]:
    """Weighted loss, its gradient by logp, and the metrics' results."""

    def total(logp: jax.Array) -> tuple[jax.Array, Any]:
        losses, metrics = objective(logp, batch)
        return jnp.sum(batch.weight * losses), {name: metric.result() for name, metric in metrics.items()}

    (loss, metrics), gradient = jax.value_and_grad(total, has_aux=True)(logp)
    return loss, gradient, metrics


def of(logp: np.ndarray, advantage: Any, aggregate: Any, **fields: Any) -> Batch:
    """Batch of B responses with one advantage each, sampled from pi_old = exp(logp)."""
    mask = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)
    given = {"old_logp": logp, "sampler_logp": logp, "reward": np.asarray(advantage, np.float32)}
    source = batch(mask, 1, advantage=np.asarray(advantage, np.float32)[:, None] * mask, **(given | fields))
    return replace(source, weight=aggregate(source.mask, source))


def at_one_token(objective: Any, ratio: float, advantage: float, weight: float = 1.0) -> tuple[float, float, dict]:
    """Loss, gradient and metrics of a batch of one token with probability e^-3 and this ratio."""
    one = np.ones((1, 1), np.float32)
    fields = {"old_logp": -3 * one, "sampler_logp": -3 * one, "reward": one[0] * advantage, "weight": weight * one}
    source = batch(one, 1, advantage=advantage * one, **fields)
    loss, gradient, metrics = evaluate(objective, np.log(ratio).astype(np.float32) - 3 * one, source)
    return float(loss), float(gradient[0, 0]), {name: float(value) for name, value in metrics.items()}


numbers = st.lists(st.floats(-2, 2, width=32), min_size=B, max_size=B).map(lambda x: np.array(x, np.float32))
LOGP = -np.random.default_rng(0).exponential(size=(B, T)).astype(np.float32) - 0.1


@given(numbers)
@pytest.mark.parametrize("objective", ON_POLICY, **ids)
def test_on_policy_the_gradient_is_the_policy_gradient(objective, advantage: np.ndarray):
    source = of(LOGP, advantage, SequenceMean())
    _, gradient, _ = evaluate(objective, LOGP, source)
    expected = -np.asarray(source.weight) * advantage[:, None]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_product_ratio_under_the_sequence_mean_is_the_policy_gradient_of_sequence_sums():
    """All tokens of a response carry its loss, and each loss has a gradient at all of them."""
    advantage = np.linspace(-1, 1, B)
    by_mean = evaluate(SequenceClip(), LOGP, of(LOGP, advantage, SequenceMean()))[1]
    by_sum = evaluate(PolicyGradient(), LOGP, of(LOGP, advantage, SequenceSum()))[1]
    np.testing.assert_allclose(by_mean, by_sum, atol=1e-6)


@pytest.mark.parametrize("objective", [*ON_POLICY, SequenceClip(), DPPO(symmetric=True), ReverseKL()], **ids)
@pytest.mark.parametrize("away", [-1e4, 1e4])
def test_losses_and_gradients_are_finite_at_extreme_ratios(objective, away: float):
    advantage = np.array([1.0, -1.0, 1.0, -1.0, 0.0, -1.0])
    source = of(LOGP - away, advantage, TokenMean(), ref_logp=LOGP)
    loss, gradient, metrics = evaluate(objective, LOGP, source)
    assert all(np.isfinite(x).all() for x in (loss, gradient, *metrics.values()))


@given(numbers, numbers)
@pytest.mark.parametrize("by_response", [GSPO(0.2, 0.3), GSPO(0.2, 0.3, gradient="token"), SequenceClip(0.2, 0.3)])
def test_for_responses_of_one_token_a_sequence_ratio_is_the_token_ratio(by_response, moved, advantage):
    mask = np.ones((B, 1), np.float32)
    fields = {"advantage": advantage[:, None], "old_logp": np.zeros((B, 1), np.float32), "weight": mask / B}
    source = batch(mask, 1, **fields)
    for ours, theirs in zip(
        evaluate(by_response, moved[:, None], source), evaluate(Clip(0.2, 0.3), moved[:, None], source), strict=True
    ):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), ours, theirs)


def test_the_two_gradients_of_gspo_agree_on_one_advantage_per_response_and_not_otherwise():
    rng = np.random.default_rng(1)
    logp = LOGP + 0.3 * rng.normal(size=LOGP.shape).astype(np.float32)
    source = of(LOGP, np.linspace(-1, 1, B), SequenceMean())
    one, other = GSPO(0.5, 0.5), GSPO(0.5, 0.5, gradient="token")
    np.testing.assert_allclose(evaluate(one, logp, source)[1], evaluate(other, logp, source)[1], atol=1e-6)
    uneven = replace(source, advantage=jnp.asarray(rng.normal(size=LOGP.shape), jnp.float32) * source.mask)
    assert np.abs(evaluate(one, logp, uneven)[1] - evaluate(other, logp, uneven)[1]).max() > 0.01


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside: -rho A, whose gradient by logp is itself
        (0.95, -2.0, 1.9, 1.9),
        (1.5, 2.0, -2.56, 0.0),  # above with A > 0: no further
        (1.5, -2.0, 3.0, 3.0),  # above with A < 0: back down
        (0.5, 2.0, -1.0, -1.0),  # below with A > 0: back up
        (0.5, -2.0, 1.8, 0.0),  # below with A < 0: no further
        (4.0, -2.0, 6.0, 0.0),  # beyond the cap with A < 0: the loss has an end
        (4.0, 2.0, -2.56, 0.0),
        (1.0, 0.0, 0.0, 0.0),
    ],
)
def test_clip_stops_a_ratio_beyond_its_bounds(ratio: float, advantage: float, loss: float, gradient: float):
    value, slope, metrics = at_one_token(Clip(low=0.1, high=0.28, cap=3.0), ratio, advantage)
    assert value == pytest.approx(loss, rel=1e-5)
    assert slope == pytest.approx(gradient, rel=1e-5)
    assert metrics == {
        "policy/clip_high": float(ratio > 1.28 and advantage > 0),
        "policy/clip_low": float(ratio < 0.9 and advantage < 0),
        "policy/clip_cap": float(ratio > 3.0 and advantage < 0),
        "policy/ratio": pytest.approx(ratio, rel=1e-5),
        "policy/ratio_max": pytest.approx(ratio, rel=1e-5),
    }


@pytest.mark.parametrize(
    ("objective", "ratio", "advantage", "gradient"),
    [
        (GPPO(0.1, 0.28), 1.5, 2.0, -2.56),  # where Clip has none, that of the bound
        (GPPO(0.1, 0.28), 0.5, -2.0, 1.8),
        (GPPO(0.1, 0.28), 1.5, -2.0, 3.0),
        (CISPO(), 9.0, 2.0, -10.0),
        (CISPO(), 9.0, -2.0, 10.0),
        (CISPO(masked=True), 9.0, 2.0, 0.0),
        (CISPO(masked=True), 9.0, -2.0, 10.0),
        (AIPO(cap=2.0), 9.0, -2.0, 4.0),
        (AIPO(cap=2.0), 0.5, -2.0, 1.0),
        (TOPR(), 9.0, 2.0, -2.0),  # a right answer is learned as it stands
        (TOPR(), 0.1, 2.0, -2.0),
        (TOPR(), 9.0, -2.0, 2.0),
        (TOPR(), 0.1, -2.0, 0.2),  # a wrong one that is gone is let be
        (SAPO(2.0, 2.0), 2.0, 1.0, -2 * 4 * 0.104994),  # rho 4 sigmoid'(tau (rho - 1))
        (VESPO(), 2.0, 1.0, -4 * np.exp(-3)),
        (VESPO(), 2.0, -1.0, 8 * np.exp(-2)),
        (DPPO(low=0.1, high=0.1), 2.0, 1.0, -2.0),  # e^-3 is 0.05: twice as much is no great move
        (DPPO(low=0.1, high=0.1), 4.0, 1.0, 0.0),
        (DPPO(low=0.1, high=0.1), 4.0, -1.0, 4.0),
        (DPPO(low=0.1, high=0.1, symmetric=True), 4.0, -1.0, 0.0),
        (GMPO(), 2.0, 1.0, 0.0),
        (GMPO(), 2.0, -1.0, 2.0),
    ],
    ids=str,
)
def test_the_gradient_at_one_token(objective, ratio: float, advantage: float, gradient: float):
    assert at_one_token(objective, ratio, advantage)[1] == pytest.approx(gradient, rel=1e-4, abs=1e-6)


def test_gppo_has_the_loss_of_clip():
    for ratio in (0.5, 1.0, 1.5):
        for advantage in (-2.0, 2.0):
            clip = at_one_token(Clip(0.1, 0.28), ratio, advantage)[0]
            assert at_one_token(GPPO(0.1, 0.28), ratio, advantage)[0] == pytest.approx(clip, rel=1e-6)


def test_metrics_ignore_tokens_without_weight():
    assert set(at_one_token(Clip(cap=3.0), 5.0, 1.0, weight=0.0)[2].values()) == {0.0}


def test_covariance_holds_back_the_tokens_that_are_likely_and_right_or_unlikely_and_wrong():
    """A share of 0.2 of 15 tokens is three: those with the largest (A - mean A) (log pi - mean log pi)."""
    advantage = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    source = of(LOGP + 0.1, advantage, TokenMean())
    seen = np.asarray(source.mask) > 0
    table = np.broadcast_to(advantage[:, None], LOGP.shape)
    cov = np.where(seen, (table - table[seen].mean()) * (LOGP - LOGP[seen].mean()), -np.inf)
    most = cov >= np.sort(cov.reshape(-1))[-3]
    free = -np.asarray(source.weight) * table * np.exp(-0.1)
    _, held, _ = evaluate(KLCov(share=0.2, coefficient=0.5), LOGP, source)
    np.testing.assert_allclose(held, free - np.where(most, 0.5 / 15, 0.0), atol=1e-6)
    _, dropped, metrics = evaluate(ClipCov(share=0.2, floor=-1e3, ceiling=1e3), LOGP, source)
    np.testing.assert_allclose(dropped, np.where(most, 0.0, free), atol=1e-6)
    assert metrics["policy/covariance_dropped"] == pytest.approx(3 / 15)


@given(numbers)
def test_the_value_loss_gains_nothing_from_a_step_beyond_its_clip(moved: np.ndarray):
    one = np.ones((B, 1), np.float32)
    source = batch(one, 1, value=0 * one, returns=one, weight=one / B)
    loss, gradient, metrics = evaluate(ValueLoss(clip=0.2), moved[:, None], source)
    kept = np.clip(moved, -0.2, 0.2)
    assert loss == pytest.approx(0.5 * np.maximum((moved - 1) ** 2, (kept - 1) ** 2).mean(), rel=1e-5)
    assert metrics["critic/error"] == pytest.approx(((moved - 1) ** 2).mean(), rel=1e-5)
    beyond = (moved > 0.2) & ((kept - 1) ** 2 > (moved - 1) ** 2)
    assert metrics["critic/clipped"] == pytest.approx(beyond.mean())
    np.testing.assert_allclose(gradient[beyond, 0], 0.0, atol=1e-7)
    free = evaluate(ValueLoss(), moved[:, None], source)[1]
    np.testing.assert_allclose(free[:, 0], (moved - 1) / B, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Clip(0.0, 0.2), "Clip.low=0.0 is out of range; expected > 0 and <= 1"),
        (lambda: Clip(1.1, 0.2), "Clip.low=1.1 is out of range; expected > 0 and <= 1"),
        (lambda: Clip(0.2, -1.0), "Clip.high=-1.0 is out of range; expected > 0"),
        (lambda: Clip(cap=1.2), r"Clip.cap=1.2 must be greater than 1 \+ high = 1.2"),
        (lambda: GPPO(0.2, 0.0), "GPPO.high=0.0 is out of range; expected > 0"),
        (lambda: GSPO(0.0, 0.1), "GSPO.low=0.0 is out of range; expected > 0 and <= 1"),
        (lambda: SequenceClip(2.0, 0.1), "SequenceClip.low=2.0 is out of range; expected > 0 and <= 1"),
        (lambda: CISPO(0.0, 0.1), "CISPO.low=0.0 is out of range; expected > 0 and <= 1"),
        (lambda: GMPO(0.0, 0.1), "GMPO.low=0.0 is out of range; expected > 0"),
        (lambda: SAPO(tau_negative=0.0), "SAPO.tau_negative=0.0 is out of range; expected > 0"),
        (lambda: DPPO(high=1.0), "DPPO.high=1.0 is out of range; expected > 0 and < 1"),
        (lambda: AIPO(cap=0.0), "AIPO.cap=0.0 is out of range; expected > 0"),
        (lambda: VESPO(k_negative=0.0), "VESPO.k_negative=0.0 is out of range; expected > 0"),
        (lambda: ClipCov(share=0.0), "ClipCov.share=0.0 is out of range; expected > 0 and <= 1"),
        (lambda: ClipCov(floor=5.0), "floor < ceiling, not floor=5.0, ceiling=5.0"),
        (lambda: KLCov(share=1.5), "KLCov.share=1.5 is out of range; expected > 0 and <= 1"),
        (lambda: KLCov(coefficient=0.0), "KLCov.coefficient=0.0 is out of range; expected > 0"),
        (lambda: ValueLoss(clip=0.0), "ValueLoss.clip=0.0 is out of range; expected > 0"),
    ],
)
def test_impossible_values_are_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Clip(high=0.28), "Clip.high=0.28 cannot act with one on-policy update"),
        (Clip(cap=3.0), "Clip.cap=3.0 cannot act with one on-policy update"),
        (GPPO(0.3), "GPPO.low=0.3 cannot act"),
        (SAPO(2.0), "SAPO.tau_positive=2.0 cannot act"),
        (GSPO(0.1), "GSPO.low=0.1 cannot act"),
        (GMPO(0.1), "GMPO.low=0.1 cannot act"),
        (SequenceClip(0.1), "SequenceClip.low=0.1 cannot act"),
        (CISPO(masked=True), "CISPO.masked=True cannot act"),
        (TOPR("token"), "TOPR.level='token' cannot act with one update per rollout and a sampler equal"),
        (VESPO(k_positive=1.0), "VESPO.k_positive=1.0 cannot act with one update per rollout and a sampler equal"),
        (KLCov(), r"KLCov\(.*\) cannot act with one on-policy update"),
        (ClipCov(high=0.3), "ClipCov.high=0.3 cannot act"),
        (ValueLoss(clip=0.2), "ValueLoss.clip=0.2 cannot act"),
        (DPPO(low=0.1), "DPPO.low=0.1 cannot act with one update per rollout and a sampler equal"),
        (AIPO(cap=4.0), "AIPO.cap=4.0 cannot act with one update per rollout and a sampler equal"),
        (ReverseKL(low=0.1), "ReverseKL.low=0.1 cannot act with one update per rollout and a sampler equal"),
    ],
    ids=str,
)
def test_ratio_bounds_are_refused_if_no_ratio_moves(objective, message: str):
    with pytest.raises(ValueError, match=message):
        objective.check(RunShape(8, 8, 1))
    objective.check(RunShape(8, 8, 2))


def test_sampler_ratio_bounds_act_with_a_lagging_sampler():
    for objective in (DPPO(low=0.1), AIPO(cap=4.0), TOPR("token"), VESPO(k_positive=1.0), ReverseKL(low=0.1)):
        objective.check(RunShape(8, 8, 1, sampler_differs=True))
    AIPO(cap=0.5).check(RunShape(8, 8, 1))


@pytest.mark.parametrize("objective", [ClipCov(), KLCov()], **ids)
def test_covariances_are_refused_with_micro_batches(objective):
    with pytest.raises(ValueError, match="with micro_batches=2: the covariance is over the whole batch"):
        objective.check(RunShape(8, 8, 2, micro_batches=2))


@pytest.mark.parametrize("objective", [*ON_POLICY, SequenceClip()], **ids)
def test_defaults_are_accepted_everywhere(objective):
    objective = type(objective)()
    if not isinstance(objective, KLCov):  # without drift it would be the policy gradient under another name
        objective.check(RunShape(8, 8, 1))
    objective.check(RunShape(8, 8, 4))
