"""Normalization over the batch: whitening and a bound around any advantage, and GDPO for several rewards."""

from dataclasses import dataclass
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.advantage import GPG, Normalize, ResponseAdvantage, by_group, rewards_and_counted
from rl_llm.algorithms.component import Advantage
from rl_llm.algorithms.moments import deviations, variance
from rl_llm.algorithms.run_shape import RunShape, require
from rl_llm.config.fields import PositiveFloat, PositiveOrInfinite
from rl_llm.types import Batch


class Wrapper(Advantage):
    """A component around an advantage, with the traits of the inner one."""

    advantage: Advantage

    @property
    def needs(self) -> tuple[str, ...]:
        return self.advantage.needs

    @property
    def reads_token_reward(self) -> bool:
        return self.advantage.reads_token_reward

    @property
    def statistics(self) -> frozenset[str]:
        return self.advantage.statistics

    def check(self, run: RunShape) -> None:
        """Raises ValueError if the inner advantage does."""
        self.advantage.check(run)

    def returns(self, batch: Batch) -> jax.Array:
        """Targets of a critic f32[B, T], in units of the rewards: neither whitened nor clipped."""
        return self.advantage.returns(batch)


@dataclass(frozen=True)
class Whiten(Wrapper):
    """(A - mean) / (std + eps) over all tokens of the batch, or over its responses with equal weight at any length.

    Around Normalize(mean="group", std="none") it is REINFORCE++-baseline, around RewardToGo REINFORCE++ (arXiv
    2501.03262), around GAE the usual PPO. `eps_on` "variance" divides by sqrt(variance + eps).
    """

    advantage: Advantage
    over: Literal["tokens", "responses"] = "tokens"
    ddof: Literal[0, 1] = 1
    eps: PositiveFloat = 1e-8
    eps_on: Literal["std", "variance"] = "variance"

    statistics = frozenset({"batch"})

    def check(self, run: RunShape) -> None:
        """Raises ValueError for a single response, settings that whitening cancels, and whatever the inner one refuses.

        Whitening cancels one number for the whole batch: a mean or a std of all rewards, GPG's factor, other whitening.
        """
        super().check(run)
        if isinstance(self.advantage, Whiten | GPG):
            raise ValueError(
                f"Whiten around {self.advantage}: it subtracts or multiplies by one number for the whole batch, which "
                "cannot act, as whitening takes its own; leave one of them out"
            )
        for name in ("mean", "std") if isinstance(self.advantage, Normalize) else ():
            if getattr(self.advantage, name) in ("batch", "running"):
                raise ValueError(
                    f"Whiten around {self.advantage}: its {name} is one number for the whole batch and cannot act, as "
                    f"whitening takes its own; set {name}='none' or 'group', or leave Whiten out"
                )
        if self.over == "responses" and run.rows == 1:
            raise ValueError("Whiten.over='responses' with a batch of one response: every advantage would be 0")

    def __call__(self, batch: Batch) -> jax.Array:
        values = self.advantage(batch)
        chex.assert_equal_shape([values, batch.mask])
        weight = batch.mask if batch.counted is None else batch.mask * batch.counted[:, None]
        count = jnp.sum(weight)
        if self.over == "responses":
            lengths = jnp.sum(weight, axis=1, keepdims=True)
            weight = weight / jnp.maximum(lengths, 1.0)
            count = jnp.sum(lengths > 0)
        square = variance(values, weight, None, self.ddof, count)
        std = jnp.sqrt(square + self.eps) if self.eps_on == "variance" else jnp.sqrt(square) + self.eps
        return deviations(values, weight) / std * batch.mask


@dataclass(frozen=True)
class ClipAdvantage(Wrapper):
    """clip(A, -bound, bound): no token pulls harder, however rare its outcome."""

    advantage: Advantage
    bound: PositiveOrInfinite = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.advantage, ClipAdvantage):
            raise ValueError(f"ClipAdvantage around {self.advantage}: the wider of two bounds cannot act; keep one")

    def __call__(self, batch: Batch) -> jax.Array:
        values = self.advantage(batch)
        chex.assert_equal_shape([values, batch.mask])
        return jnp.clip(values, -self.bound, self.bound)


@dataclass(frozen=True)
class GDPO(ResponseAdvantage):
    """Normalize each reward in its group, then their weighted sum in the batch (arXiv 2601.05242).

    Rewards of different scales or frequencies then do not hide each other. Needs batch.rewards f32[B, C].
    """

    weights: tuple[float, ...]
    ddof: Literal[0, 1] = 1
    eps: PositiveFloat = 1e-4

    needs = ("rewards",)
    statistics = frozenset({"batch"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.weights) < 2:
            raise ValueError(f"GDPO.weights={self.weights}: a single reward needs no GDPO, use Normalize")
        if not any(self.weights):
            raise ValueError(f"GDPO.weights={self.weights}: every advantage would be 0")

    def check(self, run: RunShape) -> None:
        """Raises ValueError for groups of one, and unless there is one weight per reward."""
        super().check(run)
        if run.components not in (0, len(self.weights)):
            raise ValueError(f"GDPO.weights={self.weights} for {run.components} rewards: one weight for each")

    def per_response(self, batch: Batch) -> jax.Array:
        components = require(batch, self, "rewards")
        chex.assert_shape(components, (*batch.reward.shape, len(self.weights)))
        _, counted = rewards_and_counted(batch)
        normalized = [self._normalized(by_group(batch, component), counted, 1) for component in components.T]
        total = sum(map(jnp.multiply, self.weights, normalized), jnp.zeros_like(counted))
        return self._normalized(total, counted, None).reshape(-1)

    def _normalized(self, rewards: jax.Array, counted: jax.Array, axis: int | None) -> jax.Array:
        """As `Normalize`, over the group (axis 1) or the batch (None): f32[N, K] -> f32[N, K]."""
        std = jnp.sqrt(variance(rewards, counted, axis, self.ddof))
        return deviations(rewards, counted, axis) / (std + self.eps)
