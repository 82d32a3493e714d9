"""Preferences as objectives: pairs or single responses of graded samples, or of a stored data set whose groups of two
have the rewards 1 and 0. The losses themselves are in `preference`.

What a response loses is spread evenly over its tokens, so that a sum over them is exact whatever the lengths: with
`SequenceSum` the total is the mean over the responses that count (those that no filter drops). A group is one loss,
which each of its responses carries: the total is the mean over groups, and where filters drop single responses a group
counts as often as it has responses left. Groups that have nothing to compare count with a loss of 0, unless
`ZeroVariance` drops them. Neither loss reads the advantage.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rl_llm.algorithms.advantage import by_group
from rl_llm.algorithms.aggregate import SequenceSum
from rl_llm.algorithms.preference import DPO, IPO, KTO, implicit_reward
from rl_llm.algorithms.run_shape import RunShape, require
from rl_llm.types import Batch, Metrics, masked_mean


def preferred(batch: Batch) -> jax.Array:
    """f32[N, K, K]: 1 where response i of a group earned more than response j, and no filter dropped either."""
    reward, kept = by_group(batch, batch.reward), by_group(batch, batch.kept)
    more = reward[:, :, None] > reward[:, None, :]
    return (more & kept[:, :, None] & kept[:, None, :]).astype(jnp.float32)


def mean_over_pairs(losses: jax.Array, pairs: jax.Array) -> jax.Array:
    """f32[N, K, K] of both -> f32[N * K]: the mean over the pairs of a row's group, 0 for a group without pairs."""
    means = jnp.sum(losses * pairs, axis=(1, 2)) / jnp.maximum(jnp.sum(pairs, axis=(1, 2)), 1.0)
    return jnp.repeat(means, pairs.shape[1])


def over_tokens(rows: jax.Array, batch: Batch) -> jax.Array:
    """f32[B] -> f32[B, T] whose sum over the tokens of a row is the row's value."""
    shares = batch.mask / jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1.0)
    return rows[:, None] * shares


def check_groups(component: object, setting: RunShape) -> None:
    """Raises ValueError for groups of one, which have no pairs."""
    if setting.responses_per_prompt == 1:
        raise ValueError(
            f"{type(component).__name__} with responses_per_prompt=1: a response alone in its group has none to be "
            "compared with; sample more responses per prompt"
        )


@dataclass(frozen=True)
class Pairwise:
    """The mean of a loss of preferences over the ordered pairs (i, j) of a group with r_i > r_j, then over groups:
    online DPO (arXiv 2402.04792) on all pairs of a rollout, or offline DPO (2305.18290, eq. 7) on stored pairs.

    It reads log pi and log ref of whole responses. Rewards are those after shaping; equal ones form no pair, nor do
    dropped responses. Exact with `SequenceSum`.
    """

    loss: DPO | IPO

    needs = ("ref_logp",)
    aggregates = (SequenceSum,)  # `Algorithm.check` refuses others
    reads_advantage = False

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for groups of one, which have no pairs."""
        check_groups(self, setting)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ref_logp = require(batch, self, "ref_logp")
        policy, ref = (by_group(batch, jnp.sum(x * batch.mask, axis=1)) for x in (logp, ref_logp))
        losses = self.loss(policy[:, :, None], policy[:, None, :], ref[:, :, None], ref[:, None, :])
        pairs = preferred(batch)
        reward = implicit_reward(self.loss.beta, policy, ref)
        margin = reward[:, :, None] - reward[:, None, :]
        metrics: Metrics = {
            "preference/accuracy": masked_mean((margin > 0).astype(jnp.float32), pairs),
            "preference/margin": masked_mean(margin, pairs),
        }
        return over_tokens(mean_over_pairs(losses, pairs), batch), metrics


@dataclass(frozen=True)
class Unpaired:
    """A loss of single responses, desirable where the reward, after shaping, reaches `threshold` (KTO, arXiv
    2402.01306): nothing is compared with anything, so a response per prompt is enough.

    The estimate of KL(pi || ref) that a gain counts from is batch.kl_baseline. Exact with `SequenceSum`.
    """

    loss: KTO
    threshold: float = 0.5

    needs = ("ref_logp", "kl_baseline")
    aggregates = (SequenceSum,)
    reads_advantage = False

    def check(self, setting: RunShape) -> None:
        """Raises ValueError for one prompt, to which there is no other to pair its responses with."""
        if setting.prompts_per_step == 1:
            raise ValueError("Unpaired with prompts_per_step=1: the KL is estimated on responses to other prompts")

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        ref_logp, baseline = (require(batch, self, name) for name in self.needs)
        policy, ref = (jnp.sum(x * batch.mask, axis=1) for x in (logp, ref_logp))
        desirable = batch.reward >= self.threshold
        reward = implicit_reward(self.loss.beta, policy, ref)
        metrics: Metrics = {
            "preference/desirable": masked_mean(reward, (desirable & batch.kept).astype(jnp.float32)),
            "preference/undesirable": masked_mean(reward, (~desirable & batch.kept).astype(jnp.float32)),
        }
        return over_tokens(self.loss(policy, ref, desirable, baseline), batch), metrics
