"""Advantages that are the same at every token of a response.

`returns` has the advantages that differ from token to token; `whitening` has wrappers for any of them. If a filter
takes a row out of the statistics (`batch.counted`), no mean, spread or baseline sees its reward.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.component import Advantage
from rl_llm.algorithms.moments import Moments, deviations, mean, mixed, variance
from rl_llm.algorithms.run_shape import RunShape, refuse, require
from rl_llm.config.fields import PositiveFloat, PositiveInt
from rl_llm.types import Batch

Level = Literal["none", "group", "batch", "running"]


class ResponseAdvantage(Advantage):
    """An advantage per response, repeated at each of its tokens."""

    @property
    def statistics(self) -> frozenset[str]:
        return frozenset({"group"})

    def check(self, run: RunShape) -> None:
        """Raises ValueError for groups of one response, which has no others to be compared with."""
        if run.responses_per_prompt == 1:
            raise ValueError(
                f"{type(self).__name__} compares the responses to one prompt and cannot act with "
                "responses_per_prompt=1; sample more responses per prompt, or use Normalize(mean='batch', std='batch')"
            )

    @abstractmethod
    def per_response(self, batch: Batch) -> jax.Array:
        """Advantage f32[B] of each response."""

    def __call__(self, batch: Batch) -> jax.Array:
        advantage = self.per_response(batch)
        chex.assert_equal_shape([advantage, batch.reward])
        return advantage[:, None] * batch.mask


def by_group(batch: Batch, rows: jax.Array) -> jax.Array:
    """Reshape [B] -> [N, K]."""
    chex.assert_equal_shape([rows, batch.reward])
    return rows.reshape(batch.prompts.lengths.shape[0], -1)


def rewards_and_counted(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Rewards f32[N, K], and 1 at the rewards that count in statistics f32[N, K]."""
    chex.assert_rank(batch.reward, 1)
    counted = jnp.ones_like(batch.reward) if batch.counted is None else batch.counted.astype(jnp.float32)
    return by_group(batch, batch.reward), by_group(batch, counted)


