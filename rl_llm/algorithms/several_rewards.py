"""Advantages of several rewards, batch.rewards f32[B, C]: see `advantage` for the contract."""

from dataclasses import dataclass, replace
from typing import Literal

import jax

from rl_llm.algorithms.advantage import Normalize, ResponseAdvantage
from rl_llm.algorithms.setting import Setting, require
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

    def check(self, setting: Setting) -> None:
        super().check(setting)
        if setting.components not in (0, len(self.weights)):
            raise ValueError(f"GDPO.weights={self.weights} for {setting.components} rewards: one weight for each")

    def of_responses(self, batch: Batch) -> jax.Array:
        rewards = require(batch, self, "rewards")
        in_group = Normalize(mean="group", std="group", ddof=self.ddof, eps=self.eps)
        total = sum(
            weight * in_group.of_responses(replace(batch, reward=rewards[:, c]))
            for c, weight in enumerate(self.weights)
        )
        return Normalize(mean="batch", std="batch", ddof=self.ddof, eps=self.eps).of_responses(
            replace(batch, reward=total)
        )
