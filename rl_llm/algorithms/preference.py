"""Preferences between whole responses: losses of pairs and of single responses, and the objectives made of them.

The responses are graded samples, or a stored data set with groups of two and rewards 1 and 0. An objective spreads the
loss of a response evenly over its tokens. With `SequenceSum` the total is then exact at any length: the mean over the
responses that no filter drops. A group has one loss, which each of its responses carries, so the total is the mean over
groups; where filters drop single responses, a group counts once per response left. Groups with nothing to compare count
with a loss of 0, unless `ZeroVariance` drops them. No objective here reads the advantage.
"""

from dataclasses import dataclass
from typing import Annotated

import chex
import jax
import jax.numpy as jnp
from msgspec import Meta

from rl_llm.algorithms.advantage import by_group
from rl_llm.algorithms.aggregate import SequenceSum
from rl_llm.algorithms.component import Loss, Objective
from rl_llm.algorithms.run_shape import RunShape, require
from rl_llm.config import Checked
from rl_llm.config.fields import PositiveFloat
from rl_llm.types import Batch, Metrics, masked_mean


@dataclass(frozen=True)
class DPO(Checked):
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h) of pairs (DPO, arXiv 2305.18290, eq. 7).

    h is the margin of log(pi / ref) between chosen and rejected; `label_smoothing` e is the assumed share of wrong
    labels (cDPO, Mitchell 2023). At 0.5 labels would say nothing.
    """

    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0

    def __call__(
        self, chosen: jax.Array, rejected: jax.Array, ref_chosen: jax.Array, ref_rejected: jax.Array
    ) -> jax.Array:
        """Losses f32[pairs], from log-probabilities of whole responses f32[pairs]."""
        margin = self.beta * _margin(chosen, rejected, ref_chosen, ref_rejected)
        right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
        return -(1.0 - self.label_smoothing) * right - self.label_smoothing * wrong


@dataclass(frozen=True)
class IPO(Checked):
    """(h - 1 / (2 beta))^2, h as in DPO (arXiv 2310.12036, eq. 17): the margin has a target instead of infinity."""

    beta: PositiveFloat = 0.1

    def __call__(
        self, chosen: jax.Array, rejected: jax.Array, ref_chosen: jax.Array, ref_rejected: jax.Array
    ) -> jax.Array:
        """Losses f32[pairs], from log-probabilities of whole responses f32[pairs]."""
        return jnp.square(_margin(chosen, rejected, ref_chosen, ref_rejected) - 0.5 / self.beta)


@dataclass(frozen=True)
class KTO(Checked):
    """w (1 - sigmoid(+-beta (h - z))) of single responses, + for desirable ones, h = log(pi / ref) (arXiv 2402.01306).

    w is the weight of the kind. z >= 0 estimates KL(pi || ref), without gradient: the mean of log(pi / ref) over
    responses paired with other prompts.
    """

    beta: PositiveFloat = 0.1
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0

    def __call__(self, logp: jax.Array, ref_logp: jax.Array, desirable: jax.Array, mismatched: jax.Array) -> jax.Array:
        """Losses f32[B], from logp, ref_logp f32[B], desirable bool[B] and log(pi / ref) of mismatched pairs f32[M]."""
        chex.assert_equal_shape([logp, ref_logp, desirable])
        baseline = jax.lax.stop_gradient(jnp.maximum(jnp.mean(mismatched), 0.0))
        gain = self.beta * (logp - ref_logp - baseline)
        liked = self.desirable_weight * (1.0 - jax.nn.sigmoid(gain))
        disliked = self.undesirable_weight * (1.0 - jax.nn.sigmoid(-gain))
        return jnp.where(desirable, liked, disliked)


def _margin(chosen: jax.Array, rejected: jax.Array, ref_chosen: jax.Array, ref_rejected: jax.Array) -> jax.Array:
    chex.assert_equal_shape([chosen, ref_chosen])
    chex.assert_equal_shape([rejected, ref_rejected])
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def implicit_reward(beta: float, logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """beta log(pi / ref): the reward with pi as its optimal policy (arXiv 2305.18290, eq. 5, up to a constant)."""
    chex.assert_equal_shape([logp, ref_logp])
    return beta * (logp - ref_logp)


def bradley_terry(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """-log sigmoid(s_chosen - s_rejected) of scores: the loss of a reward model (arXiv 2203.02155, eq. 1)."""
    return -jax.nn.log_sigmoid(chosen - rejected)


def preferred(batch: Batch) -> jax.Array:
    """1 where response i of a group earned more than response j and no filter dropped either, f32[N, K, K]."""
    reward, kept = by_group(batch, batch.reward), by_group(batch, batch.kept)
    more = reward[:, :, None] > reward[:, None, :]
    return (more & kept[:, :, None] & kept[:, None, :]).astype(jnp.float32)


def mean_over_pairs(losses: jax.Array, pairs: jax.Array) -> jax.Array:
    """Mean over the pairs of a row's group, f32[N, K, K] of both -> f32[B]; 0 for a group without pairs."""
    chex.assert_equal_shape([losses, pairs])
    means = jnp.sum(losses * pairs, axis=(1, 2)) / jnp.maximum(jnp.sum(pairs, axis=(1, 2)), 1.0)
    return jnp.repeat(means, pairs.shape[1])


