"""config.json of a Hugging Face folder as a ModelConfig. What we do not implement is refused by name."""

from collections.abc import Mapping
from typing import Any

from rl_llm.model.config import Experts, Family, ModelConfig
from rl_llm.model.huggingface.config_attention import rope_and_windows
from rl_llm.model.huggingface.config_fields import ConfigError, Fields

FAMILIES: dict[str, Family] = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "llama": "llama",
    "gemma3_text": "gemma3",
}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# What a field is where config.json leaves it out; None where it must be there.
COMMON: dict[str, Any] = {
    "vocab_size": None,
    "hidden_size": None,
    "intermediate_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"head_dim": 128},
    "llama": {},
    "gemma3": {
        "head_dim": 256,
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "rope_theta": 1_000_000.0,
    },
}


def config_from_json(values: Mapping[str, Any], place: str = "config.json") -> ModelConfig:
    """Raises ConfigError for a family, a field or a value that is not implemented, ValueError for sizes that fit no
    model.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place} holds {type(values).__name__}, not an object with fields")
    kind = values.get("model_type")
    if kind == "gemma3":  # text and images: the text part is a model of its own
        text = values.get("text_config")
        if not isinstance(text, Mapping):
            raise ConfigError(f"{place}: text_config must be an object with fields, not {text!r}")
        tied = {"tie_word_embeddings": values.get("tie_word_embeddings")}
        return config_from_json({**tied, **text, "model_type": "gemma3_text"}, f"{place}: text_config")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(f"{place}: model_type={kind!r} is not implemented; there are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    fields = Fields(values, COMMON | DEFAULTS[family], place)
    layers, heads, width = (fields.count(n) for n in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    given: dict[str, Any] = {
        "family": family,
        "vocabulary": fields.count("vocab_size"),
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": fields.count("num_key_value_heads", heads),
        "head_width": fields.count("head_dim", width // heads),
        "feed_forward": fields.count("intermediate_size"),
        "norm_epsilon": fields.number("rms_norm_eps"),
        "tied_embeddings": fields.flag("tie_word_embeddings", family == "gemma3"),
        "activation": _activation(fields, family),
    }
    fields.expect("attention_dropout", 0.0)
    given |= _of_family(fields, family) | rope_and_windows(fields, family, layers)
    fields.finish()
    try:
        return ModelConfig(**given)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from error


def _activation(fields: Fields, family: Family) -> str:
    name = "hidden_activation" if family == "gemma3" else "hidden_act"
    value = fields.take(name, "gelu_pytorch_tanh" if family == "gemma3" else "silu")
    if value not in tuple(ACTIVATIONS):  # a list could not be looked up
        raise fields.refuse(name, value, f"only {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def _of_family(fields: Fields, family: Family) -> dict[str, Any]:
    """What one family has and others have not."""
    bias = fields.flag("attention_bias")
    given: dict[str, Any] = {
        "qk_norm": family in ("qwen3", "qwen3_moe", "gemma3"),
        "qkv_bias": family == "qwen2" or bias,
        "output_bias": bias and family != "qwen2",
    }
    if family == "llama":
        given["mlp_bias"] = fields.flag("mlp_bias")
    if family == "qwen3_moe":
        newer = fields.take("num_local_experts")  # the same under another name
        count = fields.count("num_experts", newer)
        per_token, normalized = fields.count("num_experts_per_tok"), fields.flag("norm_topk_prob")
        if per_token > count:
            raise fields.refuse("num_experts_per_tok", per_token, f"there are {count} experts")
        given["experts"] = Experts(count, per_token, normalized)
        given["feed_forward"] = fields.count("moe_intermediate_size")
        fields.expect("decoder_sparse_step", 1)
        fields.expect("mlp_only_layers", [])
    if family == "gemma3":
        fields.expect("use_bidirectional_attention", False)
        given |= {"sandwich_norms": True, "unit_offset_norms": True, "embedding_scale": True}
        given["query_scalar"] = fields.number("query_pre_attn_scalar", 256.0)
        fields.take("attn_logit_softcapping")  # left over from Gemma 2: no implementation of this family applies it
        cap = "final_logit_softcapping"
        given["logit_softcap"] = None if fields.peek(cap) is None else fields.number(cap)
    return given
