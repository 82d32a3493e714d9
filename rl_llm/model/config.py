"""The shape of a decoder-only transformer. A model is this value plus a parameter pytree; there is no model object."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

Family = Literal["qwen2", "qwen3", "qwen3_moe", "llama", "gemma3"]

ADAPTABLE = ("query", "key", "value", "output", "gate", "up", "down")  # a layer's projections


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies stretched to more positions than a model was first trained on.

    "linear" divides all of them by `factor` (arXiv 2306.15595). "llama3" divides those whose wavelength is longer than
    original_positions / low_frequency_factor, keeps those shorter than original_positions / high_frequency_factor, and
    goes from one to the other between (Llama 3.1).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf or self.original_positions < 1:
            raise ValueError(f"RopeScaling needs a positive factor and original_positions, not {self}")
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError(f"RopeScaling needs 0 < low_frequency_factor < high_frequency_factor, not {self}")
        others = (self.low_frequency_factor, self.high_frequency_factor, self.original_positions)
        if self.kind == "linear" and others != (1.0, 4.0, 8192):
            raise ValueError(f"RopeScaling: only `factor` acts where kind is 'linear': {self}")


@dataclass(frozen=True)
class SlidingWindow:
    """The layers (indices from 0) in which a token sees the last `window` tokens only, itself included; `rope_base` is
    theirs, unscaled, where it differs from the other layers'.
    """

    window: int
    layers: tuple[int, ...]
    rope_base: float | None = None

    def __post_init__(self) -> None:
        if self.window < 1 or not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"SlidingWindow needs a window of at least 1, and rising layer indices, not {self}")
        if self.rope_base is not None and not 0 < self.rope_base < math.inf:
            raise ValueError(f"SlidingWindow.rope_base must be more than 0, and finite, not {self.rope_base}")


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of every feed-forward: a router sends each token to `per_token` of `count`
    experts, whose shares are its softmax, made to sum to 1 again where `normalized`. An expert is as wide as
    `ModelConfig.feed_forward`.
    """

    count: int
    per_token: int
    normalized: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.per_token <= self.count:
            raise ValueError(f"Experts needs 1 <= per_token <= count, not {self}")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685): each target's weight W becomes W + alpha / rank * A B, A having `rank`
    columns, and A and B alone are trained. B begins with zeros, so the policy begins as the model without adapters. A
    rank beyond the smaller side of a target adds nothing that it could learn, and is refused with the model.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ADAPTABLE

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ValueError(f"Lora needs a rank of at least 1 and an alpha more than 0, and finite, not {self}")
        unknown = [target for target in self.targets if target not in ADAPTABLE]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            wrong = f"{', '.join(unknown)} in " if unknown else ""
            raise ValueError(f"Lora.targets: {wrong}{self.targets}; they are some of {', '.join(ADAPTABLE)}, each once")

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class ModelConfig:
    """A decoder: RMSNorm, rotary positions, grouped-query attention, a gated feed-forward. The defaults are Qwen3's
    (arXiv 2505.09388): QK-norm, SwiGLU, no biases; `rl_llm.model.families` has the published models.

    family: whose names and config.json it has in a Hugging Face folder. qkv_bias, output_bias, mlp_bias: biases of the
    projections. sandwich_norms: attention and feed-forward are normalised before they are added too. unit_offset_norms:
    norms scale by 1 + weight. embedding_scale: embeddings are multiplied by sqrt(width). query_scalar: queries are
    divided by its root (None: head_width). logit_softcap c: logits x become c tanh(x / c). lora: adapters, which are
    all that is trained then.

    `compute_dtype` is the type matrix products read their inputs in; parameters, normalisations, softmax, the head and
    every accumulation stay float32. `remat` says what the backward pass computes again instead of keeping it: nothing,
    all of a layer but its input, or all but the outputs of its projections.
    """

    vocabulary: int
    width: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 32
    feed_forward: int = 256
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-6
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
    query_scalar: float | None = None
    logit_softcap: float | None = None
    sliding: SlidingWindow | None = None
    experts: Experts | None = None
    lora: Lora | None = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["nothing", "layers", "all but products"] = field(default="nothing", metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "kv_heads", "head_width", "feed_forward"):
            if getattr(self, name) < 1:
                raise ValueError(f"ModelConfig.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("rope_base", "norm_epsilon", "query_scalar", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"ModelConfig.{name} must be more than 0, and finite, not {value}")
        if self.heads % self.kv_heads:
            raise ValueError(f"ModelConfig.heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_width % 2:
            raise ValueError(f"ModelConfig.head_width must be even for rotary positions, not {self.head_width}")
        if self.sliding and self.sliding.layers[-1] >= self.layers:
            raise ValueError(f"ModelConfig.sliding.layers={self.sliding.layers}: there are {self.layers} layers")
        if self.experts and self.mlp_bias:
            raise ValueError("ModelConfig.mlp_bias=True cannot act: experts have no biases")
        in_experts = [target for target in ("gate", "up", "down") if self.lora and target in self.lora.targets]
        if self.experts and in_experts:
            raise ValueError(
                f"ModelConfig.lora.targets: {', '.join(in_experts)} are of experts here, which have no adapters: "
                "choose targets=('query', 'key', 'value', 'output')"
            )
        for target in self.lora.targets if self.lora else ():
            inputs, outputs = self.projection(target)
            if self.lora and self.lora.rank > min(inputs, outputs):
                raise ValueError(
                    f"ModelConfig.lora.rank={self.lora.rank} is more than the rank that {target} can have, which is "
                    f"{inputs} x {outputs}: at most {min(inputs, outputs)}, or leave {target} out of lora.targets"
                )

    def projection(self, target: str) -> tuple[int, int]:
        """Inputs and outputs of one of a layer's projections (of ADAPTABLE)."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        inner = {"query": queries, "key": keys, "value": keys, "output": queries}.get(target, self.feed_forward)
        return (inner, self.width) if target in ("output", "down") else (self.width, inner)

    @property
    def base(self) -> "ModelConfig":
        """The model without adapters."""
        return replace(self, lora=None)

    @property
    def stored(self) -> "ModelConfig":
        """What of it decides which parameters it has and what they mean when it is written down: adapters are merged in
        then, and how it is computed is left at the defaults.
        """
        return replace(self, lora=None, compute_dtype="float32", remat="nothing")

    def is_sliding(self, layer: int) -> bool:
        """Whether a layer (from 0) sees a window only."""
        return self.sliding is not None and layer in self.sliding.layers
