"""Filters: which rows an update sees, by rewards before any shaping.

`counts` decides whether the reward of a dropped row still counts in means, spreads and baselines (only its gradient is
lost) or not (as if it had never been sampled). No filter sees the rows that could not be graded.
"""

from dataclasses import dataclass, replace

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.advantage import rewards_and_counted
from rl_llm.algorithms.component import Filter
from rl_llm.algorithms.moments import mixed
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.types import Batch


def apply_filters(filters: tuple[Filter, ...], batch: Batch) -> Batch:
    """Set `kept` (all filters agree) and, for filters with counts=False, `counted`."""
    graded = batch.counted
    for keep in filters:
        rows = keep(replace(batch, counted=graded))  # filters judge all graded rewards, in any order of the filters
        chex.assert_equal_shape([rows, batch.kept])
        batch = replace(batch, kept=batch.kept & rows)
        if not keep.counts:
            batch = replace(batch, counted=rows if batch.counted is None else batch.counted & rows)
    return batch


@dataclass(frozen=True)
class RewardAtLeast(Filter):
    """Keep the responses with a reward of at least `threshold`: the acceptance of rejection sampling."""

    threshold: float = 1.0
    counts: bool = True

    def __call__(self, batch: Batch) -> jax.Array:
        chex.assert_rank(batch.reward, 1)
        return batch.reward >= self.threshold


@dataclass(frozen=True)
class Overlong(Filter):
    """Drop truncated responses of unknown reward (DAPO, arXiv 2503.14476, section 3.4; 2508.08221, section 4.4)."""

    counts: bool = True

    def __call__(self, batch: Batch) -> jax.Array:
        chex.assert_rank(batch.truncated, 1)
        return ~batch.truncated


@dataclass(frozen=True)
class ZeroVariance(Filter):
    """Drop groups of equal rewards, which have nothing to compare (DAPO, arXiv 2503.14476, section 3.2)."""

    counts: bool = True

    drops_groups = True

    def check(self, run: RunShape) -> None:
        """Raises ValueError for groups of one: every group would be dropped."""
        if run.responses_per_prompt == 1:
            raise ValueError(
                "ZeroVariance with responses_per_prompt=1 drops every group, as one reward has no variance; sample "
                "more responses per prompt, or leave the filter out"
            )

    def __call__(self, batch: Batch) -> jax.Array:
        return _repeat_for_rows(mixed(*rewards_and_counted(batch)), batch)


@dataclass(frozen=True)
class DifficultyWindow(Filter):
    """Keep groups with a mean reward in [low, high]: neither hopeless nor solved (arXiv 2504.03380)."""

    low: float
    high: float
    counts: bool = True

    drops_groups = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low <= self.high:
            raise ValueError(f"DifficultyWindow needs low <= high, not low={self.low}, high={self.high}")

    def __call__(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        graded = jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1.0)
        rates = jnp.sum(rewards * counted, axis=1, keepdims=True) / graded
        return _repeat_for_rows((self.low <= rates) & (rates <= self.high), batch)


def _repeat_for_rows(groups: jax.Array, batch: Batch) -> jax.Array:
    """[N, 1] -> [B]."""
    return jnp.repeat(groups[:, 0], batch.reward.shape[0] // groups.shape[0])
