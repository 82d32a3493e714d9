"""Losses of a critic, from values f32[B, T]: weighed by an aggregate and summed like a policy's loss."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

from rl_llm.algorithms.advantage import by_group
from rl_llm.algorithms.aggregate import SequenceSum
from rl_llm.algorithms.component import CriticLoss, Loss
from rl_llm.algorithms.preference import bradley_terry, check_groups, mean_over_pairs, over_tokens, preferred
from rl_llm.algorithms.returns import at_last_token
from rl_llm.algorithms.run_shape import RunShape, refuse_on_policy, require
from rl_llm.config.fields import PositiveFloat
from rl_llm.types import Batch, Metrics, masked_mean


@dataclass(frozen=True)
class ValueLoss(CriticLoss):
    """(V - R)^2 / 2, R the returns.

    With `clip`, the larger of it and that of V kept within +-clip of the value before the updates: no gain from moving
    further at once (PPO's code, Engstrom et al. 2020, arXiv 2005.12729).
    """

    clip: PositiveFloat | None = None

    needs = ("value", "returns")
    reads_reward = True
    learns_from_dropped = True  # responses that a filter keeps from the policy still show the value of a state

    def check(self, run: RunShape) -> None:
        """Raises ValueError for a clip with one update per rollout: no value has moved when it begins."""
        refuse_on_policy(self, ("clip",), run)

    def __call__(self, value: jax.Array, batch: Batch) -> Loss:
        returns = require(batch, self, "returns")
        chex.assert_rank(value, 2)
        chex.assert_equal_shape([value, returns, batch.weight])
        seen = (batch.weight > 0).astype(jnp.float32)
        error = jnp.square(value - returns)
        metrics: Metrics = {"critic/error": masked_mean(error, seen)}
        if self.clip is not None:
            before = require(batch, self, "value")
            near = jnp.square(before + jnp.clip(value - before, -self.clip, self.clip) - returns)
            held = (jnp.abs(value - before) > self.clip) & (near > error)
            metrics |= {"critic/clipped": masked_mean(held.astype(jnp.float32), seen)}
            error = jnp.maximum(error, near)
        return 0.5 * error, metrics


@dataclass(frozen=True)
class BradleyTerry(CriticLoss):
    """-log sigmoid(s_i - s_j), mean over the pairs of a group with r_i > r_j, then over groups.

    A reward model learns it from comparisons (InstructGPT, arXiv 2203.02155, eq. 1, also a mean over a group's pairs).
    The score s of a response is the value after its last token. As in `Pairwise`: rewards after shaping, no pairs with
    dropped responses, exact with `SequenceSum`.
    """

    aggregates = (SequenceSum,)
    reads_reward = True
    after_token = True  # a response is judged after its end

    def check(self, run: RunShape) -> None:
        """Raises ValueError for groups of one, which have no pairs."""
        check_groups(self, run)

    def __call__(self, value: jax.Array, batch: Batch) -> Loss:
        last = at_last_token(batch, jnp.ones(value.shape[0]))
        chex.assert_equal_shape([value, last])
        scores = by_group(batch, jnp.sum(value * last, axis=1))
        higher, lower = scores[:, :, None], scores[:, None, :]
        pairs = preferred(batch)
        metrics: Metrics = {"critic/accuracy": masked_mean((higher > lower).astype(jnp.float32), pairs)}
        return over_tokens(mean_over_pairs(bradley_terry(higher, lower), pairs), batch), metrics
