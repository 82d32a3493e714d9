"""Advantages: from one reward per response to one number per token. Contract: `advantage(batch) -> f32[B, T]`.

Those here are the same at every token of a response; `returns` has those that differ from token to token, `whitening`
what can be put around any of them. `needs` names the optional fields of a batch that a component cannot do without.
Where a filter keeps a row's reward out of the statistics (`batch.counted`), no mean, spread or baseline sees it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rl_llm.algorithms.moments import Moments, deviations, mean, mixed, variance
from rl_llm.algorithms.run_shape import RunShape, refuse, require
from rl_llm.types import Batch

Level = Literal["none", "group", "batch", "running"]


class ResponseAdvantage(ABC):
    """An advantage that is the same at every token of a response: `of_responses(batch) -> f32[B]`."""

    reads_token_reward = False  # a reward given to single tokens is not seen (see `returns`)
    statistics: Any = frozenset({"group"})  # whose rewards are looked at beside the response's own

    @property
    def needs(self) -> tuple[str, ...]:
        """The optional fields of a batch that must be there."""
        return ()

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where a response has no others to be compared with."""
        if setting.responses_per_prompt == 1:
            raise ValueError(
                f"{type(self).__name__} compares the responses to one prompt and cannot act with "
                "responses_per_prompt=1; sample more responses per prompt, or use Normalize(mean='batch', std='batch')"
            )

    @abstractmethod
    def of_responses(self, batch: Batch) -> jax.Array:
        """The advantage f32[B] of each response."""

    def __call__(self, batch: Batch) -> jax.Array:
        return self.of_responses(batch)[:, None] * batch.mask


def by_group(batch: Batch, rows: jax.Array) -> jax.Array:
    """[B] -> [N, K]."""
    return rows.reshape(batch.prompts.lengths.shape[0], -1)


