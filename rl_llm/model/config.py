"""The shape of a decoder-only transformer. A model is this value plus a parameter pytree; there is no model object."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """A Qwen3-style decoder: RMSNorm, rotary positions, QK-norm, grouped-query attention, SwiGLU (arXiv 2505.09388).

    `compute_dtype` is the type matrix products read their inputs in; parameters, normalisations, softmax, the head
    and every accumulation stay float32.
    """

    vocabulary: int
    width: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 32
    feed_forward: int = 256
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    qk_norm: bool = True
    tied_embeddings: bool = True
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "kv_heads", "head_width", "feed_forward"):
            if getattr(self, name) < 1:
                raise ValueError(f"ModelConfig.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("rope_base", "norm_epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"ModelConfig.{name} must be more than 0, and finite, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"ModelConfig.heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_width % 2:
            raise ValueError(f"ModelConfig.head_width must be even for rotary positions, not {self.head_width}")
