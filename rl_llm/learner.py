"""The learner: log-probabilities of sampled tokens, one batch from one rollout, and the jitted update.

The loss is a weighted sum over tokens whose weights were computed once on the whole batch, so an update does not
depend on how its rows are cut into micro-batches, ordered or spread over devices, up to rounding.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rl_llm import mesh as meshes
from rl_llm.algorithms import Algorithm, Moments, apply_filters, update_moments
from rl_llm.model import ModelConfig, extend, prefill, unembed, weight_table
from rl_llm.state import NOTHING, Carried, state_shardings
from rl_llm.types import Batch, Max, Mean, Metrics, Prompts, Rollout, Sum, TrainState, masked_mean, merge_metrics

HEAD_POSITIONS = 32  # response positions whose logits exist at one time: [B, 32, V] instead of [B, T, V]


def logp_and_entropy(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """logits f32[..., V], tokens i32[...] -> log softmax(logits) at the tokens and its entropy, f32[...] each."""
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    logp = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - normalizer
    return logp, normalizer - jnp.sum(jax.nn.softmax(logits, axis=-1) * logits, axis=-1)


def token_logps(
    config: ModelConfig, params: dict, prompts: Prompts, tokens: jax.Array, temperature: jax.Array | float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """log pi(token | prompt, tokens before) and the entropy of pi, f32[B, T] each, pi = softmax(logits / temperature).

    Logits are made, used and forgotten in chunks of HEAD_POSITIONS positions, and made again for the gradient.
    """
    B, T = tokens.shape
    K = B // prompts.lengths.shape[0]
    prompt_hidden, cache = prefill(config, params, prompts.tokens, prompts.lengths)
    last = jnp.take_along_axis(prompt_hidden, (prompts.lengths - 1)[:, None, None], axis=1)
    hidden = jnp.repeat(last, K, axis=0)
    if T > 1:  # the hidden state that predicts token t is that of token t - 1
        hidden = jnp.concatenate([hidden, extend(config, params, tokens[:, :-1], cache, prompts.lengths)], axis=1)

    head = {name: params[name] for name in ("head", "embedding") if name in params}
    chunk = min(T, HEAD_POSITIONS)

    @jax.checkpoint
    def of_chunk(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return logp_and_entropy(unembed(head, part[0]) / temperature, part[1])

    def chunks(x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [T / chunk, B, chunk, ...], zero-padded."""
        padded = jnp.pad(x, ((0, 0), (0, -T % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(B, -1, chunk, *x.shape[2:]), 1, 0)

    parts = jax.lax.map(of_chunk, (chunks(hidden), chunks(tokens)))
    logp, entropy = (jnp.moveaxis(part, 0, 1).reshape(B, -1)[:, :T] for part in parts)
    return logp, entropy


def make_batch(
    algorithm: Algorithm,
    rollout: Rollout,
    reward: jax.Array,
    made: Mapping[str, Any] = MappingProxyType({}),
    moments: Moments | None = None,
) -> tuple[Batch, Moments | None]:
    """Rollout and rewards f32[B] -> the batch of its updates: filters, shaping, advantages and weights of the whole
    rollout at once; and the moments of all rewards with these.

    `made` are further fields of the batch: those that the algorithm needs, and `old_logp` where the sampler was some
    steps behind. Elsewhere the ratio's old log-probabilities are the sampler's own: sampler and learner agree to
    rounding (metrics agreement/*).
    """
    batch = Batch(
        prompts=rollout.prompts,
        tokens=rollout.tokens,
        mask=rollout.mask,
        truncated=rollout.truncated,
        old_logp=rollout.policy_logp,
        sampler_logp=rollout.logp,
        reward=reward,
        kept=jnp.ones(reward.shape, bool),
        advantage=jnp.zeros_like(rollout.mask),
        weight=jnp.zeros_like(rollout.mask),
    )
    batch = apply_filters(algorithm.filters, replace(batch, **made))
    for shape in algorithm.shaping:
        batch = shape(batch)
    if moments is not None:
        moments = update_moments(moments, batch.reward, batch.counted)
    advantage = algorithm.advantage(replace(batch, moments=moments))
    batch = replace(batch, advantage=advantage)
    weight = algorithm.aggregate(batch.mask * batch.kept[:, None], batch)
    for correct in algorithm.corrections:
        weight = weight * correct(batch)
    return replace(batch, weight=weight), moments


def compile_make_batch(
    algorithm: Algorithm, mesh: Mesh
) -> Callable[[Rollout, jax.Array, dict[str, jax.Array], Moments | None], tuple[Batch, Moments | None]]:
    """`make_batch` jitted for a mesh: rows stay where the sampler left them."""
    rows, same = meshes.over_batch(mesh), meshes.replicated(mesh)
    return jax.jit(partial(make_batch, algorithm), in_shardings=(rows, rows, rows, same), out_shardings=(rows, same))


def compile_logps(config: ModelConfig, mesh: Mesh) -> Callable[[dict, Rollout, jax.Array], jax.Array]:
    """(params, rollout, temperature) -> the log-probability f32[B, T] of every sampled token under other parameters, 0
    at padding; jitted for a mesh.
    """

    def logps(params: dict, rollout: Rollout, temperature: jax.Array) -> jax.Array:
        return token_logps(config, params, rollout.prompts, rollout.tokens, temperature)[0] * rollout.mask

    weights, rows = meshes.weight_shardings(mesh, weight_table(config)), meshes.over_batch(mesh)
    return jax.jit(
        logps,
        in_shardings=(weights, rows, meshes.replicated(mesh)),
        out_shardings=rows,
        compiler_options=meshes.compiler_options(mesh),
    )


def policy_loss(
    config: ModelConfig, algorithm: Algorithm, temperature: jax.Array | float, params: dict, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """The weighted sum of per-token losses over a part of a batch, and that part's metrics."""
    logp, entropy = token_logps(config, params, batch.prompts, batch.tokens, temperature)
    logp, entropy = (jnp.where(batch.mask > 0, x, 0.0) for x in (logp, entropy))
    losses, metrics = algorithm.objective(logp, batch)
    for regularizer in algorithm.regularizers:
        extra, more = regularizer(logp, entropy, batch)
        losses, metrics = losses + extra, metrics | more
    gap = jax.lax.stop_gradient(logp) - batch.old_logp
    metrics = metrics | {
        "policy/entropy": masked_mean(entropy, batch.mask),
        "agreement/mean": masked_mean(jnp.abs(gap), batch.mask),
        "agreement/max": Max(jnp.max(jnp.abs(gap) * batch.mask)),
        # k3 estimate of KL(sampler || learner): E[r - 1 - log r] with r = learner / sampler
        "agreement/kl": masked_mean(jnp.expm1(gap) - gap, batch.mask),
    }
    return jnp.sum(batch.weight * losses), jax.lax.stop_gradient(metrics)


Loss = Callable[[dict, Any], tuple[jax.Array, Metrics]]


def loss_and_gradient(loss: Loss, params: dict, batch: Any, micro_batches: int) -> tuple[jax.Array, Metrics, dict]:
    """Sum of `loss(params, part)` over parts of the batch, one part in memory at a time -> (loss, metrics, gradient).

    Part m takes every `micro_batches`-th prompt (with its rows): a contiguous cut would put a part on few devices.
    """
    gradient_of = jax.value_and_grad(loss, has_aux=True)
    if micro_batches == 1:
        (value, metrics), gradient = gradient_of(params, batch)
        return value, metrics, gradient
    parts = split(batch, micro_batches)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient_of, params, first))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        ((value, metrics), gradient), ((v, m), g) = total, gradient_of(params, part)
        return ((value + v, merge_metrics(metrics, m)), jax.tree.map(jnp.add, gradient, g)), None

    ((value, metrics), gradient), _ = jax.lax.scan(add, zeros, parts)
    return value, metrics, gradient


def split(batch: Any, parts: int) -> Any:
    """Leaves [N, ...] or [N * K, ...] -> [parts, N / parts, ...] or [parts, N * K / parts, ...]; groups stay whole."""
    N = batch.prompts.lengths.shape[0]

    def cut(x: jax.Array) -> jax.Array:
        grouped = x.reshape(N // parts, parts, x.shape[0] // N, *x.shape[1:])
        return jnp.moveaxis(grouped, 1, 0).reshape(parts, x.shape[0] // parts, *x.shape[1:])

    return jax.tree.map(cut, batch)


def apply_gradient(
    optimizer: optax.GradientTransformation, state: TrainState, gradient: dict
) -> tuple[TrainState, Metrics]:
    """One optimizer update. A gradient that is not finite changes nothing and is counted in update/skipped."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    skipped = opt_state.total_notfinite - state.opt_state.total_notfinite
    metrics: Metrics = {
        "update/gradient_norm": Mean(optax.tree.norm(gradient), jnp.float32(1.0)),
        "update/skipped": Sum(skipped.astype(jnp.float32)),
    }
    return replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics


def train_step(
    config: ModelConfig,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    update: jax.Array,
    temperature: jax.Array,
    *,
    updates_per_rollout: int,
    micro_batches: int,
) -> tuple[TrainState, Metrics]:
    """The `update`-th of the updates made on a batch, on its share of the prompts.

    The shares' weights are those of the whole batch times the number of updates, so the mean of the updates'
    gradients is the whole batch's gradient.
    """
    share = jax.tree.map(lambda x: x[update], split(batch, updates_per_rollout))
    share = replace(share, weight=share.weight * updates_per_rollout)
    loss = partial(policy_loss, config, algorithm, temperature)
    value, metrics, gradient = loss_and_gradient(loss, state.params, share, micro_batches)
    state, update_metrics = apply_gradient(optimizer, state, gradient)
    return state, metrics | update_metrics | {"loss": Mean(value, jnp.float32(1.0))}


def compile_train_step(
    config: ModelConfig,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    updates_per_rollout: int,
    micro_batches: int,
    carried: Carried = NOTHING,
) -> Callable[[TrainState, Batch, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
    """`train_step` jitted for a mesh; the state is donated, so it is updated in place."""
    states = state_shardings(config, optimizer, mesh, carried)
    rows, same = meshes.over_batch(mesh), meshes.replicated(mesh)
    step = partial(
        train_step, config, algorithm, optimizer, updates_per_rollout=updates_per_rollout, micro_batches=micro_batches
    )
    return jax.jit(
        step,
        in_shardings=(states, rows, same, same),
        out_shardings=(states, same),
        donate_argnums=0,
        compiler_options=meshes.compiler_options(mesh),
    )
