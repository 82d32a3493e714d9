"""One table declares every weight once: its shape, its logical axes, how it starts, and what it is in a Hugging Face
folder. Initialization, sharding, import and export derive from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, prod
from typing import Any, Literal
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import traverse_util

from rl_llm.model.config import Lora, ModelConfig


@dataclass(frozen=True)
class Weight:
    """A weight: `axes` are the logical names that `mesh.RULES` maps to mesh axes; one with `std` 0 begins as `fill`.

    `name` is that of its tensor in a Hugging Face folder; "{layer}" and "{expert}" in it mean that each slice along the
    leading axes is a tensor of its own. Of what is left, the first `inputs` axes are a projection's input: there it is
    stored as [outputs, inputs]. With `inputs` 0 it is stored as it is, but flat where it has no input.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float = 0.0
    fill: float = 1.0
    name: str = ""
    inputs: int = 0

    @property
    def stacked(self) -> int:
        """Leading axes whose slices are tensors of their own."""
        return self.name.count("{")


def weight_table(config: ModelConfig) -> dict[str, Weight]:
    """Path -> Weight. Per-layer weights are stacked on a leading layer axis, so that one scan runs them all.

    Standard deviations are 1/sqrt(fan in); the two projections that write into the residual stream are divided by
    sqrt(2 * layers), so that its variance does not grow with depth (GPT-2, section 2.3).
    """
    V, D = config.vocabulary, config.width
    table = {
        "embedding": Weight((V, D), ("vocabulary", "width"), D**-0.5, name="model.embed_tokens.weight"),
        "final_norm": _norm(config, (D,), "model.norm"),
    }
    for layer in (_attention(config), _feed_forward(config), _norms(config), _biases(config)):
        table |= {f"layers/{path}": weight for path, weight in layer.items()}
    if not config.tied_embeddings:
        table["head"] = Weight((D, V), ("width", "vocabulary"), D**-0.5, name="lm_head.weight", inputs=1)
    return table | (_adapters(table, config.lora) if config.lora else {})


LAYER = "model.layers.{layer}."
FIXED_STD = 0.02
LORA_A, LORA_B = "_lora_a", "_lora_b"  # after the name of the target


def _norm(config: ModelConfig, shape: tuple[int, ...], name: str) -> Weight:
    return Weight(shape, (None,) * len(shape), fill=0.0 if config.unit_offset_norms else 1.0, name=f"{name}.weight")


def _attention(config: ModelConfig) -> dict[str, Weight]:
    D, L, H, J, h = config.width, config.layers, config.heads, config.kv_heads, config.head_width
    at, into, heads = LAYER + "self_attn.", D**-0.5, (None, "width", "kv_heads", None)
    residual = (2 * L) ** -0.5 * (H * h) ** -0.5
    return {
        "attention_norm": _norm(config, (L, D), f"{LAYER}input_layernorm"),
        "query": Weight((L, D, H, h), (None, "width", "heads", None), into, name=f"{at}q_proj.weight", inputs=1),
        "key": Weight((L, D, J, h), heads, into, name=f"{at}k_proj.weight", inputs=1),
        "value": Weight((L, D, J, h), heads, into, name=f"{at}v_proj.weight", inputs=1),
        "output": Weight((L, H, h, D), (None, "heads", None, "width"), residual, name=f"{at}o_proj.weight", inputs=2),
    }


def _feed_forward(config: ModelConfig) -> dict[str, Weight]:
    D, L, F, experts = config.width, config.layers, config.feed_forward, config.experts
    at, into, residual = LAYER + "mlp.", D**-0.5, (2 * L) ** -0.5 * F**-0.5
    inner: tuple[str | None, ...]
    outer: tuple[str | None, ...]
    before = "pre_feedforward_layernorm" if config.sandwich_norms else "post_attention_layernorm"
    norm = {"mlp_norm": _norm(config, (L, D), LAYER + before)}
    if experts is None:
        inner, outer = (None, "width", "feed_forward"), (None, "feed_forward", "width")
        return norm | {
            "gate": Weight((L, D, F), inner, into, name=f"{at}gate_proj.weight", inputs=1),
            "up": Weight((L, D, F), inner, into, name=f"{at}up_proj.weight", inputs=1),
            "down": Weight((L, F, D), outer, residual, name=f"{at}down_proj.weight", inputs=1),
        }
    E, each = experts.count, at + "experts.{expert}."
    inner, outer = (None, "experts", "width", None), (None, "experts", None, "width")
    return norm | {
        "router": Weight((L, D, E), (None, None, None), into, name=f"{at}gate.weight", inputs=1),
        "gate": Weight((L, E, D, F), inner, into, name=f"{each}gate_proj.weight", inputs=1),
        "up": Weight((L, E, D, F), inner, into, name=f"{each}up_proj.weight", inputs=1),
        "down": Weight((L, E, F, D), outer, residual, name=f"{each}down_proj.weight", inputs=1),
    }


