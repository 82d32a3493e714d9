"""The data that flows: prompts -> rollout -> batch -> train state, and the metrics that come out.

Dimensions, here and in every comment and einsum of the project:
    N prompts, K responses per prompt, B = N * K rows, P prompt length, T response length, S cache slots,
    D model width, H query heads, J key/value heads, G = H / J, h head width, F feed-forward width, L layers, V
    vocabulary, C reward components.

Row b answers prompt b // K: rows are stored group by group, so a group needs no index, and a prompt is stored,
prefilled and cached once. Prompts and responses are right-padded separately; response token t has position length + t.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Leaf = Any  # jax.Array on the device, np.ndarray on the host; a sharding or a shape in a tree that describes one


@struct.dataclass
class Prompts:
    """Prompts of a rollout.

    tokens i32[N, P] right-padded; lengths i32[N], at least 1; ids i32[N], problem ids, which seed the sampling noise.
    """

    tokens: Leaf
    lengths: Leaf
    ids: Leaf


@struct.dataclass
class Rollout:
    """Sampled responses; once graded, with their rewards. Log-probabilities are natural, and 0 where `mask` is 0.

    tokens i32[B, T]; mask f32[B, T], 1 for every sampled token, the end token included; truncated bool[B], no end token
    within T. Three log-probabilities f32[B, T] of each sampled token: `logp` under the distribution that was sampled
    from (temperature and truncations applied), `policy_logp` under the softmax at the sampling temperature without
    truncation (the trained policy), `model_logp` under the plain model (temperature 1). Without truncation the first
    two are equal, at temperature 1 the last two.

    Grading adds reward f32[B], NaN where a response could not be graded, and if the algorithm needs them rewards
    f32[B, C] (components, unweighted) and greedy_reward f32[B] (of the greedy response to the row's prompt, NaN if it
    could not be graded). Stored responses may bring teacher_tokens i32[B, T, k] and teacher_logp f32[B, T, k]. A field
    that is None is no part of the program.
    """

    prompts: Prompts
    tokens: Leaf
    mask: Leaf
    truncated: Leaf
    logp: Leaf
    policy_logp: Leaf
    model_logp: Leaf
    reward: Leaf = None
    rewards: Leaf = None
    greedy_reward: Leaf = None
    teacher_tokens: Leaf = None
    teacher_logp: Leaf = None


@struct.dataclass
class Batch:
    """A rollout with everything an update needs of it, computed once on the whole batch.

    reward f32[B]; old_logp f32[B, T], the policy's before the updates on this batch: the ratio's denominator;
    sampler_logp f32[B, T], under the distribution that was sampled from: the denominator of corrections; advantage
    f32[B, T]; weight f32[B, T] (the loss is the weighted sum over all tokens, so it does not depend on how the batch is
    cut into micro-batches); kept bool[B], False where a filter dropped the row or the response
    could not be graded (its reward is then 0).

    Fields that only some techniques need are None otherwise, and then no part of the program:
    rewards f32[B, C], components of a composed reward; token_reward f32[B, T], a reward at each token (without it
    `reward` comes at the last one); greedy_reward f32[B], of the greedy response to the row's prompt; ref_logp
    f32[B, T], the reference policy's; value f32[B, T], a critic's before the updates; returns f32[B, T], the critic's
    target; value_weight f32[B, T], `weight` of the critic's loss; counted bool[B], False where the reward is kept out
    of means and spreads too; moments, of all rewards so far (both only while advantages are computed; moments are no
    part of a batch's rows); kl_baseline f32[B], KTO's estimate of KL(pi || ref), equal in every row; teacher_tokens
    i32[B, T, k] and teacher_logp f32[B, T, k], the teacher's k likeliest tokens at each position; old_top_logp
    f32[B, T, k], the policy's at those before the updates; student_logp f32[B, T, k], the same, differentiable (only
    while a loss is computed).
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
        """N: the number of parts that stay whole wherever a batch is cut."""
        return int(self.prompts.lengths.shape[0])


@struct.dataclass
class Packed:
    """Rows of whole conversations, several to a row, for maximum likelihood.

    tokens i32[B, S]; segments i32[B, S] numbers the conversations of a row from 1, with 0 for padding; weight f32[B, S]
    of each token's -log pi in the loss: 0 for context, and 1 in total.
    """

    tokens: Leaf
    segments: Leaf
    weight: Leaf

    @property
    def groups(self) -> int:
        """B: each row stays whole."""
        return int(self.tokens.shape[0])


@struct.dataclass
class CriticState:
    """Parameters of a critic and its optimizer's state."""

    params: Any
    opt_state: Any


@struct.dataclass
class TrainState:
    """Everything that training changes: step i32[] (updates done), params (the trained ones), opt_state.

    Fields that only some runs need are None otherwise, and then no part of the program: frozen, the policy's untrained
    parameters; critic; reference, the parameters that a divergence is measured from; past, the parameters before each
    of the last steps, oldest first; moments, of all rewards so far; coefficients f32[] that controllers adapt, by name;
    replay, the graded rollouts of the last steps, oldest first.
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
    """Averaged metric: parts of a batch add their totals and counts."""

    total: jax.Array
    count: jax.Array

    def result(self) -> jax.Array:
        """total / count; 0 when nothing was counted."""
        return self.total / jnp.maximum(self.count, 1.0)


@struct.dataclass
class Sum:
    """Summed metric, over the parts of a batch and over updates."""

    total: jax.Array

    def result(self) -> jax.Array:
        return self.total


@struct.dataclass
class Max:
    """Largest value over the parts."""

    value: jax.Array

    def result(self) -> jax.Array:
        return self.value


Metrics = dict[str, Mean | Sum | Max]


def masked_mean(values: jax.Array, mask: jax.Array) -> Mean:
    """Mean of `values` where `mask` (same shape) is 1, as a metric."""
    return Mean(jnp.sum(values * mask), jnp.sum(mask))


def merge_metrics(a: Metrics, b: Metrics) -> Metrics:
    """Merge the metrics of two parts of a batch."""

    def merge(x: Any, y: Any) -> Any:
        return Max(jnp.maximum(x.value, y.value)) if isinstance(x, Max) else x + y

    return jax.tree.map(merge, a, b, is_leaf=lambda x: isinstance(x, Max))
