"""Aggregated learning curves of several seeds, and the area under them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.studies.curves import aggregate_curves, area_per_token, common_range


def line(slope: float, tokens: list[float]) -> list[tuple[float, float]]:
    return [(t, slope * t) for t in tokens]


def test_curves_are_aggregated_over_their_common_range():
    curves = {0: line(1, [0, 3, 10]), 5: line(2, [1, 2, 8]), 2: line(9, [0, 20]), 3: line(3, [0.5, 9])}
    assert common_range(curves) == (1.0, 8.0)
    band = aggregate_curves(curves, points=8)
    assert band.seeds == 4
    assert band.tokens == tuple(range(1, 9))
    assert band.mean == pytest.approx([15 / 4 * t for t in range(1, 9)])
    assert band.iqm == pytest.approx([2.5 * t for t in range(1, 9)])  # without the slopes 1 and 9
    assert all(low <= middle <= high for low, middle, high in zip(band.low, band.iqm, band.high, strict=True))
    assert band.low[3] == pytest.approx(1 * 4.0)  # 1 of 256 resamples has the lowest alone, 12 more all but one
    assert band.high[3] <= 9 * 4.0


def test_one_seed_has_no_band_and_equal_seeds_a_band_without_width():
    curve = [(0, 0.1), (10, 0.4), (20, 0.3)]
    alone = aggregate_curves({7: curve}, points=5)
    assert alone.low is alone.high is None
    assert alone.mean == alone.iqm == pytest.approx((0.1, 0.25, 0.4, 0.35, 0.3))
    same = aggregate_curves(dict.fromkeys(range(5), curve), points=5)
    assert same.low == same.high == pytest.approx(alone.iqm)


@given(st.permutations(range(4)))
def test_the_order_of_curves_does_not_matter(order: list[int]):
    noise = np.random.default_rng(0)
    curves = [list(zip([0.0, 1.0, 2.0], noise.random(3).tolist(), strict=True)) for _ in range(4)]
    moved = {seed: curves[index] for seed, index in enumerate(order)}
    assert aggregate_curves(dict(enumerate(curves)), points=7) == aggregate_curves(moved, points=7)


def test_the_band_covers_the_truth_with_many_seeds():
    noise = np.random.default_rng(3)
    tokens = np.linspace(0, 1, 5)
    covered = []
    for _ in range(60):
        curves = {
            seed: list(zip(tokens, tokens + noise.normal() + noise.normal(size=5), strict=True)) for seed in range(30)
        }
        band = aggregate_curves(curves, points=5)
        covered.append((np.array(band.low) <= tokens) & (tokens <= np.array(band.high)))
    assert 0.88 <= np.mean(covered) <= 0.99


def test_the_area_per_token_is_the_mean_height():
    assert area_per_token([(0, 0.5), (100, 0.5)], 10, 30) == pytest.approx(0.5)
    assert area_per_token(line(0.01, [0, 20, 50, 100]), 0, 100) == pytest.approx(0.5)
    assert area_per_token([(0, 0.0), (10, 1.0), (40, 1.0)], 5, 20) == pytest.approx((5 * 0.75 + 10) / 15)
    late, early = [(0, 0.0), (90, 0.0), (100, 1.0)], [(0, 0.0), (10, 1.0), (100, 1.0)]
    assert area_per_token(early, 0, 100) - area_per_token(late, 0, 100) == pytest.approx(0.9)


@given(st.floats(0.1, 9.9))
def test_areas_are_additive(middle: float):
    curve = [(0, 0.2), (1, 0.9), (4, 0.3), (10, 0.7)]
    parts = area_per_token(curve, 0, middle) * middle + area_per_token(curve, middle, 10) * (10 - middle)
    assert parts == pytest.approx(10 * area_per_token(curve, 0, 10))


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "there are no curves"),
        ({3: [(0, 0.1)]}, "seed 3: a curve is two or more pairs"),
        ({3: []}, "seed 3: a curve is two or more pairs"),
        ({3: [(0, 0.1), (5, 0.2), (5, 0.3)]}, "seed 3: tokens must ascend, but 5 is followed by 5"),
        ({3: [(0, 0.1), (5, float("nan"))]}, r"seed 3: point 1 is \(5.0, nan\)"),
        ({3: [(0, 0.1), (5, 0.2)], 4: [(5, 0.1), (9, 0.2)]}, "seed 4 starts at 5 tokens, seed 3 ends at 5"),
    ],
)
def test_malformed_curves_are_refused(curves: dict, message: str):
    with pytest.raises(ValueError, match=message):
        aggregate_curves(curves)


def test_a_single_point_and_a_range_beyond_the_data_are_refused():
    with pytest.raises(ValueError, match="points is 1; a curve needs 2"):
        aggregate_curves({0: line(1, [0, 1])}, points=1)
    for start, end in ((-1, 5), (0, 11), (5, 5)):
        with pytest.raises(ValueError, match=f"covers 0 to 10 tokens, not {start} to {end}"):
            area_per_token(line(1, [0, 10]), start, end)