def rewards_and_counted(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The rewards f32[N, K], and 1 where a reward counts in the statistics f32[N, K]."""
    counted = jnp.ones_like(batch.reward) if batch.counted is None else batch.counted.astype(jnp.float32)
    return by_group(batch, batch.reward), by_group(batch, counted)


@dataclass(frozen=True)
class Normalize(ResponseAdvantage):
    """A = (r - mean) / (std + eps), mean and std each of the group (K responses), of the batch (N * K), of all rewards
    so far ("running", this batch included), or left out.

    group/group is GRPO (arXiv 2402.03300, eq. 3), group/none Dr. GRPO (2503.20783), group/batch Lite PPO (2508.08221,
    section 5), batch/batch eq. 6 there. The batch std is that of the raw rewards, or, `std_of` "centred", of the
    rewards minus their group's mean: without the differences between prompts, so up to half as large. `ddof` 1 is
    torch's default, 0 NumPy's: 7 % apart at K = 8.
    """

    mean: Level = "group"
    std: Level = "group"
    ddof: Literal[0, 1] = 1
    eps: float = 1e-6
    std_of: Literal["raw", "centred"] = "raw"

    def __post_init__(self) -> None:
        if not 0 < self.eps < float("inf"):
            raise ValueError(f"Normalize.eps must be greater than 0, not {self.eps}: equal rewards have a std of 0")
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

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where a level has a single reward to look at, and for `std_of` where there is one group."""
        if setting.prompts_per_step == 1:
            refuse(self, ("std_of",), "with prompts_per_step=1: the group's mean is that of the batch")
        for name, level in (("mean", self.mean), ("std", self.std)):
            if level == "group" and setting.responses_per_prompt == 1:
                raise ValueError(
                    f"Normalize.{name}='group' with responses_per_prompt=1: a group of one has no spread, every "
                    "advantage would be 0; sample more responses per prompt, or use 'batch'"
                )
            if level == "batch" and setting.rows == 1:
                raise ValueError(f"Normalize.{name}='batch' with a batch of one response: every advantage would be 0")

    def of_responses(self, batch: Batch) -> jax.Array:
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
    """A_i = r_i - mean of the other rewards of the group: leave one out (arXiv 2402.14740).

    It is K / (K - 1) times the distance to the group's mean, and unbiased: no reward is its own baseline.
    """

    def of_responses(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        n = jnp.sum(counted, axis=1, keepdims=True)
        scale = jnp.where(counted > 0, n / jnp.maximum(n - 1.0, 1.0), 1.0)  # a row that does not count is no part of n
        return (scale * deviations(rewards, counted, 1)).reshape(-1)


@dataclass(frozen=True)
class OPO(ResponseAdvantage):
    """A_i = r_i - sum_j l_j r_j / sum_j l_j over the group, l the length in tokens (arXiv 2505.23585): the
    baseline of least variance if a gradient's squared length grows like the response's.
    """

    def of_responses(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        lengths = by_group(batch, jnp.sum(batch.mask, axis=1))
        return deviations(rewards, lengths * counted, 1).reshape(-1)


@dataclass(frozen=True)
class ReMax(ResponseAdvantage):
    """A = r - r(greedy response to the same prompt) (arXiv 2310.10505). Needs batch.greedy_reward f32[B]."""

    statistics = frozenset()

    @property
    def needs(self) -> tuple[str, ...]:
        return ("greedy_reward",)

    def check(self, setting: RunShape) -> None:
        """Acts in every setting: the baseline is another response."""

    def of_responses(self, batch: Batch) -> jax.Array:
        return batch.reward - require(batch, self, "greedy_reward")


@dataclass(frozen=True)
class GPG(ResponseAdvantage):
    """A = alpha (r - group mean), alpha = rows / rows in groups whose rewards differ (arXiv 2504.02546):
    a batch with many groups that teach nothing takes as long a step as any.
    """

    statistics = frozenset({"batch"})

    def of_responses(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        teaching = jnp.sum(counted * mixed(rewards, counted))
        return (jnp.sum(counted) / jnp.maximum(teaching, 1.0) * deviations(rewards, counted, 1)).reshape(-1)


@dataclass(frozen=True)
class MaxRL(ResponseAdvantage):
    """A = (r - group mean) / group mean, 0 in a group whose mean is not above 0 (arXiv 2602.02710). For rewards >= 0,
    which is not checked: with negative ones a group may be left out that has something to compare, and where the mean
    is just above 0 the advantages have no bound.

    It follows the gradient of log P(right) to order K - 1 in P(wrong) (one order is what the group's mean costs); plain
    policy gradient, that of P(right), is order 1.
    """

    def of_responses(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        rate = mean(rewards, counted, 1)
        return jnp.where(rate > 0, deviations(rewards, counted, 1) / jnp.where(rate > 0, rate, 1.0), 0.0).reshape(-1)


@dataclass(frozen=True)
class BestOfGroup(ResponseAdvantage):
    """A_i = (max_j r_j - max_{j != i} r_j) / (std + eps): what a response adds to the best of its group (arXiv
    2503.19595). Only a sole best response has any, its lead over the second; without a std, unbiased for the maximum.
    """

    std: Literal["none", "group"] = "group"
    ddof: Literal[0, 1] = 1
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"BestOfGroup.eps must be greater than 0, not {self.eps}: equal rewards have a std of 0")
        if self.std == "none":
            refuse(self, ("ddof", "eps"), "without a std")

    def of_responses(self, batch: Batch) -> jax.Array:
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
    """The reward is pass@k: a set of k responses is right if one of them is (arXiv 2508.10751, the analytical form). A
    response is right if its reward is greater than 0; W of the group's K responses are wrong.

    R = 1 - C(W, k) / C(K, k) is the mean reward of all sets, std = sqrt(R (1 - R)). A right response gets
    (1 - R) / std, a wrong one (1 - R - C(W - 1, k - 1) / C(K - 1, k - 1)) / std: the mean reward of the sets that it is
    in, minus R. k = 1 is Normalize with ddof 0.
    """

    k: int = 4

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"PassAtK.k must be at least 1, not {self.k}")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where there is but one set of k responses."""
        super().check(setting)
        if self.k >= setting.responses_per_prompt:
            raise ValueError(
                f"PassAtK.k={self.k} with responses_per_prompt={setting.responses_per_prompt}: all sets of a group are "
                "the same, every advantage would be 0; sample more responses per prompt, or lower k"
            )

    def of_responses(self, batch: Batch) -> jax.Array:
        rewards, counted = rewards_and_counted(batch)
        right = rewards > 0
        n = jnp.sum(counted, axis=1, keepdims=True)
        wrong = jnp.sum(counted * ~right, axis=1, keepdims=True)
        fail = _chance(wrong, n, self.k)
        fail_with_me = jnp.where(right, 0.0, _chance(wrong - 1.0, n - 1.0, self.k - 1))
        std = jnp.sqrt(fail * (1.0 - fail))
        return jnp.where(std > 0, (fail - fail_with_me) / jnp.where(std > 0, std, 1.0), 0.0).reshape(-1)


def _chance(some: jax.Array, all_: jax.Array, k: int) -> jax.Array:
    """C(some, k) / C(all_, k): the chance that k drawn without replacement are all of `some`; 1 for k = 0."""
    chance = jnp.ones_like(some)
    for drawn in range(k):
        chance = chance * jnp.maximum(some - drawn, 0.0) / jnp.maximum(all_ - drawn, 1.0)
    return chance
