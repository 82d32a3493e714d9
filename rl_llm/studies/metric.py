"""Metrics: the one number of a run that a study compares. Contract: `metric(summary, lines) -> float | None`.

`summary` is summary.json plus the arm's `token_budget`; `lines` are those of metrics.jsonl. None: the run did not
measure it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from rl_llm.studies.curves import area_per_token

Lines = Sequence[Mapping[str, Any]]
Summary = Mapping[str, Any]
RunOutcome = Literal["learned", "stalled", "collapsed"]
RUN_OUTCOMES: tuple[RunOutcome, ...] = get_args(RunOutcome)
GAIN = 0.05  # least gain in held-out accuracy that is worth the cost of a run
LOSS = 0.10  # loss of held-out accuracy since the start that counts as a collapse
LOST = 0.20  # loss since the best validation; larger, because the best of many noisy evaluations is high by chance


class Metric(Protocol):
    """A frozen dataclass that reads one number of a finished run."""

    def __call__(self, summary: Summary, lines: Lines) -> float | None: ...


def metric_curve(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(generated tokens, values) of the RL steps that measured `name`: f64[points] each."""
    measured = [line for line in lines if line.get("phase") == "rl" and name in line]
    tokens = np.array([line["tokens/total"] for line in measured], np.float64)
    return tokens, np.array([line[name] for line in measured], np.float64)


@dataclass(frozen=True)
class Final:
    """A value of summary.json, such as the final held-out accuracy."""

    name: str = "accuracy_after"

    def __call__(self, summary: Summary, lines: Lines) -> float | None:
        value = summary.get(self.name)
        return None if value is None else float(value)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class AtTokens:
    """An RL metric after `tokens` generated tokens, interpolated linearly; None outside the measured range."""

    tokens: int
    name: str = "evaluation/accuracy"

    def __call__(self, summary: Summary, lines: Lines) -> float | None:
        tokens, values = metric_curve(lines, self.name)
        if not len(tokens) or not tokens[0] <= self.tokens <= tokens[-1]:
            return None
        return float(np.interp(self.tokens, tokens, values))

    def __str__(self) -> str:
        return f"{self.name} at {self.tokens:,} tokens"


@dataclass(frozen=True)
class Last:
    """The mean of a metric over the last `share` of the RL steps that measured it."""

    name: str
    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"Last.share is {self.share}; expected a share of the steps above 0 and at most 1")

    def __call__(self, summary: Summary, lines: Lines) -> float | None:
        _, values = metric_curve(lines, self.name)
        return float(values[-max(1, round(self.share * len(values))) :].mean()) if len(values) else None

    def __str__(self) -> str:
        return f"{self.name}, mean of the last {self.share:.0%} of its steps"


@dataclass(frozen=True)
class Speed:
    """The mean of a metric over the token budget (area under its curve): which arm learns sooner if all end alike.

    All arms are averaged over the same range; otherwise one of them could be averaged over a later, better part. The
    curve starts at zero tokens with the value `before` of summary.json and ends at the budget, up to which the last
    measurement holds. Without a budget it ends at the last measurement.
    """

    name: str = "evaluation/accuracy"
    before: str = "accuracy_before"

    def __call__(self, summary: Summary, lines: Lines) -> float | None:
        tokens, values = metric_curve(lines, self.name)
        if not len(tokens) or not tokens[0] > 0 or not np.isfinite(values).all() or summary.get(self.before) is None:
            return None
        points = [(0.0, float(summary[self.before])), *zip(tokens, values, strict=True)]
        end = float(summary.get("token_budget") or tokens[-1])
        return area_per_token([*points, (end, values[-1])] if end > tokens[-1] else points, 0.0, end)

    def __str__(self) -> str:
        return f"{self.name}, mean over the tokens"


@dataclass(frozen=True)
class Drop:
    """How far a metric ends below its best value."""

    name: str = "evaluation/accuracy"

    def __call__(self, summary: Summary, lines: Lines) -> float | None:
        _, values = metric_curve(lines, self.name)
        return float(values.max() - values[-1]) if len(values) else None

    def __str__(self) -> str:
        return f"{self.name}, best minus last"


def run_outcome(summary: Summary, lines: Lines) -> RunOutcome:
    """Classify a run by its final held-out accuracy.

    `collapsed`: more than `LOSS` below the start, or `LOST` below the best validation. Otherwise `learned` if it is
    `GAIN` above the start, else `stalled`.
    """
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    _, validations = metric_curve(lines, "evaluation/accuracy")
    if not after > before - LOSS or (len(validations) and after <= validations.max() - LOST):
        return "collapsed"
    return "learned" if after - before >= GAIN else "stalled"


def count_run_outcomes(runs: Iterable[tuple[Summary, Lines]]) -> dict[RunOutcome, int]:
    """The number of runs with each outcome."""
    counts = Counter(run_outcome(*run) for run in runs)
    return {name: counts[name] for name in RUN_OUTCOMES}
