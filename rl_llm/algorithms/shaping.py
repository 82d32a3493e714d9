"""Shaping: penalties and other changes of the reward before advantages are computed.

A penalty on a whole response changes `batch.reward`. A penalty on single tokens makes `batch.token_reward`, which only
the advantages of `returns` read (trait `gives_token_reward`).
"""

from dataclasses import dataclass, replace
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.component import Coefficient, Shaping
from rl_llm.algorithms.controller import AdaptiveKL
from rl_llm.algorithms.distillation import with_rest
from rl_llm.algorithms.divergence import Divergence, full_divergence
from rl_llm.algorithms.moments import deviations, mean, variance
from rl_llm.algorithms.returns import at_last_token, token_rewards
from rl_llm.algorithms.run_shape import RunShape, refuse, require
from rl_llm.config.fields import PositiveFloat, PositiveInt
from rl_llm.types import Batch


def add_to_reward(batch: Batch, extra: jax.Array) -> Batch:
    """Add `extra` f32[B] to each response's reward, at its last token where tokens have rewards."""
    chex.assert_equal_shape([extra, batch.reward])
    batch = replace(batch, reward=batch.reward + extra)
    if batch.token_reward is None:
        return batch
    return replace(batch, token_reward=batch.token_reward + at_last_token(batch, extra))


@dataclass(frozen=True)
class SoftOverlong(Shaping):
    """A penalty that grows over the last `buffer` tokens before `max_length` (DAPO, arXiv 2503.14476, eq. 13).

    factor * min(max_length - buffer - l, 0) / buffer for a response of l tokens; if `capped`, at most `factor`.
    """

    max_length: PositiveInt
    buffer: PositiveInt
    factor: PositiveFloat = 1.0
    capped: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer > self.max_length:
            raise ValueError(
                f"SoftOverlong needs buffer <= max_length, not buffer={self.buffer}, max_length={self.max_length}"
            )

    def check(self, run: RunShape) -> None:
        """Raises ValueError if no response is long enough for the penalty, or `capped` is set and none for the cap."""
        longest = run.max_tokens or self.max_length + 1
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
class RepetitionPenalty(Shaping):
    """-coefficient * share of repeated token n-grams, 1 - distinct / all (after arXiv 2502.03373); 0 below n tokens."""

    coefficient: PositiveFloat = 1.0
    n: PositiveInt = 4

    def check(self, run: RunShape) -> None:
        """Raises ValueError if no two n-grams fit into a response."""
        if 0 < run.max_tokens <= self.n:
            raise ValueError(
                f"RepetitionPenalty.n={self.n} cannot act on responses of at most {run.max_tokens} tokens: no two "
                "n-grams fit; lower n"
            )

    def __call__(self, batch: Batch) -> Batch:
        return add_to_reward(batch, -self.coefficient * self._share(batch))

    def _share(self, batch: Batch) -> jax.Array:
        """Share f32[B] of n-grams equal to an earlier one. Sorting makes equal ones neighbours: exact, T log T."""
        chex.assert_equal_shape([batch.tokens, batch.mask])
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
class KLInReward(Shaping):
    """-coefficient * an estimate of the KL divergence from the reference policy, batch.ref_logp f32[B, T].

    At each token (arXiv 1909.08593, eq. 2), or with `level` "response" summed over it (RLOO, 2402.14740), so that
    advantages of whole responses see it. In the reward k1, log pi_old - log pi_ref, is the unbiased estimate. With a
    controller the coefficient is its initial value.
    """

    coefficient: PositiveFloat = 0.05
    level: Literal["token", "response"] = "token"
    divergence: Divergence = K1
    controller: AdaptiveKL | None = None

    needs = ("ref_logp",)

    @property
    def gives_token_reward(self) -> bool:
        return self.level == "token"

    def __call__(self, batch: Batch, coefficient: Coefficient = None) -> Batch:
        scale = self.coefficient if coefficient is None else coefficient
        penalty = scale * self.divergence(batch.old_logp, require(batch, self, "ref_logp")) * batch.mask
        if self.level == "response":
            return add_to_reward(batch, -jnp.sum(penalty, axis=1))
        return replace(batch, token_reward=token_rewards(batch) - penalty)


@dataclass(frozen=True)
class FullKLInReward(Shaping):
    """-coefficient * KL(pi_old || pi_ref) at each token, which KLInReward estimates from the sampled token.

    The KL is over the reference's k likeliest tokens and one bucket with the rest (exact for k = V).
    Reference(top_tokens=k) makes the fields that it needs.
    """

    coefficient: PositiveFloat = 0.05

    needs = ("teacher_tokens", "teacher_logp", "old_top_logp")
    gives_token_reward = True

    def __call__(self, batch: Batch) -> Batch:
        policy, reference = with_rest((require(batch, self, "old_top_logp"), require(batch, self, "teacher_logp")))
        penalty = self.coefficient * full_divergence(policy, reference) * batch.mask
        return replace(batch, token_reward=token_rewards(batch) - penalty)


@dataclass(frozen=True)
class WhitenRewards(Shaping):
    """Token rewards minus their mean, divided by sqrt(variance + eps), both over all tokens of the batch."""

    keep_mean: bool = False  # True adds the mean again (the first PPO of language models, code of arXiv 1909.08593)
    ddof: Literal[0, 1] = 1
    eps: PositiveFloat = 1e-8

    gives_token_reward = True
    replaces_rewards = True

    def __call__(self, batch: Batch) -> Batch:
        rewards = token_rewards(batch)
        weight = batch.mask if batch.counted is None else batch.mask * batch.counted[:, None]
        white = deviations(rewards, weight) / jnp.sqrt(variance(rewards, weight, None, self.ddof) + self.eps)
        if self.keep_mean:
            white = white + mean(rewards, weight)
        return replace(batch, token_reward=white * batch.mask)
