"""Aggregation: how much each token counts. Contract: `aggregate(mask f32[B, T]) -> weight f32[B, T]` of the whole
batch.

Weights sum to 1 (unless the mask is empty), and the loss is their weighted sum: normalised once, never per micro-batch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class TokenMean:
    """Every token of the batch counts the same, so long responses count more (DAPO, arXiv 2503.14476, eq. 12)."""

    def __call__(self, mask: jax.Array) -> jax.Array:
        return mask / jnp.maximum(jnp.sum(mask), 1.0)


@dataclass(frozen=True)
class SequenceMean:
    """Every response counts the same, its tokens share that (GRPO, arXiv 2402.03300, eq. 3: 1/G sum 1/|o|)."""

    def __call__(self, mask: jax.Array) -> jax.Array:
        lengths = jnp.sum(mask, axis=1, keepdims=True)
        rows = jnp.sum(lengths > 0)
        return mask / jnp.maximum(lengths, 1.0) / jnp.maximum(rows, 1)
