"""Shaping: changes to the reward before advantages are computed. Contract: `shape(batch) -> batch`.

A fine on a whole response changes `batch.reward`. A fine on single tokens makes `batch.token_reward`, which only the
advantages of `returns` read: `gives_token_reward` says so.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from rl_llm.algorithms.controller import AdaptiveKL
from rl_llm.algorithms.distillation import with_rest
from rl_llm.algorithms.divergence import Divergence, full_divergence
from rl_llm.algorithms.moments import deviations, mean, variance
from rl_llm.algorithms.returns import at_last_token, token_rewards
from rl_llm.algorithms.run_shape import RunShape, refuse, require
from rl_llm.types import Batch


def add_to_reward(batch: Batch, extra: jax.Array) -> Batch:
    """`extra` f32[B] more for each response, at its last token where tokens are rewarded singly."""
    batch = replace(batch, reward=batch.reward + extra)
    if batch.token_reward is None:
        return batch
    return replace(batch, token_reward=batch.token_reward + at_last_token(batch, extra))


@dataclass(frozen=True)
class SoftOverlong:
    """A fine that grows over the last `buffer` tokens before `max_length` (DAPO, arXiv 2503.14476, eq. 13):
    factor * min(max_length - buffer - l, 0) / buffer for a response of l tokens, and no more than `factor` beyond
    max_length if it is `capped`.
    """

    max_length: int
    buffer: int
    factor: float = 1.0
    capped: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_length:
            raise ValueError(
                f"SoftOverlong needs 0 < buffer <= max_length, not buffer={self.buffer}, max_length={self.max_length}"
            )
        if not self.factor > 0:
            raise ValueError(f"SoftOverlong.factor must be greater than 0, not {self.factor}: it is a fine")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where no response is long enough to be fined, or for more than `factor`."""
        longest = setting.max_tokens or self.max_length + 1
        if longest <= self.max_length - self.buffer:
            raise ValueError(
                f"SoftOverlong.max_length={self.max_length} with buffer={self.buffer} cannot act on responses of at "
                f"most {longest} tokens: set max_length to the longest response"
            )
        if longest <= self.max_length:
            refuse(self, ("capped",), f"on responses of at most {longest} tokens, none longer than max_length")

    def __call__(self, batch: Batch) -> Batch:
        over = jnp.maximum(jnp.sum(batch.mask, axis=1) - (self.max_length - self.buffer), 0.0) / self.buffer
        return add_to_reward(batch, -self.factor * (jnp.minimum(over, 1.0) if self.capped else over))


@dataclass(frozen=True)
class RepetitionPenalty:
    """A fine of `coefficient` times the share of a response's n-grams (of tokens) that it has said before: 1 - distinct
    / all (after arXiv 2502.03373). Responses shorter than n have none.
    """

    coefficient: float = 1.0
    n: int = 4

    def __post_init__(self) -> None:
        if not self.coefficient > 0 or self.n < 1:
            raise ValueError(
                f"RepetitionPenalty needs coefficient > 0 and n >= 1, not coefficient={self.coefficient}, n={self.n}"
            )

    def check(self, setting: RunShape) -> None:
        """Raises ValueError where no two n-grams fit into a response."""
        if 0 < setting.max_tokens <= self.n:
            raise ValueError(
                f"RepetitionPenalty.n={self.n} cannot act on responses of at most {setting.max_tokens} tokens: no two "
                "n-grams fit; lower n"
            )

    def __call__(self, batch: Batch) -> Batch:
        return add_to_reward(batch, -self.coefficient * self._share(batch))

    def _share(self, batch: Batch) -> jax.Array:
        """f32[B]: the share of n-grams equal to an earlier one. In order, equal ones are neighbours: exact, T log T."""
        windows = batch.mask.shape[1] - self.n + 1
        grams = [batch.tokens[:, i : i + windows] for i in range(self.n)]
        outside = sum(1 - batch.mask[:, i : i + windows] for i in range(self.n)) > 0
        outside, *grams = jax.lax.sort((outside, *grams), dimension=1, num_keys=self.n + 1)  # those outside go last
        same = ~outside[:, 1:]
        for gram in grams:
            same &= gram[:, 1:] == gram[:, :-1]
        return jnp.sum(same, axis=1) / jnp.maximum(jnp.sum(~outside, axis=1), 1)


K1 = Divergence("k1")


@dataclass(frozen=True)
class KLInReward:
    """A fine of `coefficient` * an estimate (k1: log pi_old - log pi_ref) of the KL divergence from the reference
    policy at each token (arXiv 1909.08593, eq. 2), or, `level` "response", summed over it (RLOO, 2402.14740) so
    that advantages of whole responses see it. In the reward k1 is the unbiased one. Needs batch.ref_logp f32[B, T].
    With a controller the coefficient is only what it begins with.
    """

    coefficient: float = 0.05
    level: Literal["token", "response"] = "token"
    divergence: Divergence = K1
    controller: AdaptiveKL | None = None

    needs = ("ref_logp",)

    def __post_init__(self) -> None:
        if not self.coefficient > 0:
            raise ValueError(f"KLInReward.coefficient must be greater than 0, not {self.coefficient}: leave it out")

    @property
    def gives_token_reward(self) -> bool:
        return self.level == "token"

    def __call__(self, batch: Batch, coefficient: jax.Array | float | None = None) -> Batch:
        scale = self.coefficient if coefficient is None else coefficient
        fine = scale * self.divergence(batch.old_logp, require(batch, self, "ref_logp")) * batch.mask
        if self.level == "response":
            return add_to_reward(batch, -jnp.sum(fine, axis=1))
        return replace(batch, token_reward=token_rewards(batch) - fine)


@dataclass(frozen=True)
class FullKLInReward:
    """A fine of `coefficient` * KL(pi_old || pi_ref) at each token, over the reference's k likeliest tokens and one
    bucket with the rest (exact for k = V): what KLInReward estimates from the sampled token. Reference(top_tokens=k)
    makes the fields it needs.
    """

    coefficient: float = 0.05

    needs = ("teacher_tokens", "teacher_logp", "old_top_logp")
    gives_token_reward = True

    def __post_init__(self) -> None:
        if not self.coefficient > 0:
            raise ValueError(f"FullKLInReward.coefficient must be greater than 0, not {self.coefficient}: leave it out")

    def __call__(self, batch: Batch) -> Batch:
        policy, reference = with_rest((require(batch, self, "old_top_logp"), require(batch, self, "teacher_logp")))
        fine = self.coefficient * full_divergence(policy, reference) * batch.mask
        return replace(batch, token_reward=token_rewards(batch) - fine)


@dataclass(frozen=True)
class WhitenRewards:
    """Token rewards divided by their std over all tokens of the batch, sqrt(variance + eps), after their mean was taken
    off, which is added again if `keep_mean` (as PPO of language models first did, arXiv 1909.08593's code).
    """

    keep_mean: bool = False
    ddof: Literal[0, 1] = 1
    eps: float = 1e-8

    gives_token_reward = True
    replaces_rewards = True  # what a response earned is no longer to be found at its last token

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"WhitenRewards.eps must be greater than 0, not {self.eps}: equal rewards have a std of 0")

    def __call__(self, batch: Batch) -> Batch:
        rewards = token_rewards(batch)
        weight = batch.mask if batch.counted is None else batch.mask * batch.counted[:, None]
        white = deviations(rewards, weight) / jnp.sqrt(variance(rewards, weight, None, self.ddof) + self.eps)
        if self.keep_mean:
            white = white + mean(rewards, weight)
        return replace(batch, token_reward=white * batch.mask)
