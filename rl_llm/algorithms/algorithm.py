"""An algorithm is a value: how rewards become advantages, what is minimised, how much each token counts, what is
dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import jax

from rl_llm.algorithms.filters import Filter
from rl_llm.algorithms.objective import Nothing
from rl_llm.algorithms.setting import Setting
from rl_llm.algorithms.whitening import Advantage
from rl_llm.types import Batch, Metrics

CARRIED = "moments"  # the one need that is not made for a batch but carried from step to step


@dataclass(frozen=True)
class Algorithm:
    """A composition of components, each a frozen dataclass: it hashes by value, so jit traces it once.

    filters -> shaping -> advantage -> aggregate -> corrections on the whole batch, once; objective + regularizers on
    parts of it, at every update. To add a trick write one class with the contract of its module and name it here in a
    recipe; nothing else changes.
    """

    advantage: Advantage
    objective: Callable[[jax.Array, Batch], tuple[jax.Array, Metrics]]
    aggregate: Callable[[jax.Array, Batch], jax.Array]
    filters: tuple[Filter, ...] = ()
    shaping: tuple[Callable[[Batch], Batch], ...] = ()
    corrections: tuple[Callable[[Batch], jax.Array], ...] = ()
    regularizers: tuple[Callable[[jax.Array, jax.Array, Batch], tuple[jax.Array, Metrics]], ...] = ()

    @property
    def components(self) -> tuple[Any, ...]:
        """All of them, in the order in which they act."""
        alone = (self.advantage, self.aggregate)
        return (*self.filters, *self.shaping, *alone, *self.corrections, self.objective, *self.regularizers)

    @property
    def needs(self) -> frozenset[str]:
        """The optional fields of a batch that the run must make for it, such as `ref_logp`."""
        return frozenset(chain.from_iterable(getattr(component, "needs", ()) for component in self.components))

    def check(self, setting: Setting) -> None:
        """Raises ValueError naming a knob that cannot act in this setting."""
        for component in self.components:
            if hasattr(component, "check"):
                component.check(setting)
            if getattr(component, "controller", None) is not None:
                raise ValueError(
                    f"{component} has a controller, and no run carries its coefficient from step to step yet"
                )
        missing = sorted(self.needs - setting.made)
        if missing:
            needy = [type(c).__name__ for c in self.components if set(getattr(c, "needs", ())) & set(missing)]
            raise ValueError(
                f"{' and '.join(needy)} need batch.{' and batch.'.join(missing)}, which this run does not make: "
                "ref_logp wants Experiment.reference, and no run trains a critic (value) yet"
            )
        self._check_shaping()
        self._check_objective()

    def _check_objective(self) -> None:
        exact = getattr(self.objective, "aggregates", None)
        if exact is not None and not isinstance(self.aggregate, exact):
            raise ValueError(
                f"{type(self.objective).__name__} with {type(self.aggregate).__name__}: what a response loses is "
                f"spread over its tokens, and only {' or '.join(kind.__name__ for kind in exact)} adds it up again"
            )
        if isinstance(self.objective, Nothing) and not self.regularizers:
            raise ValueError("Nothing without regularizers: there is no loss; name one, such as Distillation")

    def _check_shaping(self) -> None:
        for shape in self.shaping:
            reads = getattr(self.advantage, "reads_token_reward", False)
            if getattr(shape, "gives_token_reward", False) and not reads:
                raise ValueError(
                    f"{type(shape).__name__} rewards single tokens, and {type(self.advantage).__name__} sees what "
                    "whole responses earn: take RewardToGo or GAE, or level='response'"
                )
            if "rewards" in getattr(self.advantage, "needs", ()):
                raise ValueError(
                    f"{type(shape).__name__} shapes the total reward, and {type(self.advantage).__name__} reads its "
                    "components: make the fine a component of the reward instead"
                )
