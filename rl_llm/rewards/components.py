"""What a response is worth: a weighted sum of components, of which the verifier's accuracy is the first.

A component is a frozen dataclass with a `weight` and a `__call__`. It runs in a grading worker, so it must be
picklable and must not need JAX.
"""

import math
import re
from dataclasses import dataclass
from typing import Protocol

from rl_llm.problem import Problem


class Component(Protocol):
    """One aspect of a response, scored on its own scale; the reward adds `weight` times the score."""

    @property
    def weight(self) -> float: ...

    def __call__(self, problem: Problem, response: str, accuracy: float) -> float:
        """The score; `accuracy` is what the task's verifier said, 0.0 to 1.0."""
        ...


@dataclass(frozen=True)
class Accuracy:
    """The verifier's score as it is."""

    weight: float = 1.0

    def __call__(self, problem: Problem, response: str, accuracy: float) -> float:
        return accuracy


@dataclass(frozen=True)
class Reward:
    """A sum of components, the mean of each logged under its class name in snake case (metric "component/accuracy")."""

    components: tuple[Component, ...] = (Accuracy(),)

    def __post_init__(self) -> None:
        if not self.components:
            raise ValueError("components is empty: every response would earn 0; name at least one, as Accuracy()")
        names = self.names
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"components holds {', '.join(repeated)} more than once: each is logged by its name")
        for component in self.components:
            if not math.isfinite(component.weight) or component.weight == 0.0:
                raise ValueError(f"{component} has the weight {component.weight}: it must be finite and not 0")

    @property
    def names(self) -> tuple[str, ...]:
        """What the components are logged as, in their order."""
        return tuple(_name(component) for component in self.components)

    def __call__(self, problem: Problem, response: str, accuracy: float) -> tuple[float, dict[str, float]]:
        """The reward of a response, and the unweighted score of each component by name.

        Raises ValueError if a component gives anything but a finite float.
        """
        scores = {}
        for component in self.components:
            score = component(problem, response, accuracy)
            if not isinstance(score, float) or not math.isfinite(score):
                raise ValueError(f"the component {_name(component)} gave {score!r} instead of a finite float")
            scores[_name(component)] = float(score)
        weights = (component.weight for component in self.components)
        return sum(weight * score for weight, score in zip(weights, scores.values(), strict=True)), scores


def _name(component: Component) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(component).__name__).lower()
