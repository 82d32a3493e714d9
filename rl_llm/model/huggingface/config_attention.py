"""Rotary positions and sliding windows of a config.json, in the old spelling or the new."""

from collections.abc import Mapping
from typing import Any

from rl_llm.model.config import Family, RopeScaling, SlidingWindow
from rl_llm.model.huggingface.config_fields import ConfigError, Fields

WINDOW, WINDOW_FROM = 4096, 28  # where config.json turns windows on, and leaves these out
SCALINGS: dict[str, dict[str, str]] = {  # the parameters of each kind, and what they are with us
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        "original_max_position_embeddings": "original_positions",
    },
}


def rope_and_windows(fields: Fields, family: Family, layers: int) -> dict[str, Any]:
    """The fields of ModelConfig that say how far tokens see, and how they know where they are. Raises ConfigError."""
    new, old, base = fields.table("rope_parameters"), fields.table("rope_scaling"), fields.number("rope_theta")
    local = fields.number("rope_local_base_freq", 10_000.0) if family == "gemma3" else None
    if new is not None and old is not None:
        raise fields.refuse("rope_scaling", old, f"there is rope_parameters={new}, too; leave one of them out")
    nested = new is not None and bool({"full_attention", "sliding_attention"} & set(new))
    if new is not None and family == "gemma3" and not nested:
        raise fields.refuse("rope_parameters", new, "full_attention and sliding_attention each have their own here")
    of_full: Mapping[str, Any] = new if new is not None else old or {}
    if new is not None and nested:
        of_local = new.get("sliding_attention") or {}
        local, scaling = _rope(fields.within("rope_parameters.sliding_attention", of_local), local or base)
        if scaling is not None:
            raise fields.refuse("rope_parameters.sliding_attention", of_local, "its rope_type must be 'default'")
        of_full = new.get("full_attention") or {}
    base, scaling = _rope(fields.within("rope_parameters", of_full), base)
    given = {"rope_base": base, "rope_scaling": scaling}
    sliding = _sliding_layers(fields, family, layers)
    window = fields.take("sliding_window", WINDOW)  # also written where it is of no effect
    if not sliding:
        return given
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise fields.refuse("sliding_window", window, "a whole number of at least 1")
    return given | {"sliding": SlidingWindow(window, sliding, local)}


def _rope(parameters: Fields, base: float) -> tuple[float, RopeScaling | None]:
    """Base and scaling from rope parameters; ConfigError for a kind or a parameter that is not implemented."""
    base = parameters.number("rope_theta", base)
    older = parameters.take("type", "default")
    kind = parameters.take("rope_type", older)
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise parameters.refuse("rope_type", kind, f"there are {', '.join(SCALINGS)}")
    given: dict[str, Any] = {}
    for name, ours in SCALINGS[kind].items():
        given[ours] = parameters.count(name) if ours == "original_positions" else parameters.number(name)
    parameters.finish()
    try:
        return base, RopeScaling(kind, **given) if given else None  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _sliding_layers(fields: Fields, family: Family, layers: int) -> tuple[int, ...]:
    kinds, pattern = fields.take("layer_types"), fields.count("sliding_window_pattern", 6)
    pattern = fields.count("_sliding_window_pattern", pattern)
    null = fields.peek("sliding_window", WINDOW) is None  # it switches windows off; where it is missing, it does not
    on, first = fields.flag("use_sliding_window") and not null, fields.take("max_window_layers", WINDOW_FROM)
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
            raise fields.refuse("layer_types", kinds, f"{layers} of full_attention or sliding_attention")
        found = tuple(index for index, kind in enumerate(kinds) if kind == "sliding_attention")
    elif family == "gemma3":
        found = tuple(index for index in range(layers) if (index + 1) % pattern)
    elif not isinstance(first, int):
        raise fields.refuse("max_window_layers", first, "a whole number")
    else:
        found = tuple(range(first, layers)) if on and family in ("qwen2", "qwen3") else ()
    if family == "qwen3_moe":
        if kinds is not None and len(found) != (layers if on else 0):
            raise fields.refuse(
                "layer_types", kinds, f"in this family all layers slide (use_sliding_window={on}) or none"
            )
        return tuple(range(layers)) if on else ()
    if found and family == "llama":
        raise fields.refuse("layer_types", kinds, "no layer slides in this family")
    if found and family != "gemma3" and not on:
        raise fields.refuse("layer_types", kinds, "layers that slide need use_sliding_window=true and a sliding_window")
    return found
