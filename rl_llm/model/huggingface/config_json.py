"""config.json of a Hugging Face folder -> ModelConfig. Anything not implemented is refused by name.

`rl_llm.export.config_json` writes it, by the same tables of names.
"""

from collections.abc import Mapping
from math import isclose
from typing import Any, NamedTuple

import numpy as np

from rl_llm.model.config import Experts, Family, ModelConfig, RopeScaling, SlidingWindow, YarnScaling
from rl_llm.model.huggingface.config_fields import ConfigError, ConfigFields, as_object
from rl_llm.model.layers import yarn_magnitude


class FamilyFormat(NamedTuple):
    """Names of a family in config.json, and its defaults for fields that are left out."""

    model_type: str
    architecture: str
    defaults: dict[str, Any]


GEMMA3_SIZES = {"head_dim": 256, "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4}
FORMATS: dict[Family, FamilyFormat] = {
    "qwen2": FamilyFormat("qwen2", "Qwen2ForCausalLM", {}),
    "qwen3": FamilyFormat("qwen3", "Qwen3ForCausalLM", {"head_dim": 128}),
    "qwen3_moe": FamilyFormat("qwen3_moe", "Qwen3MoeForCausalLM", {"head_dim": 128}),
    "llama": FamilyFormat("llama", "LlamaForCausalLM", {}),
    "gemma3": FamilyFormat("gemma3_text", "Gemma3ForCausalLM", GEMMA3_SIZES | {"rope_theta": 1_000_000.0}),
}
SIZES = {  # field of ModelConfig -> field of config.json
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "feed_forward": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
FULL, SLIDING = "full_attention", "sliding_attention"  # layer_types
WINDOW, WINDOW_FROM = 4096, 28  # defaults of sliding_window and max_window_layers
ORIGINAL = "original_max_position_embeddings"
ROPE_PARAMETERS: dict[str, dict[str, str]] = {  # rope_type -> parameter in config.json -> field of the scaling
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        ORIGINAL: "original_positions",
    },
    "yarn": {"factor": "factor", ORIGINAL: "original_positions"},
}


def config_from_json(values: Mapping[str, Any], place: str = "config.json") -> ModelConfig:
    """Read a config.json. Raises ConfigError for a family, field or value that is not implemented or fits no model."""
    kind = values.get("model_type")
    if kind == "gemma3":  # text and images: the text model is a part of its own
        text = as_object(values.get("text_config"), f"{place}: text_config")
        tied = {"tie_word_embeddings": values.get("tie_word_embeddings")}
        return config_from_json({**tied, **text, "model_type": "gemma3_text"}, f"{place}: text_config")
    families = {form.model_type: family for family, form in FORMATS.items()}
    if not isinstance(kind, str) or kind not in families:
        raise ConfigError(f"{place}: model_type={kind!r} is not implemented; expected one of {', '.join(families)}")
    family = families[kind]
    fields = ConfigFields(values, FORMATS[family].defaults, place)
    sizes = {field: fields.count(name) for field, name in SIZES.items()}
    given: dict[str, Any] = sizes | {
        "family": family,
        "kv_heads": fields.count("num_key_value_heads", sizes["heads"]),
        "head_width": fields.count("head_dim", sizes["width"] // sizes["heads"]),
        "norm_epsilon": float(str(np.float32(fields.number("rms_norm_eps", 1e-6)))),  # 9.999999747378752e-06 is 1e-05
        "tied_embeddings": fields.flag("tie_word_embeddings", family == "gemma3"),
        "activation": _activation(fields, family),
    }
    fields.expect("attention_dropout", 0.0)
    fields.expect("partial_rotary_factor", 1.0)
    fields.expect("pruned_heads", {})
    fields.expect("no_rope_layers", [1] * sizes["layers"])  # 1: the layer has rotary positions
    given |= _family_fields(fields, family) | _rope_and_windows(fields, family, sizes["layers"])
    fields.finish()
    try:
        return ModelConfig(**given)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from error


def _activation(fields: ConfigFields, family: Family) -> str:
    name = "hidden_activation" if family == "gemma3" else "hidden_act"
    value = fields.take(name, "gelu_pytorch_tanh" if family == "gemma3" else "silu")
    if value not in tuple(ACTIVATIONS):  # a list cannot be looked up in a dict
        raise fields.refuse(name, value, ", ".join(ACTIVATIONS))
    return ACTIVATIONS[value]


def _family_fields(fields: ConfigFields, family: Family) -> dict[str, Any]:
    """Fields of ModelConfig that differ between families: biases, norms, experts, softcaps."""
    bias = fields.flag("attention_bias")
    given: dict[str, Any] = {
        "qk_norm": family in ("qwen3", "qwen3_moe", "gemma3"),
        "qkv_bias": family == "qwen2" or bias,
        "output_bias": bias and family != "qwen2",
    }
    fields.expect("use_qk_norm", given["qk_norm"], False)
    if family == "llama":
        given["mlp_bias"] = fields.flag("mlp_bias")
    if family == "qwen3_moe":
        fields.expect("shared_expert_intermediate_size", 0)
        count = fields.count("num_experts", fields.take("num_local_experts"))  # the newer name
        per_token, normalized = fields.count("num_experts_per_tok"), fields.flag("norm_topk_prob")
        if per_token > count:
            raise fields.refuse("num_experts_per_tok", per_token, f"at most num_experts={count}")
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


def _rope_and_windows(fields: ConfigFields, family: Family, layers: int) -> dict[str, Any]:
    """Rotary positions and sliding windows, in the old or the new spelling. Raises ConfigError."""
    new, old = fields.table("rope_parameters"), fields.table("rope_scaling")
    base = fields.number("rope_theta", 10_000.0)
    original = fields.take(ORIGINAL), fields.optional_count("max_position_embeddings")
    local_base = fields.number("rope_local_base_freq", 10_000.0) if family == "gemma3" else None
    nested = new is not None and bool({FULL, SLIDING} & set(new))
    plain = not nested and (new or {}).get("rope_type", "default") == "default"
    if new is not None and old is not None and not (plain and old in ({"rope_type": "default"}, {"type": "default"})):
        raise fields.refuse("rope_scaling", old, f"nothing beside rope_parameters={new}; leave one of them out")
    if new is not None and family == "gemma3" and not nested:
        raise fields.refuse("rope_parameters", new, f"{FULL} and {SLIDING} with parameters of their own")
    parameters: Mapping[str, Any] = new if new is not None else old or {}
    if new is not None and nested:
        local = new.get(SLIDING) or {}
        local_base, scaling = _rope(fields.within(f"rope_parameters.{SLIDING}", local), local_base or base, original)
        if scaling is not None:
            raise fields.refuse(f"rope_parameters.{SLIDING}", local, "rope_type='default'")
        parameters = new.get(FULL) or {}
    base, scaling = _rope(fields.within("rope_parameters", parameters), base, original)
    given = {"rope_base": base, "rope_scaling": scaling}
    sliding = _sliding_layers(fields, family, layers)
    window = fields.take("sliding_window", WINDOW)  # also written where it has no effect
    if not sliding:
        return given
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise fields.refuse("sliding_window", window, "a whole number of at least 1")
    return given | {"sliding": SlidingWindow(window, sliding, local_base)}


def _rope(
    parameters: ConfigFields, base: float, original: tuple[int | None, int | None]
) -> tuple[float, RopeScaling | YarnScaling | None]:
    """Base and scaling from rope parameters.

    `original` are the fields beside them that may give the length of the first training: the length itself, and
    max_position_embeddings. Raises ConfigError for a kind or parameter that is not implemented.
    """
    base = parameters.number("rope_theta", base)
    older = parameters.take("type", "default")
    kind = parameters.take("rope_type", older)
    if not isinstance(kind, str) or kind not in ROPE_PARAMETERS:
        raise parameters.refuse("rope_type", kind, ", ".join(ROPE_PARAMETERS))
    parameters.expect("partial_rotary_factor", 1.0)
    names = ROPE_PARAMETERS[kind]
    given: dict[str, Any] = {names[name]: parameters.number(name) for name in names if name != ORIGINAL}
    if ORIGINAL in names:
        positions = given["original_positions"] = parameters.count(ORIGINAL, original[0] or original[1])
        if positions != (original[0] or positions):
            raise parameters.refuse(ORIGINAL, positions, f"{original[0]}, as beside rope_parameters")
    given |= _yarn_options(parameters, given["factor"]) if kind == "yarn" else {}
    parameters.finish()
    try:
        if kind == "yarn":
            return base, YarnScaling(**given)
        return base, RopeScaling(kind, **given) if given else None  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _yarn_options(parameters: ConfigFields, factor: float) -> dict[str, Any]:
    """Parameters of YaRN that may be left out. `mscale` acts only together with `mscale_all_dim`.

    vLLM multiplies the usual attention factor by `attn_factor`, and transformers ignores it. It is read where it is 1,
    or where the product is 1: nobody would write that number except to switch the factor off.
    """
    of_queries, of_all = parameters.number("mscale", 0.0), parameters.number("mscale_all_dim", 0.0)
    ratio = yarn_magnitude(factor, of_queries) / yarn_magnitude(factor, of_all) if of_queries and of_all else None
    given = parameters.peek("attention_factor") is not None
    extra, usual = parameters.number("attn_factor", 1.0), yarn_magnitude(factor, 1.0)
    if extra != 1.0 and ratio is None and not given and isclose(extra * usual, 1.0, rel_tol=1e-6):
        ratio = 1.0
    elif extra != 1.0:
        wanted = f"attention_factor={extra * usual!r}, as vLLM reads it, or neither, as transformers does"
        raise parameters.refuse("attn_factor", extra, wanted)
    return {
        "beta_fast": parameters.number("beta_fast", 32.0),
        "beta_slow": parameters.number("beta_slow", 1.0),
        "attention_factor": parameters.number("attention_factor") if given else ratio,
        "truncate": parameters.flag("truncate", True),
    }


def _sliding_layers(fields: ConfigFields, family: Family, layers: int) -> tuple[int, ...]:
    kinds, pattern = fields.take("layer_types"), fields.count("sliding_window_pattern", 6)
    pattern = fields.count("_sliding_window_pattern", pattern)
    null = fields.peek("sliding_window", WINDOW) is None  # null switches windows off, a missing field does not
    on, first = fields.flag("use_sliding_window") and not null, fields.take("max_window_layers", WINDOW_FROM)
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (FULL, SLIDING) for kind in kinds):
            raise fields.refuse("layer_types", kinds, f"{FULL} or {SLIDING} for each of {layers} layers")
        found = tuple(index for index, kind in enumerate(kinds) if kind == SLIDING)
    elif family == "gemma3":
        found = tuple(index for index in range(layers) if (index + 1) % pattern)
    elif not isinstance(first, int):
        raise fields.refuse("max_window_layers", first, "a whole number")
    else:
        found = tuple(range(first, layers)) if on and family in ("qwen2", "qwen3") else ()
    if family == "qwen3_moe":
        if kinds is not None and len(found) != (layers if on else 0):
            wanted = f"{SLIDING if on else FULL} in all layers, as use_sliding_window={on} says for this family"
            raise fields.refuse("layer_types", kinds, wanted)
        return tuple(range(layers)) if on else ()
    if found and family == "llama":
        raise fields.refuse("layer_types", kinds, f"no {SLIDING} in this family")
    if found and family != "gemma3" and not on:
        raise fields.refuse("layer_types", kinds, f"use_sliding_window=true and a sliding_window with {SLIDING}")
    return found
