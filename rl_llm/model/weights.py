"""One table declares every weight once: shape, logical axes, initial values, and tensor name in a Hugging Face folder.

Initialization, sharding, import and export derive from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import traverse_util

from rl_llm.config.fields import Checked, PositiveFloat
from rl_llm.model.config import Lora, ModelConfig

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Weight:
    """One weight. `axes` are logical names, mapped to mesh axes by `mesh.RULES`; with `std` 0 it starts as `fill`.

    `name` is its tensor in a Hugging Face folder, or an adapter's in PEFT's. With "{layer}" and "{expert}" in it, each
    slice along the leading axes is one tensor. The first `inputs` of the other axes are a projection's input: it is
    stored as [outputs, inputs]. With `inputs` 0, slices are stored flat and unsliced weights unchanged.
    """

    shape: tuple[int, ...]
    axes: Axes
    std: float = 0.0
    fill: float = 1.0
    name: str = ""
    inputs: int = 0

    @property
    def stacked(self) -> int:
        """Number of leading axes that are cut into separate tensors."""
        return self.name.count("{")


def weight_table(config: ModelConfig) -> dict[str, Weight]:
    """All weights of a model by path. Per-layer weights are stacked on a leading layer axis, for one scan over layers.

    Standard deviations are 1/sqrt(fan in). Those of the two projections into the residual stream are also divided by
    sqrt(2 * layers), so that its variance does not grow with depth (GPT-2, section 2.3).
    """
    V, D = config.vocabulary, config.width
    table = {
        "embedding": Weight((V, D), ("vocabulary", "width"), D**-0.5, name="model.embed_tokens.weight"),
        "final_norm": _norm(config, (D,), "model.norm"),
    }
    layer = _attention(config) | _feed_forward(config) | _norms(config)
    layer |= _biases(config, layer)
    table |= {f"layers/{path}": weight for path, weight in layer.items()}
    if not config.tied_embeddings:
        table["head"] = Weight((D, V), ("width", "vocabulary"), D**-0.5, name="lm_head.weight", inputs=1)
    return table | (_adapters(table, config.lora) if config.lora else {})


LAYER = "model.layers.{layer}."
LORA_A, LORA_B = "_lora_a", "_lora_b"  # suffixes to the target's name
ADAPTED = "base_model.model."  # PEFT's prefix to the names of a model's modules


def _norm(config: ModelConfig, shape: tuple[int, ...], name: str) -> Weight:
    return Weight(shape, (None,) * len(shape), fill=0.0 if config.unit_offset_norms else 1.0, name=f"{name}.weight")


def _attention(config: ModelConfig) -> dict[str, Weight]:
    D, L, H, J, h = config.width, config.layers, config.heads, config.kv_heads, config.head_width
    at, into, kv_axes = LAYER + "self_attn.", D**-0.5, (None, "width", "kv_heads", None)
    residual = (2 * L) ** -0.5 * (H * h) ** -0.5
    return {
        "attention_norm": _norm(config, (L, D), f"{LAYER}input_layernorm"),
        "query": Weight((L, D, H, h), (None, "width", "heads", None), into, name=f"{at}q_proj.weight", inputs=1),
        "key": Weight((L, D, J, h), kv_axes, into, name=f"{at}k_proj.weight", inputs=1),
        "value": Weight((L, D, J, h), kv_axes, into, name=f"{at}v_proj.weight", inputs=1),
        "output": Weight((L, H, h, D), (None, "heads", None, "width"), residual, name=f"{at}o_proj.weight", inputs=2),
    }


def _feed_forward(config: ModelConfig) -> dict[str, Weight]:
    D, L, F, experts = config.width, config.layers, config.feed_forward, config.experts
    at, into, residual = LAYER + "mlp.", D**-0.5, (2 * L) ** -0.5 * F**-0.5
    norm = "pre_feedforward_layernorm" if config.sandwich_norms else "post_attention_layernorm"
    table = {"mlp_norm": _norm(config, (L, D), LAYER + norm)}
    lead: tuple[int, ...] = (L,)
    axes: Axes = (None,)
    hidden: str | None = "feed_forward"
    if experts is not None:
        table["router"] = Weight((L, D, experts.count), (None, None, None), into, name=f"{at}gate.weight", inputs=1)
        at, lead, axes, hidden = at + "experts.{expert}.", (L, experts.count), (None, "experts"), None
    inner, outer = (*axes, "width", hidden), (*axes, hidden, "width")
    return table | {
        "gate": Weight((*lead, D, F), inner, into, name=f"{at}gate_proj.weight", inputs=1),
        "up": Weight((*lead, D, F), inner, into, name=f"{at}up_proj.weight", inputs=1),
        "down": Weight((*lead, F, D), outer, residual, name=f"{at}down_proj.weight", inputs=1),
    }


def _norms(config: ModelConfig) -> dict[str, Weight]:
    """Norms that only some families have."""
    L, D, h = config.layers, config.width, config.head_width
    table = {}
    if config.qk_norm:
        table["query_norm"] = _norm(config, (L, h), f"{LAYER}self_attn.q_norm")
        table["key_norm"] = _norm(config, (L, h), f"{LAYER}self_attn.k_norm")
    if config.sandwich_norms:
        table["attention_post_norm"] = _norm(config, (L, D), f"{LAYER}post_attention_layernorm")
        table["mlp_post_norm"] = _norm(config, (L, D), f"{LAYER}post_feedforward_layernorm")
    return table


def _biases(config: ModelConfig, projections: dict[str, Weight]) -> dict[str, Weight]:
    """Biases like the outputs of their projections, but whole along the model's width."""
    targets = ["query", "key", "value"] if config.qkv_bias else []
    targets += ["output"] if config.output_bias else []
    targets += ["gate", "up", "down"] if config.mlp_bias else []
    table = {}
    for target in targets:
        weight = projections[target]
        outputs = 1 + weight.inputs
        axes = (None, *(None if axis == "width" else axis for axis in weight.axes[outputs:]))
        name = weight.name.removesuffix("weight") + "bias"
        table[f"{target}_bias"] = Weight((config.layers, *weight.shape[outputs:]), axes, fill=0.0, name=name)
    return table


