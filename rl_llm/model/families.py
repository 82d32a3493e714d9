"""The published models as values, with the sizes of their config.json on the Hugging Face hub."""

from dataclasses import replace
from typing import Any

from rl_llm.model.config import Experts, ModelConfig, RopeScaling, SlidingWindow

# Qwen3 (arXiv 2505.09388, table 1). The Base models have the same shapes.
_QWEN3 = ModelConfig(
    family="qwen3",
    vocabulary=151_936,
    head_width=128,
    rope_base=1_000_000.0,
    norm_epsilon=1e-6,
    tied_embeddings=False,
    compute_dtype="bfloat16",
)
QWEN3_0_6B = replace(_QWEN3, width=1024, layers=28, heads=16, kv_heads=8, feed_forward=3072, tied_embeddings=True)
QWEN3_1_7B = replace(QWEN3_0_6B, width=2048, feed_forward=6144)
QWEN3_4B = replace(_QWEN3, width=2560, layers=36, heads=32, kv_heads=8, feed_forward=9728, tied_embeddings=True)
QWEN3_8B = replace(_QWEN3, width=4096, layers=36, heads=32, kv_heads=8, feed_forward=12_288)
QWEN3_14B = replace(_QWEN3, width=5120, layers=40, heads=40, kv_heads=8, feed_forward=17_408)
QWEN3_32B = replace(_QWEN3, width=5120, layers=64, heads=64, kv_heads=8, feed_forward=25_600)
_QWEN3_MOE = replace(_QWEN3, family="qwen3_moe", experts=Experts(count=128, per_token=8))
QWEN3_30B_A3B = replace(_QWEN3_MOE, width=2048, layers=48, heads=32, kv_heads=4, feed_forward=768)

# Qwen2.5 (arXiv 2412.15115, table 1).
_QWEN2_5 = replace(_QWEN3, family="qwen2", qk_norm=False, qkv_bias=True, tied_embeddings=True)
QWEN2_5_0_5B = replace(_QWEN2_5, width=896, layers=24, heads=14, kv_heads=2, head_width=64, feed_forward=4864)
QWEN2_5_1_5B = replace(_QWEN2_5, width=1536, layers=28, heads=12, kv_heads=2, feed_forward=8960)
QWEN2_5_3B = replace(_QWEN2_5, width=2048, layers=36, heads=16, kv_heads=2, feed_forward=11_008)
_QWEN2_5_UNTIED = replace(_QWEN2_5, vocabulary=152_064, tied_embeddings=False)
QWEN2_5_7B = replace(_QWEN2_5_UNTIED, width=3584, layers=28, heads=28, kv_heads=4, feed_forward=18_944)
# Base models. Some instruction-tuned ones have an epsilon of 1e-6.
_QWEN2_5_LARGE = replace(_QWEN2_5_UNTIED, heads=40, kv_heads=8, norm_epsilon=1e-5)
QWEN2_5_14B = replace(_QWEN2_5_LARGE, width=5120, layers=48, feed_forward=13_824)
QWEN2_5_32B = replace(_QWEN2_5_LARGE, width=5120, layers=64, feed_forward=27_648)
QWEN2_5_72B = replace(_QWEN2_5_LARGE, width=8192, layers=80, heads=64, feed_forward=29_568)

# Llama 3.1 and 3.2 (arXiv 2407.21783, table 3).
_LLAMA3 = replace(_QWEN3, family="llama", vocabulary=128_256, qk_norm=False, rope_base=500_000.0, norm_epsilon=1e-5)
_LLAMA3_2 = replace(_LLAMA3, rope_scaling=RopeScaling("llama3", factor=32.0), tied_embeddings=True)
LLAMA3_2_1B = replace(_LLAMA3_2, width=2048, layers=16, heads=32, kv_heads=8, head_width=64, feed_forward=8192)
LLAMA3_2_3B = replace(_LLAMA3_2, width=3072, layers=28, heads=24, kv_heads=8, feed_forward=8192)
_LLAMA3_1 = replace(_LLAMA3, rope_scaling=RopeScaling("llama3", factor=8.0))
LLAMA3_1_8B = replace(_LLAMA3_1, width=4096, layers=32, heads=32, kv_heads=8, feed_forward=14_336)


# Gemma 3 (arXiv 2503.19786, section 2), the text models. All but the smallest are published with a vision tower.
_GEMMA3 = replace(
    _QWEN3,
    family="gemma3",
    vocabulary=262_208,
    head_width=256,
    query_scalar=256.0,
    rope_scaling=RopeScaling("linear", factor=8.0),
    activation="gelu_tanh",
    sandwich_norms=True,
    unit_offset_norms=True,
    embedding_scale=True,
    tied_embeddings=True,
)


def _gemma3(layers: int, window: int, **sizes: Any) -> ModelConfig:
    """A Gemma 3 model: every sixth layer has no window."""
    local = tuple(layer for layer in range(layers) if (layer + 1) % 6)
    return replace(_GEMMA3, layers=layers, sliding=SlidingWindow(window, local, rope_base=10_000.0), **sizes)


_SMALLEST: dict[str, Any] = {"vocabulary": 262_144, "rope_scaling": None}
GEMMA3_1B = _gemma3(26, 512, width=1152, heads=4, kv_heads=1, feed_forward=6912, **_SMALLEST)
GEMMA3_4B = _gemma3(34, 1024, width=2560, heads=8, kv_heads=4, feed_forward=10_240)
GEMMA3_12B = _gemma3(48, 1024, width=3840, heads=16, kv_heads=8, feed_forward=15_360)
GEMMA3_27B = _gemma3(
    62, 1024, width=5376, heads=32, kv_heads=16, head_width=128, feed_forward=21_504, query_scalar=168.0
)
