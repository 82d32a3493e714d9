"""An algorithm is a value: how rewards become advantages, what is minimised, how much each token counts, what is
dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from rl_llm.algorithms.advantage import Normalize
from rl_llm.algorithms.aggregate import SequenceMean, TokenMean
from rl_llm.algorithms.objective import Clip, PolicyGradient
from rl_llm.algorithms.setting import Setting
from rl_llm.types import Batch


@dataclass(frozen=True)
class Algorithm:
    """A composition of components, each a frozen dataclass: it hashes by value, so jit traces it once.

    To add a trick write one class with the contract of its module and name it here in a recipe; nothing else changes.
    """

    advantage: Normalize
    objective: Clip | PolicyGradient
    aggregate: TokenMean | SequenceMean
    filters: tuple[Callable[[Batch], jax.Array], ...] = ()

    def check(self, setting: Setting) -> None:
        """Raises ValueError naming a knob that cannot act in this setting."""
        components: tuple[Any, ...] = (self.advantage, self.objective, self.aggregate, *self.filters)
        for component in components:
            if hasattr(component, "check"):
                component.check(setting)
