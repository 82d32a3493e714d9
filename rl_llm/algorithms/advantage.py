"""Advantages: from one reward per response to one number per token. Contract: `advantage(batch) -> f32[B, T]`."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rl_llm.algorithms.setting import Setting, refuse
from rl_llm.types import Batch

Level = Literal["none", "group", "batch"]


@dataclass(frozen=True)
class Normalize:
    """A = (r - mean) / (std + eps), mean and std each of the group (K responses), of the batch (N * K), or left out.

    group/group is GRPO (arXiv 2402.03300, eq. 3), group/none Dr. GRPO (2503.20783), group/batch Lite PPO (2508.08221,
    section 5), batch/batch eq. 6 there. The batch std is that of the raw rewards. `ddof` 1 is torch's default, 0
    NumPy's: 7 % apart at K = 8.
    """

    mean: Level = "group"
    std: Level = "group"
    ddof: Literal[0, 1] = 1
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.eps < float("inf"):
            raise ValueError(f"Normalize.eps must be greater than 0, not {self.eps}: equal rewards have a std of 0")
        if self.std == "none":
            refuse(self, ("ddof", "eps"), "without a std")

    def check(self, setting: Setting) -> None:
        """Raises ValueError where a level has a single reward to look at."""
        for name, level in (("mean", self.mean), ("std", self.std)):
            if level == "group" and setting.responses_per_prompt == 1:
                raise ValueError(
                    f"Normalize.{name}='group' with responses_per_prompt=1: a group of one has no spread, every "
                    "advantage would be 0; sample more responses per prompt, or use 'batch'"
                )
            if level == "batch" and setting.rows == 1:
                raise ValueError(f"Normalize.{name}='batch' with a batch of one response: every advantage would be 0")

    def __call__(self, batch: Batch) -> jax.Array:
        rewards = batch.reward.reshape(batch.prompts.lengths.shape[0], -1)
        advantage = rewards - self._mean(rewards)
        if self.std != "none":
            advantage = advantage / (self._std(rewards) + self.eps)
        return advantage.reshape(-1, 1) * batch.mask

    def _mean(self, rewards: jax.Array) -> jax.Array:
        if self.mean == "none":
            return jnp.zeros((1, 1))
        # Around the first reward: equal rewards then have exactly their mean, and an advantage of exactly 0. What
        # rounding would leave is divided by their std, also rounding, and would come out as noise of any size.
        first = rewards[:1, :1] if self.mean == "batch" else rewards[:, :1]
        return first + jnp.mean(rewards - first, axis=None if self.mean == "batch" else 1, keepdims=True)

    def _std(self, rewards: jax.Array) -> jax.Array:
        return jnp.std(rewards, axis=None if self.std == "batch" else 1, ddof=self.ddof, keepdims=True)