@dataclass(frozen=True)
class Normalize(ResponseAdvantage):
    """A = (r - mean) / (std + eps).

    mean and std are each over the group (K responses), the batch (N * K), all rewards so far including this batch
    ("running"), or left out. group/group is GRPO (arXiv 2402.03300, eq. 3), group/none Dr. GRPO (2503.20783),
    group/batch Lite PPO (2508.08221, section 5), batch/batch eq. 6 there.

    The batch std is over raw rewards or, with `std_of` "centred", over rewards minus their group's mean. That leaves
    out differences between prompts and can halve it. `ddof` is 1 in torch and 0 in NumPy: 7 % apart at K = 8.
    """

    mean: Level = "group"
    std: Level = "group"
    ddof: Literal[0, 1] = 1
    eps: PositiveFloat = 1e-6
    std_of: Literal["raw", "centred"] = "raw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std == "none":
            refuse(self, ("ddof", "eps"), "without a std")
        if (self.mean, self.std) != ("group", "batch"):
            refuse(self, ("std_of",), "unless mean='group' and std='batch' (elsewhere centring changes no std)")

    @property
    def statistics(self) -> frozenset[str]:
        return frozenset({self.mean, self.std}) - {"none"}

    @property
    def needs(self) -> tuple[str, ...]:
        return ("moments",) if "running" in (self.mean, self.std) else ()

    def check(self, run: RunShape) -> None:
        """Raises ValueError for a mean or std over a single reward, and for `std_of` with a single group."""
        if run.prompts_per_step == 1:
            refuse(self, ("std_of",), "with prompts_per_step=1: the group's mean is that of the batch")
        for name, level in (("mean", self.mean), ("std", self.std)):
            if level == "group" and run.responses_per_prompt == 1:
                raise ValueError(
                    f"Normalize.{name}='group' with responses_per_prompt=1: a group of one has no spread, every "
                    "advantage would be 0; sample more responses per prompt, or use 'batch'"
                )
            if level == "batch" and run.rows == 1:
                raise ValueError(f"Normalize.{name}='batch' with a batch of one response: every advantage would be 0")

    def per_response(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        moments = require(batch, self, "moments") if self.needs else None
        advantage = self._centre(rewards, counted, moments)
        if self.std != "none":
            advantage = advantage / (self._std(rewards, counted, moments) + self.eps)
        return advantage.reshape(-1)

    def _centre(self, rewards: jax.Array, counted: jax.Array, moments: Moments | None) -> jax.Array:
        if moments is not None and self.mean == "running":
            return rewards - moments.mean
        if self.mean == "none":
            return rewards
        return deviations(rewards, counted, 1 if self.mean == "group" else None)

    def _std(self, rewards: jax.Array, counted: jax.Array, moments: Moments | None) -> jax.Array:
        if moments is not None and self.std == "running":
            return moments.std(self.ddof)
        values = deviations(rewards, counted, 1) if self.std_of == "centred" else rewards
        return jnp.sqrt(variance(values, counted, 1 if self.std == "group" else None, self.ddof))


@dataclass(frozen=True)
class RLOO(ResponseAdvantage):
    """Leave one out: A_i = r_i - mean of the other rewards of the group (arXiv 2402.14740).

    Unbiased, as no reward is in its own baseline. Equals K / (K - 1) times the distance to the group's mean.
    """

    def per_response(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        n = jnp.sum(counted, axis=1, keepdims=True)
        scale = jnp.where(counted > 0, n / jnp.maximum(n - 1.0, 1.0), 1.0)  # a row that does not count is not in n
        return (scale * deviations(rewards, counted, 1)).reshape(-1)


@dataclass(frozen=True)
class OPO(ResponseAdvantage):
    """Length-weighted baseline: A_i = r_i - sum_j l_j r_j / sum_j l_j over the group (arXiv 2505.23585).

    l is the length in tokens. The baseline has least variance if a gradient's squared norm grows like the length.
    """

    def per_response(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        lengths = by_group(batch, jnp.sum(batch.mask, axis=1))
        return deviations(rewards, lengths * counted, 1).reshape(-1)


@dataclass(frozen=True)
class ReMax(ResponseAdvantage):
    """A = r - r(greedy response to the same prompt), from batch.greedy_reward f32[B] (arXiv 2310.10505)."""

    needs = ("greedy_reward",)
    statistics = frozenset()

    def check(self, run: RunShape) -> None:
        """Acts in every run: the baseline is a response of its own."""

    def per_response(self, batch: Batch) -> jax.Array:
        return batch.reward - require(batch, self, "greedy_reward")


@dataclass(frozen=True)
class GPG(ResponseAdvantage):
    """A = alpha (r - group mean), alpha = rows / rows in groups with differing rewards (arXiv 2504.02546).

    Groups with equal rewards teach nothing; alpha keeps the step from shrinking with their number.
    """

    statistics = frozenset({"batch"})

    def per_response(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        teaching = jnp.sum(counted * mixed(rewards, counted))
        return (jnp.sum(counted) / jnp.maximum(teaching, 1.0) * deviations(rewards, counted, 1)).reshape(-1)


@dataclass(frozen=True)
class MaxRL(ResponseAdvantage):
    """A = (r - group mean) / group mean; 0 in a group with mean <= 0 (arXiv 2602.02710).

    For rewards >= 0, which is not checked: negative ones can drop a group that has differences, and advantages are
    unbounded if the mean is just above 0. It follows the gradient of log P(right) to order K - 1 in P(wrong); the
    group's mean costs one order. The policy gradient, which follows P(right), has order 1.
    """

    def per_response(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        rate = mean(rewards, counted, 1)
        return jnp.where(rate > 0, deviations(rewards, counted, 1) / jnp.where(rate > 0, rate, 1.0), 0.0).reshape(-1)


@dataclass(frozen=True)
class BestOfGroup(ResponseAdvantage):
    """A_i = (max_j r_j - max_{j != i} r_j) / (std + eps): a response's lead in its group (arXiv 2503.19595).

    It is 0 except for a sole best response. Without a std it is unbiased for the maximum.
    """

    std: Literal["none", "group"] = "group"
    ddof: Literal[0, 1] = 1
    eps: PositiveFloat = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std == "none":
            refuse(self, ("ddof", "eps"), "without a std")

    def per_response(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        highest = jnp.max(rewards, axis=1, keepdims=True)
        lowest = jnp.min(jnp.where(counted > 0, rewards, highest), axis=1, keepdims=True)
        rivals = jnp.where(counted > 0, rewards, lowest)  # a row that does not count beats nobody
        best, second = jnp.split(jax.lax.top_k(rivals, 2)[0], 2, axis=1)
        advantage = jnp.where(rivals == best, best - second, 0.0) * counted
        if self.std == "group":
            advantage = advantage / (jnp.sqrt(variance(rewards, counted, 1, self.ddof)) + self.eps)
        return advantage.reshape(-1)


@dataclass(frozen=True)
class PassAtK(ResponseAdvantage):
    """Advantage of pass@k: a set of k responses is right if any of them is (arXiv 2508.10751, analytical form).

    A response is right if its reward is above 0; W of the group's K are wrong. R = 1 - C(W, k) / C(K, k) is the mean
    reward of all sets, std = sqrt(R (1 - R)). The advantage is the mean reward of the sets with the response, minus R,
    over std: (1 - R) / std if it is right, (1 - R - C(W - 1, k - 1) / C(K - 1, k - 1)) / std if wrong. k = 1 is
    Normalize with ddof 0.
    """

    k: PositiveInt = 4

    def check(self, run: RunShape) -> None:
        """Raises ValueError for groups that hold only one set of k responses."""
        super().check(run)
        if self.k >= run.responses_per_prompt:
            raise ValueError(
                f"PassAtK.k={self.k} with responses_per_prompt={run.responses_per_prompt}: all sets of a group are "
                "the same, every advantage would be 0; sample more responses per prompt, or lower k"
            )

    def per_response(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        right = rewards > 0
        n = jnp.sum(counted, axis=1, keepdims=True)
        wrong = jnp.sum(counted * ~right, axis=1, keepdims=True)
        fail = _chance(wrong, n, self.k)
        fail_with_me = jnp.where(right, 0.0, _chance(wrong - 1.0, n - 1.0, self.k - 1))
        std = jnp.sqrt(fail * (1.0 - fail))
        return jnp.where(std > 0, (fail - fail_with_me) / jnp.where(std > 0, std, 1.0), 0.0).reshape(-1)


def _chance(some: jax.Array, all_: jax.Array, k: int) -> jax.Array:
    """C(some, k) / C(all_, k): chance that k draws without replacement all come from `some`; 1 for k = 0."""
    chance = jnp.ones_like(some)
    for drawn in range(k):
        chance = chance * jnp.maximum(some - drawn, 0.0) / jnp.maximum(all_ - drawn, 1.0)
    return chance
