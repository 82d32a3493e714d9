"""Means and spreads of rewards and advantages: of a group, of a batch, of all batches so far.

Sums run over deviations from a value of the sample itself. Equal values then deviate by exactly 0, and a small spread
on top of a large mean survives float32. Otherwise rounding errors, divided by a std that is rounding too, would become
advantages of any size.
"""

import chex
import jax
import jax.numpy as jnp
from flax import struct

Axis = int | None


def deviations(values: jax.Array, weight: jax.Array, axis: Axis = None) -> jax.Array:
    """`values` minus their mean over `axis`, weighted by `weight` >= 0 (same shape)."""
    centre, offset = _centre_and_offset(values, weight, axis)
    return (values - centre) - offset


def mean(values: jax.Array, weight: jax.Array, axis: Axis = None) -> jax.Array:
    """Weighted mean over `axis`, which is kept as 1; 0 where nothing has weight."""
    centre, offset = _centre_and_offset(values, weight, axis)
    return centre + offset


def variance(
    values: jax.Array, weight: jax.Array, axis: Axis = None, ddof: int = 0, count: jax.Array | None = None
) -> jax.Array:
    """Weighted mean of (x - mean)^2 over `axis`, which is kept as 1, times n / (n - ddof); 0 where n <= ddof.

    n is `count`, or the number of values with weight.
    """
    square = mean(jnp.square(deviations(values, weight, axis)), weight, axis)
    n = jnp.sum(weight > 0, axis=axis, keepdims=True) if count is None else count
    return jnp.where(n > ddof, square * n / jnp.maximum(n - ddof, 1), 0.0)


def mixed(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Whether the counted values of a group differ at all, [N, K] -> bool[N, 1]."""
    chex.assert_equal_shape([values, counted])
    highest = jnp.max(jnp.where(counted > 0, values, -jnp.inf), axis=1, keepdims=True)
    lowest = jnp.min(jnp.where(counted > 0, values, jnp.inf), axis=1, keepdims=True)
    return lowest < highest


@struct.dataclass
class Moments:
    """Moments of all rewards so far: count, mean and squares (sum of squared deviations from the mean), each f32[]."""

    count: jax.Array
    mean: jax.Array
    squares: jax.Array

    def std(self, ddof: int) -> jax.Array:
        """sqrt(squares / (count - ddof)); 0 until there are more rewards than ddof."""
        return jnp.sqrt(self.squares / jnp.maximum(self.count - ddof, 1.0))


def no_moments() -> Moments:
    """Moments before the first reward."""
    return Moments(count=jnp.float32(0.0), mean=jnp.float32(0.0), squares=jnp.float32(0.0))


def update(moments: Moments, rewards: jax.Array, counted: jax.Array | None = None) -> Moments:
    """Add the `rewards` f32[B] with `counted` [B] true.

    The moments of two samples give those of their union (Chan, Golub and LeVeque 1979).
    """
    weight = jnp.ones_like(rewards) if counted is None else counted.astype(rewards.dtype)
    count = jnp.sum(weight)
    total = moments.count + count
    share = count / jnp.maximum(total, 1.0)
    step = mean(rewards, weight).reshape(()) - moments.mean
    squares = jnp.sum(weight * jnp.square(deviations(rewards, weight)))
    return Moments(
        count=total,
        mean=moments.mean + jnp.where(count > 0, step * share, 0.0),
        squares=moments.squares + squares + jnp.where(count > 0, jnp.square(step) * moments.count * share, 0.0),
    )


def _centre_and_offset(values: jax.Array, weight: jax.Array, axis: Axis) -> tuple[jax.Array, jax.Array]:
    """The weighted value nearest to the mean, and the mean deviation from it."""
    chex.assert_equal_shape([values, weight])
    total = jnp.sum(weight, axis=axis, keepdims=True)
    total = jnp.where(total > 0, total, 1.0)
    rough = jnp.sum(weight * values, axis=axis, keepdims=True) / total
    distance = jnp.where(weight > 0, jnp.abs(values - rough), jnp.inf)
    nearest = jnp.argmin(distance, axis=axis, keepdims=True)
    centre = jnp.take_along_axis(values, nearest, axis) if axis is not None else values.reshape(-1)[nearest]
    centre = jnp.where(jnp.any(weight > 0, axis=axis, keepdims=True), centre, 0.0)
    return centre, jnp.sum(weight * (values - centre), axis=axis, keepdims=True) / total
