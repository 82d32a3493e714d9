"""ModelConfig -> config.json of a Hugging Face folder."""

from typing import Any

from rl_llm.model.config import ModelConfig, YarnScaling
from rl_llm.model.huggingface.config_json import (
    ACTIVATIONS,
    FORMATS,
    FULL,
    ORIGINAL,
    ROPE_PARAMETERS,
    SIZES,
    SLIDING,
)

YARN_OPTIONS = ("beta_fast", "beta_slow", "attention_factor", "truncate")  # both in config.json and in YarnScaling


def config_to_json(config: ModelConfig, dtype: str, max_positions: int | None = None) -> dict[str, Any]:
    """Write a config.json, in the spelling that old and new versions of transformers read.

    `max_positions`: longest text in tokens that the model is meant for; without it, readers take the family's default.
    """
    values: dict[str, Any] = {name: getattr(config, field) for field, name in SIZES.items()}
    values |= {
        "architectures": [FORMATS[config.family].architecture],
        "model_type": FORMATS[config.family].model_type,
        "torch_dtype": dtype,
        "max_position_embeddings": max_positions,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_theta": config.rope_base,
        "attention_bias": config.output_bias,
    }
    if scaling := config.rope_scaling:
        kind = "yarn" if isinstance(scaling, YarnScaling) else scaling.kind
        parameters = {name: getattr(scaling, field) for name, field in ROPE_PARAMETERS[kind].items()}
        if kind == "yarn":
            usual = YarnScaling(scaling.factor, parameters[ORIGINAL])
            options = {name: getattr(scaling, name) for name in YARN_OPTIONS}
            parameters |= {name: value for name, value in options.items() if value != getattr(usual, name)}
        values["rope_scaling"] = {"rope_type": kind, **parameters}
    activation = next(name for name, kind in ACTIVATIONS.items() if kind == config.activation)
    values["hidden_activation" if config.family == "gemma3" else "hidden_act"] = activation
    if config.family == "llama":
        values["mlp_bias"] = config.mlp_bias
    if experts := config.experts:
        values |= {"num_experts": experts.count, "num_experts_per_tok": experts.per_token}
        values |= {"norm_topk_prob": experts.normalized, "moe_intermediate_size": config.feed_forward}
        values |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    if config.family == "gemma3":
        values |= {"query_pre_attn_scalar": config.query_scalar, "final_logit_softcapping": config.logit_softcap}
        values |= {"rope_local_base_freq": config.sliding and config.sliding.rope_base}
    if config.family == "gemma3" or (config.sliding and not config.experts):
        values["layer_types"] = [SLIDING if config.is_sliding(layer) else FULL for layer in range(config.layers)]
    if config.sliding:
        values |= {"sliding_window": config.sliding.window, "use_sliding_window": True}
    return {name: value for name, value in values.items() if value is not None}
