"""An algorithm as a value: filters, shaping, advantage, aggregate, corrections, objective, regularizers, critic."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import jax
import jax.numpy as jnp

from rl_llm.algorithms import component as roles
from rl_llm.algorithms.aggregate import TokenMean
from rl_llm.algorithms.compatibility import check_together
from rl_llm.algorithms.component import Component
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.config import check_fields
from rl_llm.types import Mean, Metrics

Coefficients = Mapping[str, jax.Array]

TOKEN_MEAN = TokenMean()

# Fields of an experiment that make an optional batch field.
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
    """A composition of components.

    filters -> shaping -> advantage -> aggregate -> corrections run once on the whole batch. objective + regularizers
    run on parts of it at every update, as does `value_loss`, weighed by `value_aggregate`, where a critic learns too.
    It hashes by value; compiled programs take its floats as arguments (`rl_llm.parallel.numbers`). To add a trick,
    write one class that inherits its role from `component` and name it in a recipe; nothing else changes.
    """

    advantage: roles.Advantage
    objective: roles.Objective
    aggregate: roles.Aggregate
    filters: tuple[roles.Filter, ...] = ()
    shaping: tuple[roles.Shaping, ...] = ()
    corrections: tuple[roles.Correction, ...] = ()
    regularizers: tuple[roles.Regularizer, ...] = ()
    value_loss: roles.CriticLoss | None = None
    value_aggregate: roles.Aggregate = TOKEN_MEAN

    def __post_init__(self) -> None:
        for component in self.components:
            if not isinstance(component, Component):
                raise ValueError(
                    f"{component!r} is not a component of an Algorithm; let its class inherit the class of its role "
                    "(rl_llm.algorithms.Advantage, Objective, Filter, ...)"
                )

    @property
    def losses(self) -> tuple[Component, ...]:
        """Components that are minimized."""
        return (self.objective, *self.regularizers, *(() if self.value_loss is None else (self.value_loss,)))

    @property
    def components(self) -> tuple[Component, ...]:
        """All components, in the order in which they act."""
        before = (*self.filters, *self.shaping, self.advantage, self.aggregate, *self.corrections)
        return (*before, *self.losses, *(() if self.value_loss is None else (self.value_aggregate,)))

    @property
    def needs(self) -> frozenset[str]:
        """Optional batch fields that the run must make, such as `ref_logp`."""
        return frozenset(chain.from_iterable(component.needs for component in self.components))

    @property
    def adaptive(self) -> dict[str, Component]:
        """Components with a controller, by class name."""
        return {type(c).__name__: c for c in self.components if c.controller is not None}

    @property
    def reads_reward(self) -> bool:
        """Whether any loss depends on rewards."""
        return self.objective.reads_advantage or any(loss.reads_reward for loss in self.losses)

    @property
    def after_token(self) -> bool:
        """Whether the critic's value at a token is read after that token."""
        return self.value_loss is not None and self.value_loss.after_token

    def adapted(self, coefficients: Coefficients, metrics: Metrics, responses: int) -> dict[str, jax.Array]:
        """Coefficients after a step of that number of responses, unchanged if every token was dropped."""
        after = {}
        for name, component in self.adaptive.items():
            metric, before = metrics[component.measured], coefficients[name]
            assert isinstance(metric, Mean)
            assert component.controller is not None
            now = component.controller.update(before, metric.result(), jnp.float32(responses))
            after[name] = jnp.where(metric.count > 0, now, before)
        return after

    def check(self, run: RunShape) -> None:
        """Raises ValueError naming a knob with an impossible value, or one that cannot act in this run."""
        check_fields(self)
        for component in self.components:
            component.check(run)
        missing = sorted(self.needs - run.extra_fields)
        if missing:
            needy = [type(c).__name__ for c in self.components if set(c.needs) & set(missing)]
            makers = " and ".join(dict.fromkeys(MAKERS[name] for name in missing if name in MAKERS))
            raise ValueError(
                f"{' and '.join(needy)} need batch.{' and batch.'.join(missing)}, which this run does not make: "
                f"set {makers or 'what makes it'}"
            )
        check_together(self)


def with_coefficient(component: Component, coefficients: Coefficients | None) -> dict[str, jax.Array]:
    """Keyword arguments for calling a component: its adapted coefficient, if it has one."""
    if component.controller is None or coefficients is None:
        return {}
    return {"coefficient": coefficients[type(component).__name__]}
