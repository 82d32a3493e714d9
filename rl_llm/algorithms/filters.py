"""Filters: which rows an update sees. Contract: `filter(batch) -> bool[B]`. A dropped row's reward still counts in
the statistics.
"""

from dataclasses import dataclass

import jax

from rl_llm.types import Batch


@dataclass(frozen=True)
class RewardAtLeast:
    """Keep the responses whose reward reaches `threshold`: the acceptance of rejection sampling."""

    threshold: float = 1.0

    def __call__(self, batch: Batch) -> jax.Array:
        return batch.reward >= self.threshold
