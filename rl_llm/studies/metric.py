"""What a member of a study is judged by: one number of its run. Contract: `metric(summary, lines) -> float | None`.

`summary` is summary.json and the `token_budget` of the arm, `lines` those of metrics.jsonl. None is said of a run that
did not measure it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rl_llm.studies.curves import area_per_token

TOKENS = "tokens/total"
Lines = Sequence[Mapping[str, Any]]
Summary = Mapping[str, Any]


class Metric(Protocol):
    """A frozen dataclass that reads one number of a finished run."""

    def __call__(self, summary: Summary, lines: Lines) -> float | None: ...


def curve(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(generated tokens, values) of the RL steps that measured `name`: f64[points] each."""
    measured = [line for line in lines if line.get("phase") == "rl" and name in line]
    tokens = np.array([line[TOKENS] for line in measured], np.float64)
    return tokens, np.array([line[name] for line in measured], np.float64)


@dataclass(frozen=True)
class Final:
    """A value of summary.json, such as the held-out accuracy of the last policy."""

    name: str = "accuracy_after"

    def __call__(self, summary: Summary, lines: Lines) -> float | None:
        value = summary.get(self.name)
        return None if value is None else float(value)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class AtTokens:
    """A metric of RL steps when `tokens` tokens had been generated, between two measurements by a straight line. None
    where the run measured nothing on either side.
    """

    tokens: int
    name: str = "evaluation/accuracy"

    def __call__(self, summary: Summary, lines: Lines) -> float | None:
        tokens, values = curve(lines, self.name)
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
            raise ValueError(f"Last.share is a share of the steps, more than 0 and at most 1, not {self.share}")

    def __call__(self, summary: Summary, lines: Lines) -> float | None:
        _, values = curve(lines, self.name)
        return float(values[-max(1, round(self.share * len(values))) :].mean()) if len(values) else None

    def __str__(self) -> str:
        return f"{self.name}, mean of the last {self.share:.0%} of its steps"


@dataclass(frozen=True)
class Speed:
    """The mean of a metric over the budget of generated tokens (the area under its curve): which arm learns sooner,
    where all arrive at the same end.

    All arms of a study are averaged over the same range, or one would be over a later, better part of its way. So the
    curve begins at zero tokens, with the value `before` of summary.json, and ends at the budget: what was measured last
    before it holds until there. Without a budget it ends with the last measurement.
    """

    name: str = "evaluation/accuracy"
    before: str = "accuracy_before"

    def __call__(self, summary: Summary, lines: Lines) -> float | None:
        tokens, values = curve(lines, self.name)
        if not len(tokens) or not tokens[0] > 0 or not np.isfinite(values).all() or summary.get(self.before) is None:
            return None
        points = [(0.0, float(summary[self.before])), *zip(tokens, values, strict=True)]
        end = float(summary.get("token_budget") or tokens[-1])
        return area_per_token([*points, (end, values[-1])] if end > tokens[-1] else points, 0.0, end)

    def __str__(self) -> str:
        return f"{self.name}, mean over the tokens"


@dataclass(frozen=True)
class Drop:
    """How far a metric ends below its best: what a run lost again."""

    name: str = "evaluation/accuracy"

    def __call__(self, summary: Summary, lines: Lines) -> float | None:
        _, values = curve(lines, self.name)
        return float(values.max() - values[-1]) if len(values) else None

    def __str__(self) -> str:
        return f"{self.name}, best less last"
