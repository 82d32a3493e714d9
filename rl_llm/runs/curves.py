"""The recorded RL steps of a run as arrays, and accuracies with their errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW = 10  # RL steps that are averaged over

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sampled:
    """What a step's numbers are about: `samples` responses to each of `prompts` prompts, and as many at an evaluation;
    whether they are the policy's `own` (not stored ones, or a teacher's), and whether it learns from `reward` at all.
    """

    prompts: int
    samples: int
    own: bool = True
    rewarded: bool = True


@dataclass(frozen=True)
class Accuracy:
    """A `share` of right responses after `steps` RL steps, out of `trials` independent ones."""

    steps: int
    share: float
    trials: int

    def less(self, other: "Accuracy") -> tuple[float, float]:
        """The difference of two shares, and its standard error: binomial, with one success and one failure more in each
        so that it is not 0 where all are right. Partial credit varies less.
        """
        likely = [(one.share * one.trials + 1) / (one.trials + 2) for one in (self, other)]
        variances = (p * (1 - p) / one.trials for p, one in zip(likely, (self, other), strict=True))
        return self.share - other.share, float(np.sqrt(sum(variances)))


def columns(lines: Sequence[Mapping[str, Any]]) -> Columns:
    """The numbers of the RL steps by name, f64[steps], NaN where a step has none."""
    lines = [line for line in lines if line.get("phase") == "rl"]
    names = dict.fromkeys(
        ["step", *(name for line in lines for name, value in line.items() if isinstance(value, int | float))]
    )
    return {name: np.array([line.get(name, np.nan) for line in lines], np.float64) for name in names}


def validations(steps: Columns, sampled: Sampled) -> list[Accuracy]:
    """Of the same problems each time: only the sampling of their responses makes them differ by chance."""
    shares = steps.get("evaluation/accuracy", np.empty(0))
    trials = sampled.prompts * sampled.samples
    return [Accuracy(int(i) + 1, float(shares[i]), trials) for i in np.flatnonzero(np.isfinite(shares))]


def trained(steps: Columns, sampled: Sampled, end: int, since: int = 0) -> Accuracy:
    """Of the steps after `since` up to the `end`th, the last WINDOW of them. Responses to one problem may all agree, so
    each problem counts once.
    """
    shares = steps["reward/accuracy"][max(since, end - WINDOW) : end]
    return Accuracy(end, mean(shares), sampled.prompts * len(shares))


def measured(steps: Columns, sampled: Sampled) -> list[Accuracy]:
    """Accuracy over time: that of validation where there is any, or else of training, window by window up to now."""
    points, count = validations(steps, sampled), len(steps["step"])
    if points or not sampled.own or moving(steps):
        return points
    ends = range(count % WINDOW + WINDOW, count + 1, WINDOW)
    return [trained(steps, sampled, end) for end in ends]


def moving(steps: Columns) -> bool:
    """Whether a curriculum changes how hard the training problems are."""
    return "curriculum/problems" in steps or "curriculum/solved" in steps


def change(values: np.ndarray, end: int = WINDOW, width: int = WINDOW) -> tuple[float, float]:
    """From the `width` steps up to the `end`th to the last ones, and its standard error by how steps differ within both
    (a trend included).
    """
    first, last = values[end - width : end], values[-width:]
    return mean(last) - mean(first), float(np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / width))


def recent(steps: Columns, name: str) -> float:
    """The mean of the last window; NaN before there is one."""
    values = steps.get(name, np.empty(0))
    return mean(values[-WINDOW:]) if len(values) >= WINDOW else float("nan")


def mean(values: np.ndarray) -> float:
    """Of the finite ones; NaN where there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