def over_tokens(rows: jax.Array, batch: Batch) -> jax.Array:
    """Spread f32[B] evenly over tokens, f32[B, T]: the sum over a row's tokens is the row's value."""
    chex.assert_equal_shape([rows, batch.reward])
    shares = batch.mask / jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1.0)
    return rows[:, None] * shares


def check_groups(component: object, run: RunShape) -> None:
    """Raises ValueError for groups of one, which have no pairs."""
    if run.responses_per_prompt == 1:
        raise ValueError(
            f"{type(component).__name__} with responses_per_prompt=1: a response alone in its group has none to be "
            "compared with; sample more responses per prompt"
        )


@dataclass(frozen=True)
class Pairwise(Objective):
    """Mean of a preference loss over the ordered pairs (i, j) of a group with r_i > r_j, then over groups.

    Online DPO (arXiv 2402.04792) on all pairs of a rollout, or offline DPO (2305.18290, eq. 7) on stored pairs. Reads
    log pi and log ref of whole responses. Rewards are those after shaping; equal ones form no pair, nor do dropped
    responses. Exact with `SequenceSum`.
    """

    loss: DPO | IPO

    needs = ("ref_logp",)
    aggregates = (SequenceSum,)
    reads_advantage = False
    reads_reward = True

    def check(self, run: RunShape) -> None:
        """Raises ValueError for groups of one, which have no pairs."""
        check_groups(self, run)

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        ref_logp = require(batch, self, "ref_logp")
        chex.assert_equal_shape([logp, ref_logp, batch.mask])
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
class Unpaired(Objective):
    """Loss of single responses, desirable if the reward after shaping is at least `threshold` (KTO, arXiv 2402.01306).

    It compares no responses, so one per prompt is enough. Gains count from batch.kl_baseline, the estimate of
    KL(pi || ref). Exact with `SequenceSum`.
    """

    loss: KTO
    threshold: float = 0.5

    needs = ("ref_logp", "kl_baseline")
    aggregates = (SequenceSum,)
    reads_advantage = False
    reads_reward = True

    def check(self, run: RunShape) -> None:
        """Raises ValueError for one prompt: there is no other to pair its responses with."""
        if run.prompts_per_step == 1:
            raise ValueError("Unpaired with prompts_per_step=1: the KL is estimated on responses to other prompts")

    def __call__(self, logp: jax.Array, batch: Batch) -> Loss:
        ref_logp, baseline = (require(batch, self, name) for name in self.needs)
        chex.assert_equal_shape([logp, ref_logp, batch.mask])
        policy, ref = (jnp.sum(x * batch.mask, axis=1) for x in (logp, ref_logp))
        desirable = batch.reward >= self.threshold
        reward = implicit_reward(self.loss.beta, policy, ref)
        metrics: Metrics = {
            "preference/desirable": masked_mean(reward, (desirable & batch.kept).astype(jnp.float32)),
            "preference/undesirable": masked_mean(reward, (~desirable & batch.kept).astype(jnp.float32)),
        }
        return over_tokens(self.loss(policy, ref, desirable, baseline), batch), metrics