def _norms(config: ModelConfig) -> dict[str, Weight]:
    """Those that only some families have."""
    L, D, h = config.layers, config.width, config.head_width
    table = {}
    if config.qk_norm:
        table["query_norm"] = _norm(config, (L, h), f"{LAYER}self_attn.q_norm")
        table["key_norm"] = _norm(config, (L, h), f"{LAYER}self_attn.k_norm")
    if config.sandwich_norms:
        table["attention_post_norm"] = _norm(config, (L, D), f"{LAYER}post_attention_layernorm")
        table["mlp_post_norm"] = _norm(config, (L, D), f"{LAYER}post_feedforward_layernorm")
    return table


def _biases(config: ModelConfig) -> dict[str, Weight]:
    L, D, F = config.layers, config.width, config.feed_forward
    H, J, h = config.heads, config.kv_heads, config.head_width
    table: dict[str, tuple[tuple[int, ...], tuple[str | None, ...], str]] = {}
    if config.qkv_bias:
        table["query_bias"] = (L, H, h), (None, "heads", None), "self_attn.q_proj"
        table["key_bias"] = (L, J, h), (None, "kv_heads", None), "self_attn.k_proj"
        table["value_bias"] = (L, J, h), (None, "kv_heads", None), "self_attn.v_proj"
    if config.output_bias:
        table["output_bias"] = (L, D), (None, None), "self_attn.o_proj"
    if config.mlp_bias:
        table["gate_bias"] = (L, F), (None, "feed_forward"), "mlp.gate_proj"
        table["up_bias"] = (L, F), (None, "feed_forward"), "mlp.up_proj"
        table["down_bias"] = (L, D), (None, None), "mlp.down_proj"
    return {
        path: Weight(shape, axes, fill=0.0, name=f"{LAYER}{name}.bias") for path, (shape, axes, name) in table.items()
    }


def _adapters(table: dict[str, Weight], lora: Lora) -> dict[str, Weight]:
    """A and B of every target, split over devices as the target's inputs and outputs are."""
    adapters = {}
    for target in lora.targets:
        path = f"layers/{target}"
        weight = table[path]
        cut = 1 + weight.inputs
        (L, *inputs), outputs = weight.shape[:cut], weight.shape[cut:]
        adapters[path + LORA_A] = Weight((L, *inputs, lora.rank), (*weight.axes[:cut], None), prod(inputs) ** -0.5)
        adapters[path + LORA_B] = Weight((L, lora.rank, *outputs), (None, None, *weight.axes[cut:]), fill=0.0)
    return adapters


@dataclass(frozen=True)
class Initialization:
    """How random parameters begin: with the standard deviations of the table ("fan_in"), or with 0.02 everywhere
    ("fixed", `initializer_range` of Hugging Face), either times `scale`.
    """

    scheme: Literal["fan_in", "fixed"] = "fan_in"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < inf:
            raise ValueError(f"Initialization.scale must be more than 0, and finite, not {self.scale}")

    def std(self, weight: Weight) -> Any:
        """Of a weight that is drawn."""
        return self.scale * (FIXED_STD if self.scheme == "fixed" else weight.std)


AS_DECLARED = Initialization()


def init(config: ModelConfig, key: jax.Array, initialization: Initialization = AS_DECLARED) -> dict:
    """Random float32 parameters: a nested dict with the table's paths. Each weight's noise depends on its path only."""
    return draw(weight_table(config), key, initialization)


def draw(table: Mapping[str, Weight], key: jax.Array, initialization: Initialization = AS_DECLARED) -> dict:
    """Random float32 values of the weights of a table, or of a part of it."""

    def value(path: str, weight: Weight) -> jax.Array:
        if weight.std == 0.0:
            return jnp.full(weight.shape, weight.fill, jnp.float32)
        own_key = jax.random.fold_in(key, crc32(path.encode()))
        # Drawn flat: a draw of higher rank is the same numbers and takes XLA much longer to compile.
        noise = jax.random.truncated_normal(own_key, -3.0, 3.0, (prod(weight.shape),)).reshape(weight.shape)
        return initialization.std(weight) * noise

    flat = {path: value(path, weight) for path, weight in table.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, the embedding counted once when it is tied."""
    return sum(prod(weight.shape) for weight in weight_table(config).values())
