"""One table declares every weight once: its shape, its logical axes and how it starts. Everything else derives from
it.
"""

from dataclasses import dataclass
from math import prod
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import traverse_util

from rl_llm.model.config import ModelConfig


@dataclass(frozen=True)
class Weight:
    """A weight: `axes` are the logical names that `mesh.RULES` maps to mesh axes; `std` 0 means a vector of ones
    (norms).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float = 0.0


def weight_table(config: ModelConfig) -> dict[str, Weight]:
    """Path -> Weight. Per-layer weights are stacked on a leading layer axis, so that one scan runs them all.

    Standard deviations are 1/sqrt(fan in); the two projections that write into the residual stream are divided by
    sqrt(2 * layers), so that its variance does not grow with depth (GPT-2, section 2.3).
    """
    V, D, L, F = config.vocabulary, config.width, config.layers, config.feed_forward
    H, J, h = config.heads, config.kv_heads, config.head_width
    into = D**-0.5
    residual = (2 * L) ** -0.5
    table = {
        "embedding": Weight((V, D), ("vocabulary", "width"), into),
        "final_norm": Weight((D,), (None,)),
        "layers/attention_norm": Weight((L, D), (None, None)),
        "layers/query": Weight((L, D, H, h), (None, "width", "heads", None), into),
        "layers/key": Weight((L, D, J, h), (None, "width", "kv_heads", None), into),
        "layers/value": Weight((L, D, J, h), (None, "width", "kv_heads", None), into),
        "layers/output": Weight((L, H, h, D), (None, "heads", None, "width"), residual * (H * h) ** -0.5),
        "layers/mlp_norm": Weight((L, D), (None, None)),
        "layers/gate": Weight((L, D, F), (None, "width", "feed_forward"), into),
        "layers/up": Weight((L, D, F), (None, "width", "feed_forward"), into),
        "layers/down": Weight((L, F, D), (None, "feed_forward", "width"), residual * F**-0.5),
    }
    if config.qk_norm:
        table["layers/query_norm"] = Weight((L, h), (None, None))
        table["layers/key_norm"] = Weight((L, h), (None, None))
    if not config.tied_embeddings:
        table["head"] = Weight((D, V), ("width", "vocabulary"), into)
    return table


def init(config: ModelConfig, key: jax.Array) -> dict:
    """Random float32 parameters: a nested dict with the table's paths. Each weight's noise depends on its path only."""

    def draw(path: str, weight: Weight) -> jax.Array:
        if weight.std == 0.0:
            return jnp.ones(weight.shape, jnp.float32)
        own_key = jax.random.fold_in(key, crc32(path.encode()))
        # Drawn flat: a draw of higher rank is the same numbers and takes XLA much longer to compile.
        return weight.std * jax.random.truncated_normal(own_key, -3.0, 3.0, (prod(weight.shape),)).reshape(weight.shape)

    flat = {path: draw(path, weight) for path, weight in weight_table(config).items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, the embedding counted once when it is tied."""
    return sum(prod(weight.shape) for weight in weight_table(config).values())
