"""Learning curves of several seeds on one axis of tokens, and how fast they rise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rl_llm.studies.statistics import bootstrap_interval, interquartile_mean

Curve = Sequence[tuple[float, float]]  # (tokens, value), tokens ascending; linear in between


@dataclass(frozen=True)
class Band:
    """The curves of n seeds at the same numbers of tokens: their mean, their interquartile mean, and the pointwise 95 %
    bootstrap interval of the latter over seeds (arXiv 2108.13264); from one seed, without `low` and `high`.
    """

    seeds: int
    tokens: tuple[float, ...]
    mean: tuple[float, ...]
    iqm: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


def aggregate_curves(curves: Mapping[int, Curve], points: int = 100) -> Band:
    """The curves by seed as one with a band, at `points` equidistant numbers of tokens that all seeds reach.

    Raises ValueError for no curves, a curve that is none, or curves without a common range.
    """
    if points < 2:
        raise ValueError(f"{points} points make no curve: take 2 or more")
    tokens = np.linspace(*common_range(curves), points)
    values = np.stack([np.interp(tokens, *arrays(curves[seed], f"seed {seed}")) for seed in sorted(curves)])
    # Seeds are drawn as whole curves; sorted by their ends, so that which seed has which curve changes nothing.
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
    """(first, last) number of tokens at which every seed has a value; ValueError where there is no such range."""
    if not curves:
        raise ValueError("there are no curves: none of the runs left one")
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
    """The area under a curve from `start` to `end` tokens, per token: its mean value, high where it rises early.

    Compare curves over the same range (`common_range` of all of them). Raises ValueError where the curve does not
    reach over it.
    """
    tokens, values = arrays(curve, "the curve")
    if not tokens[0] <= start < end <= tokens[-1]:
        raise ValueError(f"no area from {start:g} to {end:g} tokens: the curve is from {tokens[0]:g} to {tokens[-1]:g}")
    inside = (tokens > start) & (tokens < end)
    grid = np.concatenate([[start], tokens[inside], [end]])
    return float(np.trapezoid(np.interp(grid, tokens, values), grid) / (end - start))


def arrays(curve: Curve, whose: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, values), each f64[points]; ValueError for what is no curve."""
    table = np.asarray(curve, np.float64)
    if table.ndim != 2 or table.shape[1] != 2 or len(table) < 2:
        raise ValueError(f"{whose}: a curve is two or more pairs (tokens, value), not an array of shape {table.shape}")
    tokens, values = table.T
    if not np.isfinite(table).all():
        index = int(np.argmin(np.isfinite(table).all(axis=1)))
        raise ValueError(f"{whose}: point {index} is ({tokens[index]}, {values[index]}): leave out what is not finite")
    if (np.diff(tokens) <= 0).any():
        index = int(np.argmax(np.diff(tokens) <= 0))
        raise ValueError(f"{whose}: tokens must ascend, and {tokens[index]:g} is followed by {tokens[index + 1]:g}")
    return tokens, values
