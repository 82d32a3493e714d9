"""What a critic minimises. Contract: `value_loss(value, batch) -> (loss f32[B, T], metrics)`, value f32[B, T]
differentiable; weighed by an aggregate and summed like a policy's loss.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rl_llm.algorithms.advantage import by_group
from rl_llm.algorithms.aggregate import SequenceSum
from rl_llm.algorithms.preference import bradley_terry
from rl_llm.algorithms.preference_objective import check_groups, mean_over_pairs, over_tokens, preferred
from rl_llm.algorithms.returns import at_last_token
from rl_llm.algorithms.run_shape import RunShape, refuse_on_policy, require
from rl_llm.types import Batch, Metrics, masked_mean


@dataclass(frozen=True)
class ValueLoss:
    """(V - R)^2 / 2, R the returns. With `clip` the larger of it and that of V kept within +-clip of the value before
    the updates: no gain from moving further at once (PPO's code, Engstrom et al. 2020, arXiv 2005.12729).
    """

    clip: float | None = None

    needs = ("value", "returns")
    reads_reward = True
    learns_from_dropped = True  # what a filter keeps from the policy still says what a state is worth

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"ValueLoss.clip must be greater than 0, not {self.clip}: set None for no clip")

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for a clip where no value has moved when the only update begins."""
        refuse_on_policy(self, ("clip",), setting)

    def __call__(self, value: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        seen = (batch.weight > 0).astype(jnp.float32)
        returns = require(batch, self, "returns")
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
class BradleyTerry:
    """-log sigmoid(s_i - s_j), the mean over the pairs of a group with r_i > r_j, then over groups: what a reward model
    learns from comparisons (InstructGPT, arXiv 2203.02155, eq. 1, whose mean over a group's pairs it is as well).

    The score s of a response is the value after its last token. As `Pairwise`: rewards after shaping, no pairs with
    dropped responses, exact with `SequenceSum`.
    """

    needs = ()
    aggregates = (SequenceSum,)
    reads_reward = True
    after_token = True  # a response is judged when it has been read to its end

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for groups of one, which have no pairs."""
        check_groups(self, setting)

    def __call__(self, value: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        last = at_last_token(batch, jnp.ones(value.shape[0]))
        scores = by_group(batch, jnp.sum(value * last, axis=1))
        higher, lower = scores[:, :, None], scores[:, None, :]
        pairs = preferred(batch)
        metrics: Metrics = {"critic/accuracy": masked_mean((higher > lower).astype(jnp.float32), pairs)}
        return over_tokens(mean_over_pairs(bradley_terry(higher, lower), pairs), batch), metrics
