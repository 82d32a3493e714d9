"""Learning curves of several seeds on a common token axis, and the area under them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rl_llm.studies.statistics import bootstrap_interval, interquartile_mean

Curve = Sequence[tuple[float, float]]  # (tokens, value), tokens ascending; linear in between


@dataclass(frozen=True)
class Band:
    """Mean and interquartile mean of the curves of several seeds at common token counts.

    `low` and `high` are the pointwise 95 % bootstrap interval of `iqm` over seeds (arXiv 2108.13264); None for one
    seed.
    """

    seeds: int
    tokens: tuple[float, ...]
    mean: tuple[float, ...]
    iqm: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


def aggregate_curves(curves: Mapping[int, Curve], points: int = 100) -> Band:
    """Aggregate curves by seed at `points` equidistant token counts that all seeds reach.

    Raises ValueError for no curves, a malformed curve, or curves without a common range.
    """
    if points < 2:
        raise ValueError(f"points is {points}; a curve needs 2 or more")
    tokens = np.linspace(*common_range(curves), points)
    values = np.stack([np.interp(tokens, *arrays(curves[seed], f"seed {seed}")) for seed in sorted(curves)])
    # The bootstrap resamples whole curves. Sorting them makes the result independent of the order of seeds.
    values = values[np.lexsort(values.T)]
    low, high = bootstrap_interval((values,), interquartile_mean) if len(values) > 1 else (None, None)
    return Band(
        seeds=len(values),
        tokens=tuple(tokens.tolist()),
        mean=tuple(values.mean(axis=0).tolist()),
        iqm=tuple(interquartile_mean(values).tolist()),
        low=None if low is None else tuple(low.tolist()),
        high=None if high is None else tuple(high.tolist()),
    )


def common_range(curves: Mapping[int, Curve]) -> tuple[float, float]:
    """(first, last) token count at which every seed has a value. Raises ValueError if there is no such range."""
    if not curves:
        raise ValueError("there are no curves: no run has recorded one")
    ends = {seed: arrays(curve, f"seed {seed}")[0][[0, -1]] for seed, curve in curves.items()}
    last_to_start, first_to_end = max(ends, key=lambda s: ends[s][0]), min(ends, key=lambda s: ends[s][1])
    start, end = float(ends[last_to_start][0]), float(ends[first_to_end][1])
    if start >= end:
        raise ValueError(
            f"the curves have no common range: seed {last_to_start} starts at {start:g} tokens, "
            f"seed {first_to_end} ends at {end:g}"
        )
    return start, end


def area_per_token(curve: Curve, start: float, end: float) -> float:
    """The mean value of a curve from `start` to `end` tokens: high if the curve rises early.

    Compare curves over the same range (their `common_range`). Raises ValueError if the curve does not cover the range.
    """
    tokens, values = arrays(curve, "the curve")
    if not tokens[0] <= start < end <= tokens[-1]:
        raise ValueError(f"the curve covers {tokens[0]:g} to {tokens[-1]:g} tokens, not {start:g} to {end:g}")
    inside = (tokens > start) & (tokens < end)
    grid = np.concatenate([[start], tokens[inside], [end]])
    return float(np.trapezoid(np.interp(grid, tokens, values), grid) / (end - start))


def arrays(curve: Curve, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, values) of a curve, each f64[points]. Raises ValueError for a malformed curve."""
    table = np.asarray(curve, np.float64)
    if table.ndim != 2 or table.shape[1] != 2 or len(table) < 2:
        raise ValueError(f"{name}: a curve is two or more pairs (tokens, value), not an array of shape {table.shape}")
    tokens, values = table.T
    if not np.isfinite(table).all():
        index = int(np.argmin(np.isfinite(table).all(axis=1)))
        raise ValueError(f"{name}: point {index} is ({tokens[index]}, {values[index]}); expected finite numbers")
    if (np.diff(tokens) <= 0).any():
        index = int(np.argmax(np.diff(tokens) <= 0))
        raise ValueError(f"{name}: tokens must ascend, but {tokens[index]:g} is followed by {tokens[index + 1]:g}")
    return tokens, values
