"""A ModelConfig as the config.json of a Hugging Face folder."""

from typing import Any

from rl_llm.model.config import ModelConfig, RopeScaling
from rl_llm.model.huggingface.config import ACTIVATIONS, FAMILIES

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}


def config_to_json(config: ModelConfig, dtype: str, positions: int | None = None) -> dict[str, Any]:
    """The config.json of a model, in the spelling that old and new versions of transformers read. `positions` is the
    longest text that it is meant for; where it is not said, readers take their family's default.
    """
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": next(kind for kind, family in FAMILIES.items() if family == config.family),
        "torch_dtype": dtype,
        "max_position_embeddings": positions,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_theta": config.rope_base,
        "rope_scaling": _rope_to_json(config.rope_scaling),
        "attention_bias": config.output_bias,
    }
    activation = next(name for name, kind in ACTIVATIONS.items() if kind == config.activation)
    values["hidden_activation" if config.family == "gemma3" else "hidden_act"] = activation
    if config.family == "llama":
        values["mlp_bias"] = config.mlp_bias
    if config.experts:
        experts = config.experts
        values |= {"num_experts": experts.count, "num_experts_per_tok": experts.per_token}
        values |= {"norm_topk_prob": experts.normalized, "moe_intermediate_size": config.feed_forward}
        values |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    if config.family == "gemma3":
        values |= {"query_pre_attn_scalar": config.query_scalar, "final_logit_softcapping": config.logit_softcap}
        values |= {"rope_local_base_freq": config.sliding and config.sliding.rope_base}
    if config.family == "gemma3" or (config.sliding and not config.experts):
        kinds = ("full_attention", "sliding_attention")
        values["layer_types"] = [kinds[config.is_sliding(layer)] for layer in range(config.layers)]
    if config.sliding:
        values |= {"sliding_window": config.sliding.window, "use_sliding_window": True}
    return {name: value for name, value in values.items() if value is not None}


def _rope_to_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_positions,
    }
