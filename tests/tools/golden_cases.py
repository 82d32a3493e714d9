"""Config fields of the tiny models that `make_golden.py` makes.

Each has fewer key/value heads than query heads, and rope parameters that matter within 20 positions.
"""

import random
from typing import Any

ConfigFields = dict[str, Any]

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}  # stretches wavelengths above 64, keeps those below 16
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}  # stretches, blends and keeps
YARN_OPTIONS = {"beta_fast": 3.0, "beta_slow": 0.7, "truncate": False, "mscale": 1.5, "mscale_all_dim": 0.5}
SMOLLM2_EXTRA = {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def sizes(width: int, layers: int, heads: int, kv_heads: int, feed_forward: int, vocabulary: int) -> ConfigFields:
    """Fields that all families share."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": feed_forward,
        "vocab_size": vocabulary,
        "max_position_embeddings": 256,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def gemma_rope(local: float, whole: float, **scaling: Any) -> ConfigFields:
    """Rope parameters of Gemma 3's local and global layers; `scaling` is for the global ones."""
    return {
        LOCAL: {"rope_type": "default", "rope_theta": local},
        GLOBAL: {"rope_type": "default", "rope_theta": whole} | scaling,
    }


CASES: dict[str, ConfigFields] = {
    "qwen2": sizes(32, 2, 4, 2, 40, 71)
    | {"model_type": "qwen2", "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1000.0}},
    "qwen3": sizes(32, 2, 4, 2, 40, 79)
    | {"model_type": "qwen3", "head_dim": 10, "rope_parameters": {"rope_theta": 1000000.0}, "rms_norm_eps": 1e-5},
    "qwen3_tied": sizes(24, 2, 4, 2, 32, 90)
    | {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True, "eos_token_id": [1, 3]},
    "qwen3_moe": sizes(24, 2, 4, 2, 48, 64)
    | {"model_type": "qwen3_moe", "head_dim": 8, "num_experts": 8, "num_experts_per_tok": 3}
    | {"moe_intermediate_size": 10, "norm_topk_prob": True, "router_aux_loss_coef": 0.01},
    "llama": sizes(32, 2, 4, 2, 40, 65)
    | {"model_type": "llama", "rope_parameters": {"rope_theta": 1000.0, **LLAMA3}, "rms_norm_eps": 1e-5},
    "qwen3_yarn": sizes(32, 2, 4, 2, 40, 73)
    | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True}
    | {"rope_parameters": {"rope_theta": 1000.0, **YARN}},
    "llama_yarn": sizes(32, 2, 4, 2, 40, 67)
    | {"model_type": "llama", "head_dim": 12, "rope_parameters": {"rope_theta": 300.0, **YARN, **YARN_OPTIONS}},
    "smollm2": sizes(36, 2, 9, 3, 40, 68)
    | {"model_type": "llama", "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 100000.0}}
    | {"rms_norm_eps": 1e-5, **SMOLLM2_EXTRA},
    "gemma3": sizes(16, 7, 2, 1, 24, 80)
    | {"model_type": "gemma3_text", "head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 24}
    | {"rope_parameters": gemma_rope(10000.0, 1000000.0)},
    "gemma3_scaled": sizes(24, 4, 4, 2, 24, 66)
    | {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
    | {"layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL], "final_logit_softcapping": 8.0}
    | {"rope_parameters": gemma_rope(500.0, 20000.0, rope_type="linear", factor=8.0)},
}
SHARDED = {"qwen3": "24KB"}  # largest file
OLD_SPELLING = frozenset(
    {"qwen3_tied", "gemma3_scaled", "qwen3_yarn", "smollm2"}
)  # their config.json is rewritten as older versions wrote it


def random_cases(seed: int, count: int) -> tuple[dict[str, ConfigFields], dict[str, str], frozenset[str]]:
    """Random configurations of all families: (cases, sharded, in the old spelling) as above."""
    draw = random.Random(seed)
    families = ["qwen2", "qwen3", "qwen3_moe", "llama", "gemma3_text"]
    cases = {}
    for index in range(count):
        family = families[index % len(families)]
        cases[f"{index:02d}_{family}"] = random_fields(draw, family)
    return cases, {name: "30KB" for name in list(cases)[::4]}, frozenset(list(cases)[1::2])


def random_fields(draw: random.Random, family: str) -> ConfigFields:
    """One random configuration of a family."""
    kv_heads = draw.choice([1, 2, 3])
    heads = kv_heads * draw.choice([2, 3])
    fields = sizes(heads * draw.choice([6, 8, 10]), draw.choice([1, 2, 3, 4]), heads, kv_heads, 0, 0)
    fields |= {"model_type": family, "intermediate_size": draw.choice([24, 36, 64]), "vocab_size": draw.randint(64, 97)}
    fields |= {"tie_word_embeddings": draw.random() < 0.5, "rms_norm_eps": draw.choice([1e-6, 1e-5])}
    theta = draw.choice([500.0, 10000.0, 500000.0])
    if family != "qwen2":
        fields |= {"head_dim": draw.choice([8, 14, 16]), "attention_bias": draw.random() < 0.5}
    if family == "qwen2":
        fields["hidden_size"] = heads * draw.choice([6, 8, 10])
    if family == "llama":
        fields["rope_parameters"] = {
            "rope_theta": draw.choice([300.0, 3000.0]),
            **LLAMA3,
            "factor": draw.choice([2.0, 8.0]),
        }
        fields["rope_parameters"] |= {"original_max_position_embeddings": draw.choice([40, 80])}
        fields["rope_parameters"] |= {"high_freq_factor": draw.choice([3.0, 4.0])}
    elif family == "gemma3_text":
        scaled = {"rope_type": "linear", "factor": draw.choice([4.0, 8.0])} if draw.random() < 0.5 else {}
        fields |= {"rope_parameters": gemma_rope(draw.choice([500.0, 10000.0]), theta, **scaled)}
        fields |= {"num_hidden_layers": draw.choice([6, 8]), "sliding_window": draw.choice([3, 6])}
        fields |= {"query_pre_attn_scalar": draw.choice([8, 20])}
        fields |= {"final_logit_softcapping": draw.choice([None, 10.0])}
    else:
        fields["rope_parameters"] = {"rope_theta": theta} | (random_yarn(draw) if draw.random() < 0.5 else {})
    if family == "qwen3_moe":
        experts = draw.choice([4, 6, 12])
        fields |= {"num_experts": experts, "num_experts_per_tok": draw.choice([1, 2, experts])}
        fields |= {"norm_topk_prob": draw.random() < 0.5, "moe_intermediate_size": draw.choice([8, 20])}
    return fields


def random_yarn(draw: random.Random) -> ConfigFields:
    """Random parameters of YaRN; each that may be left out is in half of the cases."""
    yarn = YARN | {"factor": draw.choice([1.0, 2.0, 8.0]), "original_max_position_embeddings": draw.choice([8, 16, 64])}
    options = YARN_OPTIONS | {"attention_factor": 1.3, "beta_fast": draw.choice([2.0, 10.0])}
    return yarn | {name: value for name, value in options.items() if draw.random() < 0.5}
