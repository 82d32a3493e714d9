"""Reward of a response: a weighted sum of components, by default the verifier's accuracy alone.

A component is a frozen dataclass with a `weight` and a `__call__`. It runs in a grading worker, so it must be picklable
and must not need JAX.
"""

import math
import re
import sys
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from rl_llm.problem import Problem

FINITE = sys.float_info.max


class RewardComponent(Protocol):
    """One aspect of a response, scored on its own scale; the reward adds `weight` times the score."""

    @property
    def weight(self) -> float: ...

    def __call__(self, problem: Problem, response: str, accuracy: float) -> float:
        """Score a response; `accuracy` is the score of the task's verifier, 0.0 to 1.0."""
        ...


@dataclass(frozen=True)
class Accuracy:
    """The verifier's score, unchanged."""

    weight: float = 1.0

    def __call__(self, problem: Problem, response: str, accuracy: float) -> float:
        return accuracy


@dataclass(frozen=True)
class Reward:
    """Weighted sum of components. The mean of each is logged under its class name (metric "component/accuracy")."""

    components: tuple[RewardComponent, ...] = (Accuracy(),)

    def __post_init__(self) -> None:
        if not self.components:
            raise ValueError("components is empty, so every response would earn 0; name at least one, e.g. Accuracy()")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ValueError(f"components holds {', '.join(repeated)} more than once; metrics need distinct names")
        for component in self.components:
            if isinstance(component, type) or not isinstance(getattr(component, "weight", None), Real):
                raise ValueError(f"{component!r} is no component; expected a dataclass with `weight` and `__call__`")
            if not math.isfinite(component.weight) or component.weight == 0.0:
                raise ValueError(f"{component} has weight {component.weight}; expected a finite number except 0")

    @property
    def names(self) -> tuple[str, ...]:
        """Metric names of the components, in order: class names in snake case."""
        return tuple(_name(component) for component in self.components)

    def __call__(self, problem: Problem, response: str, accuracy: float) -> tuple[float, dict[str, float]]:
        """Return the reward of a response, and the unweighted score of each component by name.

        Raises ValueError if a component returns anything but a finite number (`read_number`).
        """
        scores = {}
        for component in self.components:
            name, given = _name(component), component(problem, response, accuracy)
            scores[name] = read_number(given, f"the component {name}", "a finite number (float, int or bool)")
        weights = (component.weight for component in self.components)
        return sum(weight * score for weight, score in zip(weights, scores.values(), strict=True)), scores


def read_number(given: Any, giver: str, expected: str, low: float = -FINITE, high: float = FINITE) -> float:
    """Convert a number, of numpy too, to a float. Raises ValueError for anything else and outside low..high."""
    value = given.item() if getattr(given, "shape", None) == () else given
    if isinstance(value, Real) and low <= float(value) <= high:
        return float(value)
    raise ValueError(f"{giver} gave {given!r}, of class {type(given).__name__}; expected {expected}")


def _name(component: RewardComponent) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(component).__name__).lower()
