"""The recorded RL steps of a run as arrays, and accuracies with their standard errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW_STEPS = 10  # RL steps in an average

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sampled:
    """How the numbers of a step were sampled: `samples` responses to each of `prompts` prompts, also at an evaluation.

    own: the policy sampled the responses itself, no teacher and no file. rewarded: the policy learns from rewards.
    keeps_best: the checkpoint with the best validation accuracy is kept.
    """

    prompts: int
    samples: int
    own: bool = True
    rewarded: bool = True
    keeps_best: bool = False


@dataclass(frozen=True)
class AccuracyPoint:
    """The `share` of right responses after `steps` RL steps, out of `trials` independent trials."""

    steps: int
    share: float
    trials: int

    def difference(self, other: "AccuracyPoint") -> tuple[float, float]:
        """self - other, and its standard error.

        It is binomial, with one success and one failure added so that it is never 0; partial credit varies less.
        """
        likely = [(one.share * one.trials + 1) / (one.trials + 2) for one in (self, other)]
        variances = (p * (1 - p) / one.trials for p, one in zip(likely, (self, other), strict=True))
        return self.share - other.share, float(np.sqrt(sum(variances)))


def columns(lines: Sequence[Mapping[str, Any]]) -> Columns:
    """The numbers of the RL steps by name, f64[steps]; NaN for missing values."""
    lines = [line for line in lines if line.get("phase") == "rl"]
    numbers = (name for line in lines for name, value in line.items() if isinstance(value, int | float))
    names = dict.fromkeys(["step", *numbers])
    return {name: np.array([line.get(name, np.nan) for line in lines], np.float64) for name in names}


def validation_accuracies(steps: Columns, sampled: Sampled) -> list[AccuracyPoint]:
    """Accuracies on the validation problems, which are the same each time: only sampling noise separates them."""
    shares = steps.get("evaluation/accuracy", np.empty(0))
    trials = sampled.prompts * sampled.samples
    return [AccuracyPoint(int(i) + 1, float(shares[i]), trials) for i in np.flatnonzero(np.isfinite(shares))]


def training_accuracy(steps: Columns, sampled: Sampled, end: int, since: int = 0) -> AccuracyPoint:
    """Accuracy on training problems over the last WINDOW_STEPS of the steps after `since` up to `end`.

    Responses to one problem may all agree, so each problem counts as one trial.
    """
    shares = steps["reward/accuracy"][max(since, end - WINDOW_STEPS) : end]
    return AccuracyPoint(end, finite_mean(shares), sampled.prompts * len(shares))


def accuracies(steps: Columns, sampled: Sampled) -> list[AccuracyPoint]:
    """Accuracy over time: on validation problems, or else on training problems unless a curriculum moves it."""
    points, count = validation_accuracies(steps, sampled), len(steps["step"])
    if points or not sampled.own or difficulty_moves(steps):
        return points
    ends = range(count % WINDOW_STEPS + WINDOW_STEPS, count + 1, WINDOW_STEPS)
    return [training_accuracy(steps, sampled, end) for end in ends]


def difficulty_moves(steps: Columns) -> bool:
    """Whether a curriculum changes the difficulty of the training problems."""
    return "curriculum/problems" in steps or "curriculum/solved" in steps


def change(values: np.ndarray, end: int = WINDOW_STEPS, width: int = WINDOW_STEPS) -> tuple[float, float]:
    """Mean of the last `width` steps minus that of the `width` steps up to `end`, and its standard error.

    The error comes from the variance within both windows, trends included.
    """
    first, last = values[end - width : end], values[-width:]
    return finite_mean(last) - finite_mean(first), float(np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / width))


def recent_mean(steps: Columns, name: str) -> float:
    """The mean over the last window; NaN before the first full window."""
    values = steps.get(name, np.empty(0))
    return finite_mean(values[-WINDOW_STEPS:]) if len(values) >= WINDOW_STEPS else float("nan")


def finite_mean(values: np.ndarray) -> float:
    """The mean of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
