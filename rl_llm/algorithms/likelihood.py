"""Maximum likelihood on the policy's own right answers, as a term of the loss: a regularizer, as in `divergence`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rl_llm.algorithms.run_shape import RunShape
from rl_llm.types import Batch, Metrics


@dataclass(frozen=True)
class PositiveLikelihood:
    """-coefficient * log pi at the tokens of the responses whose reward, after shaping, reaches `threshold`: the
    positive-example LM loss of VAPO (arXiv 2504.05118, section 4), or rejection sampling mixed into any objective.

    Weighed by batch.weight as everything is: a mean of the aggregate's kind over all responses, not over the right ones
    alone as in VAPO, so it grows with their share. A shaping that lowers rewards may put right answers below the
    threshold.
    """

    coefficient: float = 0.1
    threshold: float = 1.0

    reads_reward = True

    def __post_init__(self) -> None:
        if not self.coefficient > 0:
            raise ValueError(
                f"PositiveLikelihood.coefficient must be greater than 0, not {self.coefficient}: leave it out"
            )

    def check(self, setting: RunShape) -> None:
        """Acts in every setting."""

    def __call__(
        self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: jax.Array | float | None = None
    ) -> tuple[jax.Array, Metrics]:
        scale = self.coefficient if coefficient is None else coefficient
        positive = (batch.reward >= self.threshold)[:, None]
        return jnp.where(positive, -scale * logp, 0.0), {}
