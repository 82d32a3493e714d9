"""Controllers: coefficients that follow a measurement.

Contract: `controller.update(coefficient, measured, responses) -> f32[]` runs after every step; `measured` is the step's
metric with the name `measures`.
"""

from dataclasses import dataclass
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from rl_llm.config import Checked
from rl_llm.config.fields import PositiveFloat


@dataclass(frozen=True)
class AdaptiveKL(Checked):
    """Hold the KL near a target (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

    beta' = beta (1 + clip(kl / target - 1, +-0.2) n / horizon), with n responses since the last update.
    """

    target: PositiveFloat = 0.1
    horizon: PositiveFloat = 10000.0

    measures: ClassVar[str] = "policy/kl"

    def update(self, coefficient: jax.Array, measured: jax.Array, responses: jax.Array | int) -> jax.Array:
        """Next coefficient f32[], from the KL f32[] measured over that number of responses."""
        chex.assert_rank([coefficient, measured], 0)
        error = jnp.clip(measured / self.target - 1.0, -0.2, 0.2)
        return coefficient * (1.0 + error * responses / self.horizon)


@dataclass(frozen=True)
class EntropyTarget(Checked):
    """Hold the entropy at a target (Skywork-OR1, arXiv 2505.22312, eq. 3.2, where c starts at 0).

    The coefficient c grows by `step` after a step with entropy below the target and shrinks by `step` after one above,
    within [0, highest]. It applies if the entropy of the previous step was at most the target; otherwise it waits, and
    the state stores -c (see `acting`).
    """

    target: PositiveFloat
    step: PositiveFloat = 0.005
    highest: PositiveFloat = 1.0

    measures: ClassVar[str] = "policy/entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.highest < self.step:
            raise ValueError(f"EntropyTarget needs step <= highest, not step={self.step}, highest={self.highest}")

    def update(self, coefficient: jax.Array, measured: jax.Array, responses: jax.Array | int) -> jax.Array:
        """Next coefficient f32[], from the measured entropy f32[]; the number of responses does not matter."""
        chex.assert_rank([coefficient, measured], 0)
        below = jnp.sign(self.target - measured)
        size = jnp.clip(jnp.abs(coefficient) + self.step * below, 0.0, self.highest)
        return jnp.where(below < 0, -size, size)


def acting(coefficient: jax.Array | float) -> jax.Array:
    """Coefficient f32[] that applies now: 0 while it waits."""
    return jnp.maximum(coefficient, 0.0)
