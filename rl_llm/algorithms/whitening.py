"""What can be put around any advantage: whitening over the batch, and a bound."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rl_llm.algorithms.advantage import GPG, Normalize
from rl_llm.algorithms.moments import deviations, variance
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.types import Batch

Advantage = Callable[[Batch], jax.Array]


class Around:
    """A component around an advantage: what it does not change is the inner one's."""

    advantage: Any

    @property
    def needs(self) -> tuple[str, ...]:
        """The optional fields of a batch that must be there."""
        return self.advantage.needs

    @property
    def reads_token_reward(self) -> bool:
        """Whether a reward given to single tokens is seen."""
        return self.advantage.reads_token_reward

    @property
    def statistics(self) -> frozenset[str]:
        """Whose rewards are looked at beside the response's own."""
        return frozenset(self.advantage.statistics)

    def check(self, setting: RunShape) -> None:
        """Raises ValueError if the inner advantage does."""
        self.advantage.check(setting)

    def returns(self, batch: Batch) -> jax.Array:
        """What a critic learns f32[B, T]: in the units of the rewards, so neither whitened nor clipped."""
        return self.advantage.returns(batch)


@dataclass(frozen=True)
class Whiten(Around):
    """(A - mean) / (std + eps) over all tokens of the batch, or over its responses, each counting the same however
    long it is.

    Around Normalize(mean="group", std="none") it is REINFORCE++-baseline, around RewardToGo REINFORCE++ (arXiv
    2501.03262); around GAE it is what most PPO code does. `eps_on` "variance" divides by sqrt(variance + eps).
    """

    advantage: Advantage
    over: Literal["tokens", "responses"] = "tokens"
    ddof: Literal[0, 1] = 1
    eps: float = 1e-8
    eps_on: Literal["std", "variance"] = "variance"

    statistics = frozenset({"batch"})

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"Whiten.eps must be greater than 0, not {self.eps}: equal advantages have a std of 0")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError if the inner advantage does, where there is a single response to look at, and for what is
        the same number everywhere inside (a mean or a std of all rewards, GPG's factor, other whitening): it is taken
        off or divided out again.
        """
        super().check(setting)
        if isinstance(self.advantage, Whiten | GPG):
            raise ValueError(
                f"Whiten around {self.advantage}: what that takes off or multiplies by is the same in the whole batch "
                "and cannot act, as whitening takes its own; leave one of them out"
            )
        for name in ("mean", "std") if isinstance(self.advantage, Normalize) else ():
            if getattr(self.advantage, name) in ("batch", "running"):
                raise ValueError(
                    f"Whiten around {self.advantage}: its {name} is one number for the whole batch and cannot act, as "
                    f"whitening takes its own; set {name}='none' or 'group', or leave Whiten out"
                )
        if self.over == "responses" and setting.rows == 1:
            raise ValueError("Whiten.over='responses' with a batch of one response: every advantage would be 0")

    def __call__(self, batch: Batch) -> jax.Array:
        values = self.advantage(batch)
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
class ClipAdvantage(Around):
    """clip(A, -bound, bound): no token pulls harder than that, however rare what it did."""

    advantage: Advantage
    bound: float = 2.0

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"ClipAdvantage.bound must be greater than 0, not {self.bound}")
        if isinstance(self.advantage, ClipAdvantage):
            raise ValueError(f"ClipAdvantage around {self.advantage}: of two bounds the wider one cannot act, keep one")

    def __call__(self, batch: Batch) -> jax.Array:
        return jnp.clip(self.advantage(batch), -self.bound, self.bound)
