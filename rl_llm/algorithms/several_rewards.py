"""Advantages of several rewards, batch.rewards f32[B, C]: see `advantage` for the contract."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rl_llm.algorithms.advantage import ResponseAdvantage, by_group, rewards_and_counted
from rl_llm.algorithms.moments import deviations, variance
from rl_llm.algorithms.run_shape import RunShape, require
from rl_llm.types import Batch


@dataclass(frozen=True)
class GDPO(ResponseAdvantage):
    """Several rewards: each is normalised in its group, their weighted sum in the batch (arXiv 2601.05242), so
    that rewards of different scales or frequencies do not hide each other. Needs batch.rewards f32[B, C].
    """

    weights: tuple[float, ...]
    ddof: Literal[0, 1] = 1
    eps: float = 1e-4

    statistics = frozenset({"batch"})

    def __post_init__(self) -> None:
        if len(self.weights) < 2:
            raise ValueError(f"GDPO.weights={self.weights}: a single reward needs no GDPO, use Normalize")
        if not any(self.weights):
            raise ValueError(f"GDPO.weights={self.weights}: every advantage would be 0")
        if not self.eps > 0:
            raise ValueError(f"GDPO.eps must be greater than 0, not {self.eps}: equal rewards have a std of 0")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("rewards",)

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for groups of one, and for weights that are not as many as the rewards."""
        super().check(setting)
        if setting.components not in (0, len(self.weights)):
            raise ValueError(f"GDPO.weights={self.weights} for {setting.components} rewards: one weight for each")

    def of_responses(self, batch: Batch) -> jax.Array:
        components = require(batch, self, "rewards")
        _, counted = rewards_and_counted(batch)
        of_components = [self._normalized(by_group(batch, component), counted, 1) for component in components.T]
        total = sum(map(jnp.multiply, self.weights, of_components), jnp.zeros_like(counted))
        return self._normalized(total, counted, None).reshape(-1)

    def _normalized(self, rewards: jax.Array, counted: jax.Array, axis: int | None) -> jax.Array:
        """Over the group (1) or the batch (None), as `Normalize` does it: f32[N, K] -> f32[N, K]."""
        std = jnp.sqrt(variance(rewards, counted, axis, self.ddof))
        return deviations(rewards, counted, axis) / (std + self.eps)
