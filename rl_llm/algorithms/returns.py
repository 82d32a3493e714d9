"""Advantages that differ from token to token: reward-to-go and GAE. Contract: `advantage(batch) -> f32[B, T]`, and
`returns(batch) -> f32[B, T]`, what a critic learns.

Positions that the mask leaves out (padding, tokens of a tool) are passed over: the next token of a response is its next
sampled one. `reads_token_reward` says that a reward given to single tokens is seen; the advantages that are the same at
every token see `batch.reward` only.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from rl_llm.algorithms.advantage import ResponseAdvantage
from rl_llm.algorithms.run_shape import RunShape, require
from rl_llm.types import Batch


def at_last_token(batch: Batch, rows: jax.Array) -> jax.Array:
    """f32[B] -> f32[B, T]: the number of each row at the last token of its response, 0 elsewhere."""
    tokens_to_come = jnp.cumsum(batch.mask[:, ::-1], axis=1)[:, ::-1]
    return rows[:, None] * batch.mask * (tokens_to_come == 1)


def token_rewards(batch: Batch) -> jax.Array:
    """f32[B, T]: `batch.token_reward`, or else `batch.reward` at the last token."""
    rewards = at_last_token(batch, batch.reward) if batch.token_reward is None else batch.token_reward
    return rewards * batch.mask


def advantage_estimates(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, lam: jax.Array
) -> jax.Array:
    """A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t, both 0 after the last token (arXiv
    1506.02438, eq. 16). rewards, values, mask f32[B, T], lam f32[B] -> f32[B, T].
    """

    def back(
        later: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        (next_advantage, next_value), (reward, value, seen) = later, now
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carried = (jnp.where(seen > 0, advantage, next_advantage), jnp.where(seen > 0, value, next_value))
        return carried, carried[0]

    end = jnp.zeros_like(lam)
    _, advantages = jax.lax.scan(back, (end, end), (rewards.T, values.T, mask.T), reverse=True)
    return advantages.T * mask


@dataclass(frozen=True)
class RewardToGo:
    """A_t = sum_{s >= t} gamma^(s - t) r_s (REINFORCE, Williams 1992).

    With an `outcome`, the response's reward is first replaced by that advantage; what else its tokens were rewarded or
    fined for, as the KL, stays as it is (so do REINFORCE++-baseline and RLOO with the KL in the reward).
    """

    gamma: float = 1.0
    outcome: ResponseAdvantage | None = None

    reads_token_reward = True

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"RewardToGo.gamma must lie in (0, 1], not {self.gamma}")

    @property
    def needs(self) -> tuple[str, ...]:
        """The optional fields of a batch that must be there."""
        return () if self.outcome is None else self.outcome.needs

    @property
    def statistics(self) -> frozenset[str]:
        """Whose rewards are looked at beside the response's own."""
        return frozenset() if self.outcome is None else frozenset(self.outcome.statistics)

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where the outcome's knobs cannot act."""
        if self.outcome is not None:
            self.outcome.check(setting)

    def __call__(self, batch: Batch) -> jax.Array:
        rewards = token_rewards(batch)
        if self.outcome is not None:
            rewards = rewards + at_last_token(batch, self.outcome.of_responses(batch) - batch.reward)
        return self._sum(rewards, batch)

    def returns(self, batch: Batch) -> jax.Array:
        """The reward-to-go itself."""
        return self._sum(token_rewards(batch), batch)

    def _sum(self, rewards: jax.Array, batch: Batch) -> jax.Array:
        ones = jnp.ones(rewards.shape[0])
        return advantage_estimates(rewards, jnp.zeros_like(rewards), batch.mask, self.gamma, ones)


@dataclass(frozen=True)
class LengthAdaptive:
    """lam = 1 - 1 / (alpha l) for a response of l tokens, at least 0 (VAPO, arXiv 2504.05118): the sum of GAE's
    weights grows with the response instead of ending 1 / (1 - lam) tokens after each. Biased even with the true value:
    lam depends on the final length, which a token does not know.
    """

    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"LengthAdaptive.alpha must be greater than 0, not {self.alpha}")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where even the longest response has lam = 0."""
        if 0 < setting.max_tokens * self.alpha <= 1:
            raise ValueError(
                f"LengthAdaptive.alpha={self.alpha} cannot act on responses of {setting.max_tokens} tokens: every lam "
                f"would be 0; set it above {1 / setting.max_tokens:.3g}"
            )

    def __call__(self, mask: jax.Array) -> jax.Array:
        return jnp.maximum(1.0 - 1.0 / (self.alpha * jnp.maximum(jnp.sum(mask, axis=1), 1.0)), 0.0)


@dataclass(frozen=True)
class GAE:
    """Generalised advantage estimation (arXiv 1506.02438) from a critic's values, batch.value f32[B, T].

    The critic learns A + V, with a `critic_lam` of its own if there is one: 1 makes it learn the return itself,
    whatever the policy uses (VC-PPO, arXiv 2503.01491). gamma = lam = 1: A = return - V.
    """

    gamma: float = 1.0
    lam: float | LengthAdaptive = 0.95
    critic_lam: float | None = None

    reads_token_reward = True
    needs = ("value",)
    statistics: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"GAE.gamma must lie in (0, 1], not {self.gamma}")
        for name, lam in (("lam", self.lam), ("critic_lam", self.critic_lam)):
            if isinstance(lam, float | int) and not 0 <= lam <= 1:
                raise ValueError(f"GAE.{name} must lie in [0, 1], not {lam}")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where a length-adaptive lambda could not act."""
        if isinstance(self.lam, LengthAdaptive):
            self.lam.check(setting)

    def __call__(self, batch: Batch) -> jax.Array:
        return self._estimate(batch, self.lam)

    def returns(self, batch: Batch) -> jax.Array:
        """What the critic learns: A + V with the critic's lambda, 0 at padding."""
        estimate = self._estimate(batch, self.lam if self.critic_lam is None else self.critic_lam)
        return estimate + batch.value * batch.mask

    def _estimate(self, batch: Batch, lam: float | LengthAdaptive) -> jax.Array:
        values = require(batch, self, "value")
        of_row = lam(batch.mask) if isinstance(lam, LengthAdaptive) else jnp.full(values.shape[0], lam, jnp.float32)
        return advantage_estimates(token_rewards(batch), values, batch.mask, self.gamma, of_row)
