"""The shape of a decoder-only transformer. A model is this value plus a parameter pytree; there is no model object."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from msgspec import Meta

from rl_llm.config.fields import Checked, NonNegativeInt, PositiveFloat, PositiveInt, check_fields

Family = Literal["qwen2", "qwen3", "qwen3_moe", "llama", "gemma3"]

ADAPTABLE = ("query", "key", "value", "output", "gate", "up", "down")  # a layer's projections


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies rescaled to read longer texts than a model was first trained on.

    "linear" divides every frequency by `factor` (arXiv 2306.15595). "llama3" (Llama 3.1) divides frequencies with
    wavelengths above original_positions / low_frequency_factor, keeps those with wavelengths below
    original_positions / high_frequency_factor, and interpolates in between.
    """

    kind: Literal["linear", "llama3"]
    factor: PositiveFloat
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: PositiveInt = 8192

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError(f"{self}: expected 0 < low_frequency_factor < high_frequency_factor")
        others = (self.low_frequency_factor, self.high_frequency_factor, self.original_positions)
        if self.kind == "linear" and others != (1.0, 4.0, 8192):
            raise ValueError(f"{self}: only `factor` acts if kind is 'linear'; leave the other fields out")


@dataclass(frozen=True)
class YarnScaling(Checked):
    """Rotary frequencies rescaled by YaRN (arXiv 2309.00071, 3.2 to 3.4), as Qwen's models read long texts.

    A frequency with more than `beta_fast` turns over `original_positions` is kept, one with less than `beta_slow` is
    divided by `factor`, and those in between are interpolated. `truncate` widens that range to whole frequencies.
    Queries and keys are multiplied by `attention_factor` (None: 0.1 ln(factor) + 1).
    """

    factor: Annotated[float, Meta(ge=1)]
    original_positions: PositiveInt
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: PositiveFloat | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_slow > self.beta_fast:
            raise ValueError(f"{self}: expected beta_slow <= beta_fast")


@dataclass(frozen=True)
class SlidingWindow:
    """Layers whose tokens attend to the last `window` tokens only, themselves included.

    `layers` are indices from 0. `rope_base` is the rotary base of these layers, unscaled; None: same as the others.
    """

    window: PositiveInt
    layers: tuple[NonNegativeInt, ...]
    rope_base: PositiveFloat | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"SlidingWindow.layers={self.layers} is wrong; expected one or more rising indices")


@dataclass(frozen=True)
class Experts:
    """A mixture of experts that replaces every feed-forward block.

    A router sends each token to `per_token` of `count` experts and weights them by its softmax, renormalised to sum
    to 1 if `normalized`. Each expert is `ModelConfig.feed_forward` wide.
    """

    count: PositiveInt
    per_token: PositiveInt
    normalized: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.per_token > self.count:
            raise ValueError(f"Experts.per_token={self.per_token} is more than count={self.count}")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685), the only trained parameters of a model that has them.

    Each target weight W becomes W + alpha / rank * A B, where A has `rank` columns. B starts at zero, so the policy
    starts as the model without adapters. ModelConfig refuses a rank above the smaller side of a target: the excess
    could learn nothing.
    """

    rank: PositiveInt
    alpha: PositiveFloat
    targets: tuple[str, ...] = ADAPTABLE

    def __post_init__(self) -> None:
        check_fields(self)
        unknown = [target for target in self.targets if target not in ADAPTABLE]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            wrong = f" with unknown {', '.join(unknown)}" if unknown else ""
            raise ValueError(
                f"Lora.targets is {self.targets}{wrong}; expected one or more of {', '.join(ADAPTABLE)}, each once"
            )

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class ModelConfig:
    """A decoder with RMSNorm, rotary positions, grouped-query attention and a gated feed-forward.

    The defaults are Qwen3's (arXiv 2505.09388): QK-norm, SwiGLU, no biases. `rl_llm.model.families` has the published
    models.

    family: tensor names and config.json of its Hugging Face folder. qkv_bias, output_bias, mlp_bias: biases of the
    projections. sandwich_norms: also normalise the outputs of attention and feed-forward. unit_offset_norms: norms
    scale by 1 + weight. embedding_scale: multiply embeddings by sqrt(width). query_scalar: divide queries by its root
    (None: head_width). logit_softcap c: logits x become c tanh(x / c). lora: adapters, the only trained parameters.

    compute_dtype: input type of matrix products. Parameters, norms, softmax, the head and all accumulation stay
    float32. remat: recompute in the backward pass nothing, all of a layer but its input, or all but the outputs of its
    projections.
    """

    vocabulary: PositiveInt
    width: PositiveInt = 96
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    head_width: PositiveInt = 32
    feed_forward: PositiveInt = 256
    rope_base: PositiveFloat = 10_000.0
    rope_scaling: RopeScaling | YarnScaling | None = None
    norm_epsilon: PositiveFloat = 1e-6
    qk_norm: bool = True
    tied_embeddings: bool = True
    family: Family = "qwen3"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    sandwich_norms: bool = False
    unit_offset_norms: bool = False
    embedding_scale: bool = False
    query_scalar: PositiveFloat | None = None
    logit_softcap: PositiveFloat | None = None
    sliding: SlidingWindow | None = None
    experts: Experts | None = None
    lora: Lora | None = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["nothing", "layers", "all but products"] = field(default="nothing", metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        check_fields(self)
        if self.heads % self.kv_heads:
            raise ValueError(f"ModelConfig.heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_width % 2:
            raise ValueError(f"ModelConfig.head_width must be even for rotary positions, not {self.head_width}")
        if self.sliding and self.sliding.layers[-1] >= self.layers:
            raise ValueError(f"ModelConfig.sliding.layers is {self.sliding.layers}; the model has {self.layers} layers")
        if self.experts and self.mlp_bias:
            raise ValueError("ModelConfig.mlp_bias=True cannot act: experts have no biases")
        if self.lora:
            self._check_adapters(self.lora)

    def _check_adapters(self, lora: Lora) -> None:
        expert_targets = [target for target in ("gate", "up", "down") if target in lora.targets]
        if self.experts and expert_targets:
            raise ValueError(
                f"ModelConfig.lora.targets has {', '.join(expert_targets)}, but experts have no adapters: "
                "choose targets=('query', 'key', 'value', 'output')"
            )
        for target in lora.targets:
            inputs, outputs = self.projection_shape(target)
            if lora.rank > min(inputs, outputs):
                raise ValueError(
                    f"ModelConfig.lora.rank={lora.rank} is more than the rank of {target}, {inputs} x {outputs}: "
                    f"choose at most {min(inputs, outputs)}, or leave {target} out of lora.targets"
                )

    def projection_shape(self, target: str) -> tuple[int, int]:
        """Input and output width of one of a layer's projections (of ADAPTABLE)."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        inner = {"query": queries, "key": keys, "value": keys, "output": queries}.get(target, self.feed_forward)
        return (inner, self.width) if target in ("output", "down") else (self.width, inner)

    @property
    def base(self) -> "ModelConfig":
        """The model without adapters."""
        return replace(self, lora=None)

    @property
    def stored(self) -> "ModelConfig":
        """The part of the config that a folder of weights determines.

        Adapters are merged before weights are written, and `compute_dtype` and `remat` are at their defaults.
        """
        return replace(self, lora=None, compute_dtype="float32", remat="nothing")

    def is_sliding(self, layer: int) -> bool:
        """Whether a layer (from 0) has a sliding window."""
        return self.sliding is not None and layer in self.sliding.layers
