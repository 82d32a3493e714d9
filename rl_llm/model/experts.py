"""A mixture of experts: each token is read by the few experts that its router chooses, and by no other.

Tokens are sorted by expert, so that every expert's are one block of rows of a ragged product. On a mesh each device
of the axis "tensor" has some of the experts; it computes what those make of the tokens of its rows, and one sum over
the axis puts the parts together.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rl_llm.model.config import Experts, ModelConfig
from rl_llm.model.layers import activate, precision

ROWS = PartitionSpec(("data", "fsdp"))
EXPERTS = PartitionSpec("tensor")


def route(x: jax.Array, router: jax.Array, experts: Experts) -> tuple[jax.Array, jax.Array]:
    """Tokens f32[n, D] -> the experts that read each, i32[n, k], and their shares f32[n, k]. In float32: rounding here
    would send a token elsewhere.
    """
    logits = jnp.dot(x, router, precision=jax.lax.Precision.HIGHEST)
    shares, chosen = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), experts.per_token)
    if experts.normalized:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return chosen, shares


def mixture(config: ModelConfig, weights: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the experts make of x f32[B, T, D] -> f32[B, T, D], and the experts that read each token, i32[B, T, k]."""
    assert config.experts is not None
    B, T, D = x.shape
    dtype = jnp.dtype(config.compute_dtype)
    matrices = tuple(weights[name].astype(dtype) for name in ("gate", "up", "down"))
    chosen, shares = route(x.reshape(B * T, D), weights["router"], config.experts)
    k = config.experts.per_token
    chosen, shares = chosen.reshape(B, T, k), shares.reshape(B, T, k)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _of_experts(config, 0, x, chosen, shares, *matrices), chosen

    def part(x: jax.Array, chosen: jax.Array, shares: jax.Array, *matrices: jax.Array) -> jax.Array:
        first = jax.lax.axis_index("tensor") * matrices[0].shape[0]
        return jax.lax.psum(_of_experts(config, first, x, chosen, shares, *matrices), "tensor")

    over = (ROWS, ROWS, ROWS, EXPERTS, EXPERTS, EXPERTS)
    # With check_vma the gradient of x lacks the sum over "tensor" (JAX 0.10.2: the transpose of a ragged product).
    spread = jax.shard_map(part, in_specs=over, out_specs=ROWS, check_vma=False)
    return spread(x, chosen, shares, *matrices), chosen


def _of_experts(
    config: ModelConfig,
    first: jax.Array | int,
    x: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """What the experts from `first` on, as many as the matrices [E, ...] have, add to each token: f32[B, T, D]."""
    (B, T, D), E, k = x.shape, gate.shape[0], chosen.shape[-1]
    expert = chosen.reshape(-1) - first
    expert = jnp.where((expert >= 0) & (expert < E), expert, E)  # those of other devices come last, in no group
    order = jnp.argsort(expert, stable=True)
    sizes = jnp.bincount(expert, length=E + 1)[:E].astype(jnp.int32)

    def product(rows: jax.Array, matrices: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(
            rows.astype(gate.dtype),
            matrices,
            sizes,
            precision=precision(gate.dtype),
            preferred_element_type=jnp.float32,
        )

    rows = x.reshape(B * T, D)[order // k]
    out = product(activate(product(rows, gate), config.activation) * product(rows, up), down)
    out = jnp.where((jnp.arange(B * T * k) < jnp.sum(sizes))[:, None], out, 0.0)
    of_token = out[jnp.argsort(order)].reshape(B * T, k, D)
    return jnp.sum(of_token * shares.reshape(B * T, k, 1), axis=1).reshape(B, T, D)
