"""The data that flows: prompts -> rollout -> batch -> train state, and the metrics that come out.

Dimensions, here and in every comment and einsum of the project:
    N prompts, K responses per prompt, B = N * K rows, P prompt length, T response length, S cache slots,
    D model width, H query heads, J key/value heads, G = H / J, h head width, F feed-forward width, L layers, V
    vocabulary.

Row b answers prompt b // K: rows are stored group by group, so a group needs no index and a prompt is stored, read by
the model and cached once. Prompts and responses are right-padded separately; response token t has position length + t.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Leaf = Any  # jax.Array on the device, np.ndarray on the host; a sharding or a shape in a tree that describes one


@struct.dataclass
class Prompts:
    """tokens i32[N, P] right-padded, lengths i32[N] (>= 1), ids i32[N]: the problems' ids, which seed the sampling
    noise.
    """

    tokens: Leaf
    lengths: Leaf
    ids: Leaf


@struct.dataclass
class Rollout:
    """What the sampler returns. Log-probabilities are natural logarithms and 0 where `mask` is 0.

    tokens i32[B, T]; mask f32[B, T], 1 for every sampled token, the end token included; truncated bool[B], no end token
    within T. Three log-probabilities f32[B, T] of each sampled token: `logp` under the distribution that was sampled
    from (temperature and truncations applied), `policy_logp` under the softmax at the sampling temperature without
    truncation (the policy that is trained), `model_logp` under the plain model (temperature 1). Without truncation
    the first two are equal, at temperature 1 the last two.
    """

    prompts: Prompts
    tokens: Leaf
    mask: Leaf
    truncated: Leaf
    logp: Leaf
    policy_logp: Leaf
    model_logp: Leaf


@struct.dataclass
class Batch:
    """A rollout with what an update needs of it, computed once on the whole batch.

    reward f32[B]; old_logp f32[B, T], the policy's when the updates on this batch begin: the ratio's denominator;
    sampler_logp f32[B, T], under the distribution that was really sampled from: what corrections divide by; advantage
    f32[B, T]; weight f32[B, T] (the loss is the weighted sum over all tokens, so it does not depend on how the batch is
    cut into micro-batches); kept bool[B], False where a filter dropped the row.

    What only some techniques need is None elsewhere, and then no part of the program: rewards f32[B, C] (the components
    of a composed reward), token_reward f32[B, T] (a reward at each token; without it `reward` comes at the last one),
    greedy_reward f32[B] (of the greedy response to the row's prompt), ref_logp f32[B, T] (the reference policy's),
    value f32[B, T] (a critic's, before the updates), returns f32[B, T] (what the critic learns), value_weight f32[B, T]
    (`weight` of the critic's loss), counted bool[B] (False
    where a filter keeps the reward out of means and spreads too), moments (of all rewards so far; only while advantages
    are computed, as no part of a batch's rows), kl_baseline f32[B] (KTO's estimate of KL(pi || ref), the same in every
    row), teacher_tokens i32[B, T, k] and teacher_logp f32[B, T, k] (the teacher's k likeliest tokens at each position),
    old_top_logp f32[B, T, k] (the policy's at those before the updates), student_logp f32[B, T, k] (the same,
    differentiable; only while a loss is computed).
    """

    prompts: Prompts
    tokens: Leaf
    mask: Leaf
    truncated: Leaf
    old_logp: Leaf
    sampler_logp: Leaf
    reward: Leaf
    kept: Leaf
    advantage: Leaf
    weight: Leaf
    rewards: Leaf = None
    token_reward: Leaf = None
    greedy_reward: Leaf = None
    ref_logp: Leaf = None
    value: Leaf = None
    returns: Leaf = None
    value_weight: Leaf = None
    counted: Leaf = None
    moments: Any = None
    kl_baseline: Leaf = None
    teacher_tokens: Leaf = None
    teacher_logp: Leaf = None
    old_top_logp: Leaf = None
    student_logp: Leaf = None

    @property
    def groups(self) -> int:
        """N: how many parts there are that stay whole wherever a batch is cut."""
        return int(self.prompts.lengths.shape[0])


@struct.dataclass
class Packed:
    """Rows of whole conversations, several to a row, to be learned by maximum likelihood.

    tokens i32[B, S]; segments i32[B, S] numbers the conversations of a row from 1, 0 being padding; weight f32[B, S] of
    each token's -log pi in the loss: 0 for what is only read, and 1 in all.
    """

    tokens: Leaf
    segments: Leaf
    weight: Leaf

    @property
    def groups(self) -> int:
        """B: a row is a part that stays whole."""
        return int(self.tokens.shape[0])


@struct.dataclass
class Experience:
    """What was lived through once: a rollout, its rewards f32[B], and the fields of its batch, by name, that do not
    depend on the policy that learns from it (each with rows [B, ...]).
    """

    rollout: Rollout
    reward: Leaf
    fields: dict[str, Any]


@struct.dataclass
class CriticState:
    """The parameters of a critic and its optimizer's state."""

    params: Any
    opt_state: Any


@struct.dataclass
class TrainState:
    """All that training changes: step i32[] (updates done), params (those that are trained), opt_state.

    What only some runs need is None elsewhere, and then no part of the program: frozen, the policy's other parameters,
    which stay as they are; critic; reference, the parameters that
    a divergence is measured from; past, the parameters before each of the last steps, oldest first; moments, of all
    rewards so far; coefficients f32[] that controllers adapt, by name; replay, the experiences of the last steps,
    oldest first.
    """

    step: Leaf
    params: Any
    opt_state: Any
    frozen: Any = None
    critic: Any = None
    reference: Any = None
    past: Any = None
    moments: Any = None
    coefficients: Any = None
    replay: Any = None


@struct.dataclass
class Mean:
    """A metric that averages: parts of a batch add their totals and counts."""

    total: jax.Array
    count: jax.Array

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def result(self) -> jax.Array:
        """total / count; 0 when nothing was counted."""
        return self.total / jnp.maximum(self.count, 1.0)


@struct.dataclass
class Sum:
    """A metric that counts: parts of a batch, and updates, add up."""

    total: jax.Array

    def merge(self, other: "Sum") -> "Sum":
        return Sum(self.total + other.total)

    def result(self) -> jax.Array:
        return self.total


@struct.dataclass
class Max:
    """A metric that keeps the largest value of its parts."""

    value: jax.Array

    def merge(self, other: "Max") -> "Max":
        return Max(jnp.maximum(self.value, other.value))

    def result(self) -> jax.Array:
        return self.value


Metrics = dict[str, Mean | Sum | Max]


def masked_mean(values: jax.Array, mask: jax.Array) -> Mean:
    """The mean of `values` where `mask` (same shape) is 1, as a metric."""
    return Mean(jnp.sum(values * mask), jnp.sum(mask))


def merge_metrics(a: Metrics, b: Metrics) -> Metrics:
    """Metrics of two parts of a batch -> metrics of both together."""
    return jax.tree.map(lambda x, y: x.merge(y), a, b, is_leaf=lambda x: isinstance(x, Mean | Sum | Max))
