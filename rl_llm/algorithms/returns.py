"""Advantages that differ from token to token: reward-to-go and GAE, with `returns` for a critic.

Positions that the mask leaves out (padding, tokens of a tool) are skipped: the next token of a response is its next
sampled one.
"""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.advantage import ResponseAdvantage
from rl_llm.algorithms.component import Advantage
from rl_llm.algorithms.run_shape import RunShape, require
from rl_llm.config import Checked
from rl_llm.config.fields import PositiveFloat, PositiveShare, UnitFloat
from rl_llm.types import Batch


def at_last_token(batch: Batch, rows: jax.Array) -> jax.Array:
    """Number of each row at the last token of its response, 0 elsewhere: f32[B] -> f32[B, T]."""
    chex.assert_rank([rows, batch.mask], [1, 2])
    tokens_to_come = jnp.cumsum(batch.mask[:, ::-1], axis=1)[:, ::-1]
    return rows[:, None] * batch.mask * (tokens_to_come == 1)


def token_rewards(batch: Batch) -> jax.Array:
    """`batch.token_reward`, or else `batch.reward` at the last token, f32[B, T]."""
    rewards = at_last_token(batch, batch.reward) if batch.token_reward is None else batch.token_reward
    chex.assert_equal_shape([rewards, batch.mask])
    return rewards * batch.mask


def advantage_estimates(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, lam: jax.Array
) -> jax.Array:
    """A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t (arXiv 1506.02438, eq. 16).

    A and V are 0 after the last token. rewards, values, mask f32[B, T], lam f32[B] -> f32[B, T].
    """
    chex.assert_rank([rewards, lam], [2, 1])
    chex.assert_equal_shape([rewards, values, mask])

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
class RewardToGo(Advantage):
    """A_t = sum_{s >= t} gamma^(s - t) r_s (REINFORCE, Williams 1992).

    An `outcome` first replaces the response's reward by that advantage. Other rewards and penalties of its tokens, such
    as the KL, stay (as in REINFORCE++-baseline and RLOO with the KL in the reward).
    """

    gamma: PositiveShare = 1.0
    outcome: ResponseAdvantage | None = None

    reads_token_reward = True

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields that the outcome reads."""
        return () if self.outcome is None else self.outcome.needs

    @property
    def statistics(self) -> frozenset[str]:
        """Rewards that the outcome compares with."""
        return frozenset() if self.outcome is None else self.outcome.statistics

    def check(self, run: RunShape) -> None:
        """Raises ValueError if the outcome does."""
        if self.outcome is not None:
            self.outcome.check(run)

    def __call__(self, batch: Batch) -> jax.Array:
        rewards = token_rewards(batch)
        if self.outcome is not None:
            rewards = rewards + at_last_token(batch, self.outcome.per_response(batch) - batch.reward)
        return self._sum(rewards, batch)

    def returns(self, batch: Batch) -> jax.Array:
        """The reward-to-go itself."""
        return self._sum(token_rewards(batch), batch)

    def _sum(self, rewards: jax.Array, batch: Batch) -> jax.Array:
        ones = jnp.ones(rewards.shape[0])
        return advantage_estimates(rewards, jnp.zeros_like(rewards), batch.mask, self.gamma, ones)


@dataclass(frozen=True)
class LengthAdaptive(Checked):
    """lam = 1 - 1 / (alpha l) for a response of l tokens, at least 0 (VAPO, arXiv 2504.05118).

    The sum of GAE's weights grows with the response instead of ending 1 / (1 - lam) tokens after each. Biased even with
    the true value: lam depends on the final length, which is unknown at a token.
    """

    alpha: PositiveFloat = 0.05

    def check(self, run: RunShape) -> None:
        """Raises ValueError if even the longest response has lam = 0."""
        if 0 < run.max_tokens * self.alpha <= 1:
            raise ValueError(
                f"LengthAdaptive.alpha={self.alpha} cannot act on responses of {run.max_tokens} tokens: every lam "
                f"would be 0; set it above {1 / run.max_tokens:.3g}"
            )

    def __call__(self, mask: jax.Array) -> jax.Array:
        """lam f32[B], from mask f32[B, T]."""
        chex.assert_rank(mask, 2)
        return jnp.maximum(1.0 - 1.0 / (self.alpha * jnp.maximum(jnp.sum(mask, axis=1), 1.0)), 0.0)


@dataclass(frozen=True)
class GAE(Advantage):
    """Generalised advantage estimation from a critic's values, batch.value f32[B, T] (arXiv 1506.02438).

    The critic learns A + V, with its own `critic_lam` if set: 1 makes it learn the return itself, whatever the policy
    uses (VC-PPO, arXiv 2503.01491). gamma = lam = 1: A = return - V.
    """

    gamma: PositiveShare = 1.0
    lam: UnitFloat | LengthAdaptive = 0.95
    critic_lam: UnitFloat | None = None

    reads_token_reward = True
    needs = ("value",)

    def check(self, run: RunShape) -> None:
        """Raises ValueError if a length-adaptive lambda cannot act."""
        if isinstance(self.lam, LengthAdaptive):
            self.lam.check(run)

    def __call__(self, batch: Batch) -> jax.Array:
        return self._estimate(batch, self.lam)

    def returns(self, batch: Batch) -> jax.Array:
        """Targets of the critic: A + V with the critic's lambda, 0 at padding."""
        estimate = self._estimate(batch, self.lam if self.critic_lam is None else self.critic_lam)
        return estimate + batch.value * batch.mask

    def _estimate(self, batch: Batch, lam: float | LengthAdaptive) -> jax.Array:
        values = require(batch, self, "value")
        row_lam = lam(batch.mask) if isinstance(lam, LengthAdaptive) else jnp.full(values.shape[0], lam, jnp.float32)
        return advantage_estimates(token_rewards(batch), values, batch.mask, self.gamma, row_lam)
