"""config.json of a Hugging Face folder as a ModelConfig, and back. What we do not implement is refused by name."""

from collections.abc import Mapping
from typing import Any

from rl_llm.model.config import Experts, Family, ModelConfig, RopeScaling, SlidingWindow

FAMILIES: dict[str, Family] = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "llama": "llama",
    "gemma3_text": "gemma3",
}
ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# Fields that change nothing in what a model computes from given tokens.
WITHOUT_EFFECT = frozenset(
    {
        "architectures",
        "model_type",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "_name_or_path",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "use_cache",
        "initializer_range",
        "max_position_embeddings",
        "output_router_logits",
        "router_aux_loss_coef",
        "pretraining_tp",
        "cache_implementation",
    }
)

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


class ConfigError(ValueError):
    """A config.json that describes no model of ours. The message names the field, and its value."""


class _Fields:
    """The fields of a config.json; each is taken once, so that what is left was not understood."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], place: str) -> None:
        self._values, self._defaults, self._place = dict(values), defaults, place

    def take(self, name: str, default: Any = None) -> Any:
        """Its value; the family's default, or this one, where it is missing or null."""
        value = self._values.pop(name, None)
        return self._defaults.get(name, default) if value is None else value

    def need(self, name: str) -> Any:
        """Its value; ConfigError where there is none."""
        value = self.take(name)
        if value is None:
            raise ConfigError(f"{self._place} has no field {name!r}")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Refuse a value that is neither missing nor one of these."""
        value = self.take(name)
        if value is not None and value not in allowed:
            raise self.refuse(name, value, f"only {' or '.join(map(repr, allowed))}")

    def refuse(self, name: str, value: Any, implemented: str) -> ConfigError:
        return ConfigError(f"{self._place}: {name}={value!r} is not implemented: {implemented}")

    def finish(self) -> None:
        """Refuse what was not taken, unless it is off or has no effect."""
        left = {n: v for n, v in self._values.items() if n not in WITHOUT_EFFECT and v not in (None, False)}
        if left:
            shown = ", ".join(f"{name}={value!r}" for name, value in sorted(left.items()))
            raise ConfigError(f"{self._place}: fields that are not implemented: {shown}")


def config_from_json(values: Mapping[str, Any], place: str = "config.json") -> ModelConfig:
    """Raises ConfigError for a family, a field or a value that is not implemented, ValueError for sizes that fit no
    model.
    """
    kind = values.get("model_type")
    if kind == "gemma3":  # text and images: the text part is a model of its own
        return config_from_json({"model_type": "gemma3_text", **values.get("text_config", {})}, f"{place}: text_config")
    if kind not in FAMILIES:
        raise ConfigError(f"{place}: model_type={kind!r} is not implemented; there are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    fields = _Fields(values, COMMON | DEFAULTS[family], place)
    layers, heads, width = (fields.need(n) for n in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    given = {
        "family": family,
        "vocabulary": fields.need("vocab_size"),
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": fields.take("num_key_value_heads", heads),
        "head_width": fields.take("head_dim", width // heads),
        "feed_forward": fields.need("intermediate_size"),
        "norm_epsilon": float(fields.take("rms_norm_eps")),
        "tied_embeddings": fields.take("tie_word_embeddings", family == "gemma3"),
        "activation": _activation(fields, family),
    }
    fields.expect("attention_dropout", 0.0)
    given |= _of_family(fields, family) | _attention_fields(fields, family, layers)
    fields.finish()
    return ModelConfig(**given)


def _activation(fields: _Fields, family: Family) -> str:
    name = "hidden_activation" if family == "gemma3" else "hidden_act"
    value = fields.take(name, "gelu_pytorch_tanh" if family == "gemma3" else "silu")
    if value not in ACTIVATIONS:
        raise fields.refuse(name, value, f"only {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def _of_family(fields: _Fields, family: Family) -> dict[str, Any]:
    """What one family has and others have not."""
    bias = fields.take("attention_bias", False)
    given: dict[str, Any] = {
        "qk_norm": family in ("qwen3", "qwen3_moe", "gemma3"),
        "qkv_bias": family == "qwen2" or bias,
        "output_bias": bias and family != "qwen2",
    }
    if family == "llama":
        given["mlp_bias"] = fields.take("mlp_bias", False)
    if family == "qwen3_moe":
        count = fields.take("num_experts") or fields.take("num_local_experts")
        if count is None:
            raise ConfigError("config.json has neither num_experts nor num_local_experts")
        normalized = fields.take("norm_topk_prob", False)
        given["experts"] = Experts(count, fields.need("num_experts_per_tok"), normalized)
        given["feed_forward"] = fields.need("moe_intermediate_size")
        fields.expect("decoder_sparse_step", 1)
        fields.expect("mlp_only_layers", [])
    if family == "gemma3":
        fields.expect("use_bidirectional_attention", False)
        given |= {"sandwich_norms": True, "unit_offset_norms": True, "embedding_scale": True}
        given["query_scalar"] = float(fields.take("query_pre_attn_scalar", 256))
        fields.take("attn_logit_softcapping")  # left over from Gemma 2: no implementation of this family applies it
        given["logit_softcap"] = fields.take("final_logit_softcapping")
    return given


def _attention_fields(fields: _Fields, family: Family, layers: int) -> dict[str, Any]:
    """Rotary positions and sliding windows, in the old spelling or the new."""
    rope = fields.take("rope_parameters")
    old, base = fields.take("rope_scaling"), float(fields.take("rope_theta"))
    local = fields.take("rope_local_base_freq", 10_000.0) if family == "gemma3" else None
    if rope is None:
        rope = {"rope_theta": base, **(old or {})}
    elif "full_attention" in rope or "sliding_attention" in rope:
        of_local = dict(rope.get("sliding_attention") or {})
        local, scaling = _rope(of_local, local or base)
        if scaling is not None:
            raise fields.refuse("rope_parameters.sliding_attention", of_local, "its rope_type must be 'default'")
        rope = rope.get("full_attention") or {}
    base, scaling = _rope(dict(rope), base)
    sliding = _sliding_layers(fields, family, layers)
    window = fields.take("sliding_window", 4096 if sliding and family == "gemma3" else None)
    if not sliding:
        return {"rope_base": base, "rope_scaling": scaling}
    if window is None:
        raise ConfigError("config.json has sliding layers, but no sliding_window")
    return {"rope_base": base, "rope_scaling": scaling, "sliding": SlidingWindow(window, sliding, local)}


def _rope(values: dict[str, Any], base: float) -> tuple[float, RopeScaling | None]:
    """Base and scaling from rope parameters; ConfigError for a kind or a parameter that is not implemented."""
    base = float(values.pop("rope_theta", base))
    kinds = [values.pop(name) for name in ("rope_type", "type") if name in values]
    kind = kinds[0] if kinds else "default"
    names = {
        "default": {},
        "linear": {"factor": "factor"},
        "llama3": {
            "factor": "factor",
            "low_freq_factor": "low_frequency_factor",
            "high_freq_factor": "high_frequency_factor",
            "original_max_position_embeddings": "original_positions",
        },
    }
    if kind not in names:
        raise ConfigError(f"config.json: rope_type={kind!r} is not implemented; there are {', '.join(names)}")
    unknown = sorted(set(values) - set(names[kind]))
    if unknown and any(values[name] is not None for name in unknown):
        raise ConfigError(f"config.json: rope parameters {unknown} are not implemented for rope_type={kind!r}")
    if kind == "default":
        return base, None
    missing = sorted(set(names[kind]) - set(values))
    if missing:
        raise ConfigError(f"config.json: rope_type={kind!r} needs {', '.join(missing)}")
    given = {names[kind][name]: values[name] for name in names[kind]}
    return base, RopeScaling(kind, **{n: v if n == "original_positions" else float(v) for n, v in given.items()})  # type: ignore[arg-type]


def _sliding_layers(fields: _Fields, family: Family, layers: int) -> tuple[int, ...]:
    kinds = fields.take("layer_types")
    pattern = fields.take("sliding_window_pattern") or fields.take("_sliding_window_pattern") or 6
    fields.take("_sliding_window_pattern")
    on, first = fields.take("use_sliding_window", False), fields.take("max_window_layers", layers)
    if kinds is not None:
        unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if unknown or len(kinds) != layers:
            raise fields.refuse("layer_types", kinds, f"{layers} of full_attention or sliding_attention")
        return tuple(index for index, kind in enumerate(kinds) if kind == "sliding_attention")
    if family == "gemma3":
        return tuple(index for index in range(layers) if (index + 1) % pattern)
    return tuple(range(first, layers)) if on and family.startswith("qwen") else ()


def config_to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a model, in the spelling that old and new versions of transformers read."""
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": next(kind for kind, family in FAMILIES.items() if family == config.family),
        "torch_dtype": dtype,
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
    if config.sliding or config.family == "gemma3":
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
