"""Coefficients that follow a measurement. Contract: `controller.update(coefficient, measured, responses) -> f32[]`
after every step, `measured` the step's metric that `measures` names.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class AdaptiveKL:
    """A coefficient that holds the KL near a target: beta' = beta (1 + clip(kl / target - 1, +-0.2) n / horizon), n the
    responses since the last update (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).
    """

    target: float = 0.1
    horizon: float = 10000.0

    measures: ClassVar[str] = "policy/kl"

    def __post_init__(self) -> None:
        if not (self.target > 0 and self.horizon > 0):
            raise ValueError(
                f"AdaptiveKL needs target > 0 and horizon > 0, not target={self.target}, horizon={self.horizon}"
            )

    def update(self, coefficient: jax.Array, measured: jax.Array, responses: jax.Array | int) -> jax.Array:
        """The next coefficient f32[], from the KL f32[] measured on that many responses."""
        error = jnp.clip(measured / self.target - 1.0, -0.2, 0.2)
        return coefficient * (1.0 + error * responses / self.horizon)


@dataclass(frozen=True)
class EntropyTarget:
    """A coefficient that holds the entropy at a target: c where the entropy is at most that, 0 above; and c is `step`
    more after a step below the target, `step` less after one above, within [0, highest] (Skywork-OR1, arXiv 2505.22312,
    eq. 3.2, where c begins with 0). The entropy is that of the step before. While c waits, -c is carried (`acting`).
    """

    target: float
    step: float = 0.005
    highest: float = 1.0

    measures: ClassVar[str] = "policy/entropy"

    def __post_init__(self) -> None:
        if not (self.target > 0 and self.step > 0 and self.highest >= self.step):
            raise ValueError(
                f"EntropyTarget needs target > 0 and 0 < step <= highest, not target={self.target}, step={self.step}, "
                f"highest={self.highest}"
            )

    def update(self, coefficient: jax.Array, measured: jax.Array, responses: jax.Array | int) -> jax.Array:
        """The next coefficient f32[], from the entropy f32[] measured, on however many responses."""
        below = jnp.sign(self.target - measured)
        size = jnp.clip(jnp.abs(coefficient) + self.step * below, 0.0, self.highest)
        return jnp.where(below < 0, -size, size)


def acting(coefficient: jax.Array | float) -> jax.Array:
    """What a carried coefficient f32[] weighs: nothing while it waits."""
    return jnp.maximum(coefficient, 0.0)
