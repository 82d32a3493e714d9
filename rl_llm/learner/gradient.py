"""From a loss over a batch to an update: the gradient in micro-batches, and one optimizer step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rl_llm.learner.optimizer import Optimizer
from rl_llm.types import Mean, Metrics, Sum, merge_metrics

LossFunction = Callable[[Any, Any], tuple[jax.Array, Metrics]]


def loss_and_gradient(
    loss: LossFunction, params: Any, batch: Any, micro_batches: int
) -> tuple[jax.Array, Metrics, Any]:
    """Sum `loss(params, part)` over micro-batches, one in memory at a time; returns (loss, metrics, gradient).

    Micro-batch m takes every `micro_batches`-th group (a prompt with its rows), because a contiguous cut would put it
    on few devices.
    """
    gradient_fn = jax.value_and_grad(loss, has_aux=True)
    if micro_batches == 1:
        (value, metrics), gradient = gradient_fn(params, batch)
        return value, metrics, gradient
    parts = split(batch, micro_batches)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient_fn, params, first))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        ((value, metrics), gradient), ((v, m), g) = total, gradient_fn(params, part)
        return ((value + v, merge_metrics(metrics, m)), jax.tree.map(jnp.add, gradient, g)), None

    ((value, metrics), gradient), _ = jax.lax.scan(add, zeros, parts)
    return value, metrics, gradient


def in_parts(function: Callable[[Any], Any], rows: Any, groups: int, parts: int) -> Any:
    """Apply a function from rows to rows, one part of the groups in memory at a time; cut as `split` does."""
    if parts == 1:
        return function(rows)

    def whole(x: jax.Array) -> jax.Array:
        grouped = x.reshape(parts, groups // parts, -1, *x.shape[2:])
        return jnp.moveaxis(grouped, 1, 0).reshape(-1, *x.shape[2:])

    return jax.tree.map(whole, jax.lax.map(function, split(rows, parts, groups)))


def split(rows: Any, parts: int, groups: int | None = None) -> Any:
    """Cut leaves [N, ...] into [parts, N / parts, ...] and [N * K, ...] into [parts, N * K / parts, ...].

    The N groups (default: those of a batch) stay whole.
    """
    N = rows.groups if groups is None else groups

    def cut(x: jax.Array) -> jax.Array:
        grouped = x.reshape(N // parts, parts, x.shape[0] // N, *x.shape[1:])
        return jnp.moveaxis(grouped, 1, 0).reshape(parts, x.shape[0] // parts, *x.shape[1:])

    return jax.tree.map(cut, rows)


def apply_gradient(
    optimizer: Optimizer, params: dict, opt_state: Any, gradient: dict, name: str = "update"
) -> tuple[dict, Any, Metrics]:
    """Make one optimizer update; a gradient that is not finite changes nothing and counts in `name`/skipped."""
    updates, after = optimizer.update(gradient, opt_state, params)
    metrics: Metrics = {
        f"{name}/gradient_norm": Mean(optax.tree.norm(gradient), jnp.float32(1.0)),
        f"{name}/skipped": Sum((after.total_notfinite - opt_state.total_notfinite).astype(jnp.float32)),
    }
    return optax.apply_updates(params, updates), after, metrics
