"""Objectives: what is minimised at each token. Contract: `objective(logp, batch) -> (loss f32[B, T], metrics)`.

`logp` f32[B, T] is the learner's, differentiable; everything in `batch` is a constant.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rl_llm.algorithms.setting import Setting, refuse
from rl_llm.types import Batch, Max, Metrics, masked_mean


@dataclass(frozen=True)
class PolicyGradient:
    """-A log pi (REINFORCE, Williams 1992). With advantage 1 on accepted responses it is maximum likelihood on them."""

    def check(self, setting: Setting) -> None:
        """Acts in every setting."""

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        return -batch.advantage * logp, {}


@dataclass(frozen=True)
class Clip:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) with rho = pi / pi_old (PPO, arXiv 1707.06347, eq. 7).

    high > low is DAPO's clip-higher (2503.14476, section 3.1). At the first update after a rollout rho is 1, so the
    bounds act from the second update on.
    """

    low: float = 0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.low <= 1 or self.high <= 0:
            raise ValueError(f"Clip needs 0 < low <= 1 and high > 0, not low={self.low}, high={self.high}")

    def check(self, setting: Setting) -> None:
        """Raises ValueError for bounds that were set where no ratio ever leaves 1."""
        if setting.updates_per_rollout == 1:
            refuse(
                self,
                ("low", "high"),
                "with one on-policy update per rollout (no ratio leaves 1): set updates_per_rollout",
            )

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ratio = jnp.exp(logp - batch.old_logp)
        free = ratio * batch.advantage
        clipped = jnp.clip(ratio, 1.0 - self.low, 1.0 + self.high) * batch.advantage
        seen = (batch.weight > 0).astype(jnp.float32)
        metrics: Metrics = {
            "policy/ratio": masked_mean(ratio, seen),
            "policy/ratio_max": Max(jnp.max(ratio * seen)),
            "policy/clip_high": masked_mean(
                ((ratio > 1.0 + self.high) & (batch.advantage > 0)).astype(jnp.float32), seen
            ),
            "policy/clip_low": masked_mean(
                ((ratio < 1.0 - self.low) & (batch.advantage < 0)).astype(jnp.float32), seen
            ),
        }
        return -jnp.minimum(free, clipped), metrics
