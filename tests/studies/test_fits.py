"""Sigmoid fits of reward against compute: found if the data determine one, undetermined otherwise."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from rl_llm.config import to_json
from rl_llm.studies.fits import fit_sigmoid, sigmoid

COMPUTE = np.concatenate([[0.0], np.geomspace(0.03, 3.0, 12)])
EVEN = np.linspace(0.0, 3.0, 13)
TRUTH = (0.4, 0.95, 1.5, 0.3)  # R0, A, B, Cmid


UNENDED = "largest gain|power law|between"


def curves(law: Callable, compute: np.ndarray = COMPUTE, seeds: int = 5, noise: float = 0.01, draw: int = 0) -> dict:
    """Rewards by `law` plus noise per point and, half as large, per seed."""
    random = np.random.default_rng(draw)
    rewards = law(compute) + noise * (random.normal(size=(seeds, len(compute))) + random.normal(size=(seeds, 1)) / 2)
    return {seed: list(zip(compute.tolist(), row.tolist(), strict=True)) for seed, row in enumerate(rewards)}


def law(compute: np.ndarray) -> np.ndarray:
    return sigmoid(compute, *TRUTH)


def test_the_sigmoid_is_the_equation_of_the_paper():
    start, asymptote, efficiency, midpoint = TRUTH
    by_hand = [start + (asymptote - start) / (1 + (midpoint / c) ** efficiency) for c in COMPUTE[1:]]
    assert law(COMPUTE[1:]) == pytest.approx(by_hand)
    assert float(sigmoid(0.0, *TRUTH)) == start
    assert float(sigmoid(midpoint, *TRUTH)) == pytest.approx((start + asymptote) / 2)


@pytest.mark.parametrize(
    ("start", "asymptote", "efficiency", "midpoint"), [TRUTH, (-1.0, 0.8, 0.8, 0.1), (0.0, 50.0, 4.0, 0.5)]
)
@pytest.mark.parametrize("scale", [1.0, 1e18])
def test_the_fit_recovers_the_parameters_of_clean_curves(start, asymptote, efficiency, midpoint, scale: float):
    fit = fit_sigmoid(
        curves(lambda c: sigmoid(c, start, asymptote, efficiency, midpoint * scale), COMPUTE * scale, noise=1e-9)
    )
    assert fit.undetermined is None
    assert fit.start == pytest.approx(start, abs=1e-7)
    found = (fit.asymptote.value, fit.efficiency.value, fit.midpoint.value / scale)
    assert found == pytest.approx((asymptote, efficiency, midpoint), rel=1e-5)
    for estimate in (fit.asymptote, fit.efficiency, fit.midpoint):
        assert estimate.interval == pytest.approx((estimate.value, estimate.value), rel=1e-5)


def test_intervals_cover_the_truth_with_enough_seeds():
    covered = []
    for draw in range(8):
        fit = fit_sigmoid(curves(law, seeds=15, draw=draw))
        for estimate, truth in zip((fit.asymptote, fit.efficiency, fit.midpoint), TRUTH[1:], strict=True):
            low, high = estimate.interval
            assert low <= estimate.value <= high
            assert high - low < 0.5 * truth
            covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.8


@pytest.mark.parametrize(
    ("shape", "compute", "message"),
    [
        (lambda c: 0.4 + 0.0 * c, COMPUTE, "rewards do not rise"),
        (lambda c: 0.9 - 0.1 * c, EVEN, "rewards do not rise"),
        (lambda c: 0.4 + 0.1 * c, EVEN, UNENDED),
        (lambda c: 0.4 + 0.03 * c**2, EVEN, UNENDED),
        (lambda c: sigmoid(c, 0.4, 0.95, 1.0, 8.0), EVEN, UNENDED),
        (lambda c: 0.4 + 0.5 * np.sin(c), EVEN, "rewards fall again"),
        (lambda c: law(c) - np.where(c > 1.0, 0.3, 0.0), EVEN, "rewards fall again|do not rise"),
        (
            lambda c: np.where(c > 0, 0.9, 0.4),
            COMPUTE,
            "midpoint|efficiency",
        ),  # rises at once, so midpoint and efficiency are not observed
    ],
)
@pytest.mark.parametrize("noise", [1e-9, 0.005, 0.02])
def test_curves_that_do_not_bend_are_undetermined(shape: Callable, compute: np.ndarray, message: str, noise: float):
    for draw in range(2):
        fit = fit_sigmoid(curves(shape, compute, noise=noise, draw=draw))
        assert fit.asymptote is fit.efficiency is fit.midpoint is None
        assert fit.start == pytest.approx(float(shape(np.zeros(1))[0]), abs=0.05)
        assert any(part in fit.undetermined for part in message.split("|")), fit.undetermined


def test_too_little_data_is_undetermined():
    assert "intervals need 3 seeds; there are 2" in fit_sigmoid(curves(law, seeds=2)).undetermined
    assert "3 points after its start" in fit_sigmoid(curves(law, COMPUTE[:4])).undetermined


def test_equal_seeds_can_be_fitted_and_order_does_not_matter():
    one = curves(law, noise=0.0)
    assert fit_sigmoid(one).asymptote.value == pytest.approx(0.95)
    assert "do not rise" in fit_sigmoid(curves(lambda c: 0.1 + 0 * c, noise=0.0)).undetermined
    noisy = curves(law)
    moved = dict(zip([3, 0, 4, 1, 2], noisy.values(), strict=True))
    assert fit_sigmoid(noisy) == fit_sigmoid(moved)


def test_seeds_may_have_different_points():
    whole = curves(law)
    ragged = {
        seed: [point for index, point in enumerate(curve) if index % 5 != seed or index == 0]
        for seed, curve in whole.items()
    }
    fit = fit_sigmoid(ragged)
    assert (fit.asymptote.value, fit.efficiency.value, fit.midpoint.value) == pytest.approx(TRUTH[1:], rel=0.1)
    assert "NaN" not in json.dumps(to_json(fit))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no curves to fit"),
        ({2: [(1.0, 0.4), (2.0, 0.5)]}, r"seed 2: the first point is at compute 1; expected \(0, reward before"),
        ({2: [(0.0, 0.4)]}, "seed 2: a curve is two or more pairs"),
    ],
)
def test_malformed_curves_cannot_be_fitted(given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        fit_sigmoid(given)
