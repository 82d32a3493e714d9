"""Filters: which rows an update sees. Contract: `filter(batch) -> bool[B]`, on the rewards before any shaping.

Every filter has `counts`: whether the reward of a row that it drops still counts in means, spreads and baselines (as if
the row had only lost its gradient) or not (as if it had never been sampled).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from rl_llm.algorithms.advantage import by_group
from rl_llm.algorithms.moments import mixed
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.types import Batch

Filter = Callable[[Batch], jax.Array]


def apply_filters(filters: tuple[Any, ...], batch: Batch) -> Batch:
    """The batch with `kept` (all filters agree) and, where a filter says so, `counted`."""
    for keep in filters:
        rows = keep(batch)
        batch = replace(batch, kept=batch.kept & rows)
        if not keep.counts:
            batch = replace(batch, counted=rows if batch.counted is None else batch.counted & rows)
    return batch


@dataclass(frozen=True)
class RewardAtLeast:
    """Keep the responses whose reward reaches `threshold`: the acceptance of rejection sampling."""

    threshold: float = 1.0
    counts: bool = True

    def __call__(self, batch: Batch) -> jax.Array:
        return batch.reward >= self.threshold


@dataclass(frozen=True)
class Overlong:
    """Drop the responses that were cut off before their end: what they would have been worth is not known (DAPO, arXiv
    2503.14476, section 3.4; studied in 2508.08221, section 4.4).
    """

    counts: bool = True

    def __call__(self, batch: Batch) -> jax.Array:
        return ~batch.truncated


@dataclass(frozen=True)
class ZeroVariance:
    """Drop the groups of equal rewards, which have nothing to compare (DAPO, arXiv 2503.14476, section 3.2)."""

    counts: bool = True

    of_groups = True

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where every group would be dropped."""
        if setting.responses_per_prompt == 1:
            raise ValueError(
                "ZeroVariance with responses_per_prompt=1 drops every group, as one reward has no variance; sample "
                "more responses per prompt, or leave the filter out"
            )

    def __call__(self, batch: Batch) -> jax.Array:
        rewards = by_group(batch, batch.reward)
        return _of_rows(mixed(rewards, jnp.ones_like(rewards)), batch)


@dataclass(frozen=True)
class DifficultyWindow:
    """Keep the groups whose mean reward lies in [low, high]: neither hopeless nor solved (arXiv 2504.03380)."""

    low: float
    high: float
    counts: bool = True

    of_groups = True

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"DifficultyWindow needs low <= high, not low={self.low}, high={self.high}")

    def __call__(self, batch: Batch) -> jax.Array:
        rates = jnp.mean(by_group(batch, batch.reward), axis=1, keepdims=True)
        return _of_rows((self.low <= rates) & (rates <= self.high), batch)


def _of_rows(of_groups: jax.Array, batch: Batch) -> jax.Array:
    """[N, 1] -> [B]."""
    return jnp.repeat(of_groups[:, 0], batch.reward.shape[0] // of_groups.shape[0])
