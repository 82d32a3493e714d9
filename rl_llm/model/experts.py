"""A mixture of experts: each token is read by the few experts its router chooses.

Tokens are sorted by expert, so that each expert's tokens are one block of rows of a ragged product. On a mesh each
device along "tensor" has some of the experts, applies them to the tokens of its rows, and one sum over the axis
combines the results.
"""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rl_llm.model.config import Experts, ModelConfig
from rl_llm.model.layers import activate, precision


def route(x: jax.Array, router: jax.Array, experts: Experts) -> tuple[jax.Array, jax.Array]:
    """Choose experts i32[n, k] for tokens f32[n, D], with their shares f32[n, k].

    In float32: rounding here would send a token elsewhere.
    """
    chex.assert_shape(router, (x.shape[1], experts.count))
    logits = jnp.dot(x, router, precision=jax.lax.Precision.HIGHEST)
    shares, chosen = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), experts.per_token)
    if experts.normalized:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return chosen, shares


def apply_experts(config: ModelConfig, weights: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The experts' output f32[B, T, D] for x f32[B, T, D], and the experts that read each token, i32[B, T, k]."""
    assert config.experts is not None
    chex.assert_shape(x, (None, None, config.width))
    B, T, D = x.shape
    dtype = jnp.dtype(config.compute_dtype)
    matrices = tuple(weights[name].astype(dtype) for name in ("gate", "up", "down"))
    routed = route(x.reshape(B * T, D), weights["router"], config.experts)
    chosen, shares = (array.reshape(B, T, config.experts.per_token) for array in routed)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _local_experts(config, 0, x, chosen, shares, *matrices), chosen

    def on_device(x: jax.Array, chosen: jax.Array, shares: jax.Array, *matrices: jax.Array) -> jax.Array:
        first = jax.lax.axis_index("tensor") * matrices[0].shape[0]
        return jax.lax.psum(_local_experts(config, first, x, chosen, shares, *matrices), "tensor")

    rows, experts = PartitionSpec(("data", "fsdp")), PartitionSpec("tensor")
    in_specs = (rows, rows, rows, experts, experts, experts)
    # With check_vma the gradient of x lacks the sum over "tensor" (JAX 0.10.2: the transpose of a ragged product).
    spread = jax.shard_map(on_device, in_specs=in_specs, out_specs=rows, check_vma=False)
    return spread(x, chosen, shares, *matrices), chosen


def _local_experts(
    config: ModelConfig,
    first: jax.Array | int,
    x: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    *matrices: jax.Array,
) -> jax.Array:
    """Output f32[B, T, D] of the experts numbered from `first`, with matrices gate, up [E, D, F] and down [E, F, D]."""
    gate, up, down = matrices
    (B, T, D), E, k = x.shape, gate.shape[0], chosen.shape[-1]
    expert = chosen.reshape(-1) - first
    expert = jnp.where((expert >= 0) & (expert < E), expert, E)  # other devices' experts sort last, into no group
    order = jnp.argsort(expert, stable=True)
    sizes = jnp.bincount(expert, length=E + 1)[:E].astype(jnp.int32)

    def product(rows: jax.Array, matrices: jax.Array) -> jax.Array:
        rows, exact = rows.astype(gate.dtype), precision(gate.dtype)
        return jax.lax.ragged_dot(rows, matrices, sizes, precision=exact, preferred_element_type=jnp.float32)

    rows = x.reshape(B * T, D)[order // k]
    out = product(activate(product(rows, gate), config.activation) * product(rows, up), down)
    out = jnp.where((jnp.arange(B * T * k) < jnp.sum(sizes))[:, None], out, 0.0)
    by_token = out[jnp.argsort(order)].reshape(B * T, k, D)
    return jnp.sum(by_token * shares.reshape(B * T, k, 1), axis=1).reshape(B, T, D)