def _adapters(table: dict[str, Weight], lora: Lora) -> dict[str, Weight]:
    """A and B of every target, sharded like the target's inputs and outputs."""
    adapters = {}
    for target in lora.targets:
        path = f"layers/{target}"
        weight = table[path]
        cut = 1 + weight.inputs
        (L, *inputs), outputs = weight.shape[:cut], weight.shape[cut:]
        first, second = (L, *inputs, lora.rank), (L, lora.rank, *outputs)
        axes = (*weight.axes[:cut], None), (None, None, *weight.axes[cut:])
        name = ADAPTED + weight.name.removesuffix("weight")
        adapters[path + LORA_A] = Weight(
            first, axes[0], prod(inputs) ** -0.5, name=f"{name}lora_A.weight", inputs=weight.inputs
        )
        adapters[path + LORA_B] = Weight(second, axes[1], fill=0.0, name=f"{name}lora_B.weight", inputs=1)
    return adapters


@dataclass(frozen=True)
class Initialization(Checked):
    """Distribution of random parameters.

    Standard deviations are those of `weight_table` ("fan_in") or 0.02 everywhere ("fixed", Hugging Face's
    `initializer_range`), times `scale`.
    """

    scheme: Literal["fan_in", "fixed"] = "fan_in"
    scale: PositiveFloat = 1.0


DEFAULT_INITIALIZATION = Initialization()


def init(config: ModelConfig, key: jax.Array, initialization: Initialization = DEFAULT_INITIALIZATION) -> dict:
    """Random float32 parameters: a nested dict with the table's paths. A weight's noise depends on its path only."""
    return draw(weight_table(config), key, initialization)


def draw(table: Mapping[str, Weight], key: jax.Array, initialization: Initialization = DEFAULT_INITIALIZATION) -> dict:
    """Random float32 values for the weights of a table, or of a part of one."""

    def value(path: str, weight: Weight) -> jax.Array:
        if weight.std == 0.0:
            return jnp.full(weight.shape, weight.fill, jnp.float32)
        own_key = jax.random.fold_in(key, crc32(path.encode()))
        # Drawn flat: a draw of higher rank gives the same numbers but takes XLA much longer to compile.
        noise = jax.random.truncated_normal(own_key, -3.0, 3.0, (prod(weight.shape),)).reshape(weight.shape)
        return initialization.scale * (0.02 if initialization.scheme == "fixed" else weight.std) * noise

    flat = {path: value(path, weight) for path, weight in table.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters; a tied embedding counts once."""
    return sum(prod(weight.shape) for weight in weight_table(config).values())
