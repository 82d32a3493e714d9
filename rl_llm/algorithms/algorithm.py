"""An algorithm is a value: how rewards become advantages, what is minimised, how much each token counts, what is
dropped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp

from rl_llm.algorithms.aggregate import TokenMean
from rl_llm.algorithms.compatibility import check_together
from rl_llm.algorithms.filters import Filter
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.algorithms.whitening import Advantage
from rl_llm.config import check_fields
from rl_llm.types import Batch, Mean, Metrics

Aggregate = Callable[[jax.Array, Batch], jax.Array]
Coefficients = Mapping[str, jax.Array]

TOKEN_MEAN = TokenMean()

# Who makes an optional field of a batch, where a run lacks it.
MAKERS = {
    "ref_logp": "Experiment.reference (or Experiment.teacher)",
    "kl_baseline": "Experiment.reference",
    "value": "Experiment.critic",
    "teacher_tokens": "Experiment.teacher",
    "teacher_logp": "Experiment.teacher",
    "old_top_logp": "Experiment.reference with top_tokens",
}


@dataclass(frozen=True)
class Algorithm:
    """A composition of components, each a frozen dataclass. It hashes by value; what is compiled for it takes its
    floats as arguments (`rl_llm.parallel.numbers`).

    filters -> shaping -> advantage -> aggregate -> corrections on the whole batch, once; objective + regularizers on
    parts of it, at every update, and `value_loss`, weighed by `value_aggregate`, where a critic learns too. To add a
    trick write one class with the contract of its module and name it here in a recipe; nothing else changes.
    """

    advantage: Advantage
    objective: Callable[[jax.Array, Batch], tuple[jax.Array, Metrics]]
    aggregate: Aggregate
    filters: tuple[Filter, ...] = ()
    shaping: tuple[Callable[..., Batch], ...] = ()
    corrections: tuple[Callable[[Batch], jax.Array], ...] = ()
    regularizers: tuple[Callable[..., tuple[jax.Array, Metrics]], ...] = ()
    value_loss: Callable[[jax.Array, Batch], tuple[jax.Array, Metrics]] | None = None
    value_aggregate: Aggregate = TOKEN_MEAN

    @property
    def components(self) -> tuple[Any, ...]:
        """All of them, in the order in which they act."""
        alone = (self.advantage, self.aggregate)
        critic = () if self.value_loss is None else (self.value_loss, self.value_aggregate)
        return (*self.filters, *self.shaping, *alone, *self.corrections, self.objective, *self.regularizers, *critic)

    @property
    def needs(self) -> frozenset[str]:
        """The optional fields of a batch that the run must make for it, such as `ref_logp`."""
        return frozenset(chain.from_iterable(getattr(component, "needs", ()) for component in self.components))

    @property
    def adaptive(self) -> dict[str, Any]:
        """The components whose coefficient a controller adapts, by the name of their class."""
        adaptive = [c for c in self.components if getattr(c, "controller", None) is not None]
        return {type(component).__name__: component for component in adaptive}

    def adapted(self, coefficients: Coefficients, metrics: Metrics, responses: int) -> dict[str, jax.Array]:
        """The coefficients after a step of that many responses with these metrics."""
        return {
            name: _next(coefficients[name], component, metrics, responses) for name, component in self.adaptive.items()
        }

    def check(self, setting: RunShape) -> None:
        """Raises ValueError naming a knob that has a value which there is not, or that cannot act in this setting."""
        check_fields(self)
        for component in self.components:
            if hasattr(component, "check"):
                component.check(setting)
        missing = sorted(self.needs - setting.made)
        if missing:
            needy = [type(c).__name__ for c in self.components if set(getattr(c, "needs", ())) & set(missing)]
            makers = " and ".join(dict.fromkeys(MAKERS[name] for name in missing if name in MAKERS))
            raise ValueError(
                f"{' and '.join(needy)} need batch.{' and batch.'.join(missing)}, which this run does not make: "
                f"set {makers or 'what makes it'}"
            )
        check_together(self)

    @property
    def reads_reward(self) -> bool:
        """Whether what responses earn has a part in what is learned."""
        losses = (*self.regularizers, *(() if self.value_loss is None else (self.value_loss,)))
        return getattr(self.objective, "reads_reward", True) or any(getattr(x, "reads_reward", False) for x in losses)


def with_coefficient(component: Any, coefficients: Coefficients | None) -> dict[str, jax.Array]:
    """The argument with which a component is called: its adapted coefficient, if it has one."""
    if getattr(component, "controller", None) is None or coefficients is None:
        return {}
    return {"coefficient": coefficients[type(component).__name__]}


def _next(coefficient: jax.Array, component: Any, metrics: Metrics, responses: int) -> jax.Array:
    """A component's next coefficient; where nothing was measured, as every token was dropped, it stays."""
    metric = metrics[getattr(component, "measured", component.controller.measures)]
    after = component.controller.update(coefficient, metric.result(), jnp.float32(responses))
    assert isinstance(metric, Mean)
    return jnp.where(metric.count > 0, after, coefficient)
