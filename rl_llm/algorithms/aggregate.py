"""Aggregation: how much each token counts.

The mask is 1 at the tokens that filters keep; `batch` has the groups (row b belongs to prompt b // K) and the
advantage. The loss is the sum weighted by these constants, which are normalized once on the whole batch, never per
micro-batch. Rows and groups without a token that counts get no weight.
"""

from dataclasses import dataclass
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.component import Aggregate
from rl_llm.algorithms.run_shape import RunShape, refuse
from rl_llm.config.fields import PositiveInt, UnitFloat
from rl_llm.types import Batch


@dataclass(frozen=True)
class TokenMean(Aggregate):
    """Every token counts the same within its scope, and scopes count the same. Sum: 1.

    scope "batch": mean over all tokens (DAPO as run, arXiv 2503.14476). "group": mean over the tokens of each prompt's
    responses, then over prompts (DAPO as printed, eq. 12; the prompt mean of ScaleRL, 2510.13786). "mini-batch": mean
    over each of the `mini_batches` that the updates see, as in frameworks that normalize at the update.
    """

    scope: Literal["batch", "mini-batch", "group"] = "batch"
    mini_batches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope != "mini-batch":
            refuse(self, ("mini_batches",), f"with scope={self.scope!r}")
        elif self.mini_batches < 2:
            raise ValueError(
                f"TokenMean.scope='mini-batch' needs mini_batches >= 2, not {self.mini_batches}: one is the batch"
            )

    def check(self, run: RunShape) -> None:
        """Raises ValueError for mini-batches other than the updates', and for scope "group" with a single prompt."""
        if self.scope == "group" and run.prompts_per_step == 1:
            refuse(self, ("scope",), "with prompts_per_step=1: the group is the batch")
        if self.scope == "mini-batch" and self.mini_batches != run.updates_per_rollout:
            raise ValueError(
                f"TokenMean.mini_batches={self.mini_batches} with updates_per_rollout={run.updates_per_rollout}: "
                "each update has one mini-batch; set both to the same number"
            )

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        chex.assert_equal_shape([mask, batch.mask])
        N = batch.prompts.lengths.shape[0]
        scopes = {"batch": 1, "mini-batch": self.mini_batches, "group": N}[self.scope]
        # Update u sees the prompts u, u + scopes, u + 2 scopes, ... (see `split` in the learner).
        tokens = jnp.sum(mask.reshape(N // scopes, scopes, -1), axis=(0, 2))
        share = 1.0 / (jnp.maximum(tokens, 1.0) * jnp.maximum(jnp.sum(tokens > 0), 1))
        return mask * jnp.repeat(jnp.tile(share, N // scopes), mask.shape[0] // N)[:, None]


@dataclass(frozen=True)
class SequenceMean(Aggregate):
    """Every response counts the same, shared among its tokens: 1 / (rows |o|) (GRPO, arXiv 2402.03300, eq. 3).

    rows are those with a token that counts (sum: 1). With `empty` "counted" they include those emptied by a filter, as
    in ROLL and TRL (sum: the share of rows that are not empty), but not those that `batch.counted` leaves out: a
    response that could not be graded is as if it had not been sampled.
    """

    empty: Literal["ignored", "counted"] = "ignored"

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        return mask / jnp.maximum(_lengths(mask), 1.0) / _rows(mask, batch, self.empty)


@dataclass(frozen=True)
class SequenceSum(Aggregate):
    """Mean over responses of the sum over their tokens: 1 / rows, `empty` as in SequenceMean. Sum: the mean length.

    With GSPO it is LUSPO (arXiv 2602.05261), which weighs sequences by their length.
    """

    empty: Literal["ignored", "counted"] = "ignored"

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        return mask / _rows(mask, batch, self.empty)


@dataclass(frozen=True)
class FixedLength(Aggregate):
    """A constant instead of every length: 1 / (B length) (Dr. GRPO, arXiv 2503.20783, section 3.2).

    B are the rows that `batch.counted` does not leave out. With rows="sum" 1 / length, the norm variant of verl and
    ROLL. Sum: mean length / length, or all tokens / length.
    """

    length: PositiveInt
    rows: Literal["mean", "sum"] = "mean"

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        chex.assert_equal_shape([mask, batch.mask])
        return mask / self.length / (_rows(mask, batch, "counted") if self.rows == "mean" else 1)


@dataclass(frozen=True)
class VLNorm(Aggregate):
    """VL Norm, |o|^-alpha / sum_j |o_j|^-alpha / length (arXiv 2509.07558).

    alpha = 0 is Dr. GRPO. alpha > 0 is unbiased only if a response's expected gradient does not depend on its length;
    alpha = 1 has the least variance if the variance grows with the length. Sum: the mean length under these shares,
    divided by `length`.
    """

    length: PositiveInt
    alpha: UnitFloat = 1.0

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        lengths = _lengths(mask)
        shares = jnp.where(lengths > 0, jnp.maximum(lengths, 1.0) ** -self.alpha, 0.0)
        total = jnp.sum(shares)
        return mask * shares / jnp.where(total > 0, total, 1.0) / self.length


@dataclass(frozen=True)
class Balanced(Aggregate):
    """Balanced Aggregation (arXiv 2605.04077). Sum: 1.

    In each group: token mean over the responses of one sign of the advantage, weighed by their number of responses.
    Then mean over groups. A length gap between right and wrong responses then shifts no weight between them. Responses
    without advantage are a third class.
    """

    def check(self, run: RunShape) -> None:
        """Raises ValueError for groups of one, which have one sign: every response would count the same."""
        if run.responses_per_prompt == 1:
            raise ValueError(
                "Balanced with responses_per_prompt=1: a group of one has no two signs to balance; use SequenceMean"
            )

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        chex.assert_equal_shape([mask, batch.advantage])
        lengths = _lengths(mask).reshape(batch.prompts.lengths.shape[0], -1)
        sign = jnp.sign(jnp.sum(batch.advantage * mask, axis=1)).reshape(lengths.shape)
        same = (sign[:, :, None] == sign[:, None, :]).astype(jnp.float32)  # [N, K, K]
        rows = jnp.einsum("nkj,nj->nk", same, (lengths > 0).astype(jnp.float32))
        tokens = jnp.einsum("nkj,nj->nk", same, lengths)
        group_rows = jnp.maximum(jnp.sum(lengths > 0, axis=1, keepdims=True), 1)
        groups = jnp.maximum(jnp.sum(jnp.any(lengths > 0, axis=1)), 1)
        return mask * (rows / jnp.maximum(tokens, 1.0) / group_rows / groups).reshape(-1, 1)


def _lengths(mask: jax.Array) -> jax.Array:
    """Number of tokens of each row that count, [B, 1]."""
    chex.assert_rank(mask, 2)
    return jnp.sum(mask, axis=1, keepdims=True)


def _rows(mask: jax.Array, batch: Batch, empty: str) -> jax.Array | int:
    """Number of rows that a mean over rows divides by."""
    if empty == "ignored":
        return jnp.maximum(jnp.sum(_lengths(mask) > 0), 1)
    return mask.shape[0] if batch.counted is None else jnp.maximum(jnp.sum(batch.counted), 1)
