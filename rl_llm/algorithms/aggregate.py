"""Aggregation: how much each token counts. Contract: `aggregate(mask, batch) -> weight f32[B, T]` of the whole batch.

mask f32[B, T] is 1 at the tokens that count (filters have had their say); `batch` has the groups (row b belongs to
prompt b // K) and the advantage. Weights are constants, and the loss is their weighted sum: normalised once on the
whole batch, never per micro-batch. Rows and groups without a token that counts have no weight.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rl_llm.algorithms.run_shape import RunShape, refuse
from rl_llm.types import Batch


@dataclass(frozen=True)
class TokenMean:
    """Every token counts the same within its scope, so long responses count more; scopes count the same. Sum: 1.

    scope "batch": the mean over all tokens (DAPO as run, arXiv 2503.14476). "group": the mean over the tokens of each
    prompt's responses, then over prompts (DAPO as printed, eq. 12; the prompt mean of ScaleRL, 2510.13786).
    "mini-batch": the mean over each of the `mini_batches` shares of the batch that an update sees, as in frameworks
    that normalise at the update.
    """

    scope: Literal["batch", "mini-batch", "group"] = "batch"
    mini_batches: int = 1

    def __post_init__(self) -> None:
        if self.scope != "mini-batch":
            refuse(self, ("mini_batches",), f"with scope={self.scope!r}")
        elif self.mini_batches < 2:
            raise ValueError(
                f"TokenMean.scope='mini-batch' needs mini_batches >= 2, not {self.mini_batches}: one is the batch"
            )

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for shares that are not those of the updates, and for a group that is the batch."""
        if self.scope == "group" and setting.prompts_per_step == 1:
            refuse(self, ("scope",), "with prompts_per_step=1: the group is the batch")
        if self.scope == "mini-batch" and self.mini_batches != setting.updates_per_rollout:
            raise ValueError(
                f"TokenMean.mini_batches={self.mini_batches} with updates_per_rollout={setting.updates_per_rollout}: "
                "the batch is cut into one share per update, set them to the same number"
            )

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        N = batch.prompts.lengths.shape[0]
        scopes = {"batch": 1, "mini-batch": self.mini_batches, "group": N}[self.scope]
        # Update u sees the prompts u, u + scopes, u + 2 scopes, ... (see `split` in the learner).
        tokens = jnp.sum(mask.reshape(N // scopes, scopes, -1), axis=(0, 2))
        share = 1.0 / (jnp.maximum(tokens, 1.0) * jnp.maximum(jnp.sum(tokens > 0), 1))
        return mask * jnp.repeat(jnp.tile(share, N // scopes), mask.shape[0] // N)[:, None]


@dataclass(frozen=True)
class SequenceMean:
    """Every response counts the same, its tokens share that: 1 / (rows |o|) (GRPO, arXiv 2402.03300, eq. 3).

    rows are those with a token that counts (sum: 1), or all rows of the batch if the `empty` ones, which a filter has
    dropped, are counted, as ROLL and TRL have it (sum: the share of rows that are not empty).
    """

    empty: Literal["ignored", "counted"] = "ignored"

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        return mask / jnp.maximum(_lengths(mask), 1.0) / _rows(mask, self.empty)


@dataclass(frozen=True)
class SequenceSum:
    """The mean over responses of the sum over their tokens: 1 / rows. Sum: the mean length. With GSPO it is LUSPO
    (arXiv 2602.05261), whose sequences weigh as much as they are long. `empty` as in SequenceMean.
    """

    empty: Literal["ignored", "counted"] = "ignored"

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        return mask / _rows(mask, self.empty)


@dataclass(frozen=True)
class FixedLength:
    """A constant in the place of every length: 1 / (B length) (Dr. GRPO, arXiv 2503.20783, section 3.2), or 1 / length
    with rows="sum", as verl's and ROLL's norm variant has it. Sum: mean length / length, or all tokens / length.
    """

    length: int
    rows: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        _at_least_one("FixedLength.length", self.length)

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        return mask / self.length / (mask.shape[0] if self.rows == "mean" else 1)


@dataclass(frozen=True)
class VLNorm:
    """VL Norm (arXiv 2509.07558): |o|^-alpha / sum_j |o_j|^-alpha / length.

    alpha = 0 is Dr. GRPO. Above it unbiased only if a response's expected gradient does not depend on its length, with
    the least variance at alpha = 1 if its variance does. Sum: the mean length under these shares, divided by `length`.
    """

    length: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _at_least_one("VLNorm.length", self.length)
        if not 0 <= self.alpha <= 1:
            raise ValueError(
                f"VLNorm.alpha must lie between 0 (no regard to length) and 1 (least variance), not {self.alpha}"
            )

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        lengths = _lengths(mask)
        shares = jnp.where(lengths > 0, jnp.maximum(lengths, 1.0) ** -self.alpha, 0.0)
        total = jnp.sum(shares)
        return mask * shares / jnp.where(total > 0, total, 1.0) / self.length


@dataclass(frozen=True)
class Balanced:
    """Balanced Aggregation (arXiv 2605.04077): in each group the token mean over the responses of either sign of the
    advantage, those by their number of responses, then the mean over groups. Sum: 1.

    A length gap between right and wrong responses then shifts no weight between them. Responses without advantage are
    a third class.
    """

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for groups of one, which have one sign: every response would count the same."""
        if setting.responses_per_prompt == 1:
            raise ValueError(
                "Balanced with responses_per_prompt=1: a group of one has no two signs to balance; use SequenceMean"
            )

    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array:
        lengths = _lengths(mask).reshape(batch.prompts.lengths.shape[0], -1)
        sign = jnp.sign(jnp.sum(batch.advantage * mask, axis=1)).reshape(lengths.shape)
        same = (sign[:, :, None] == sign[:, None, :]).astype(jnp.float32)  # [N, K, K]
        rows = jnp.einsum("nkj,nj->nk", same, (lengths > 0).astype(jnp.float32))
        tokens = jnp.einsum("nkj,nj->nk", same, lengths)
        of_group = jnp.maximum(jnp.sum(lengths > 0, axis=1, keepdims=True), 1)
        groups = jnp.maximum(jnp.sum(jnp.any(lengths > 0, axis=1)), 1)
        return mask * (rows / jnp.maximum(tokens, 1.0) / of_group / groups).reshape(-1, 1)


def _lengths(mask: jax.Array) -> jax.Array:
    """[B, 1]: the tokens of each row that count."""
    return jnp.sum(mask, axis=1, keepdims=True)


def _rows(mask: jax.Array, empty: str) -> jax.Array | int:
    """How many rows a mean over rows divides by."""
    return mask.shape[0] if empty == "counted" else jnp.maximum(jnp.sum(_lengths(mask) > 0), 1)


def _at_least_one(name: str, length: int) -> None:
    if length < 1:
        raise ValueError(f"{name} must be at least 1 token, not {length}: it is what losses are divided by")
