"""The fields of a config.json, taken one by one and typed, so that nothing is misread and nothing is overlooked."""

from collections.abc import Mapping
from typing import Any

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
        "return_dict",
        "id2label",
        "label2id",
        "unsloth_fixed",
        "unsloth_version",
        "_attn_implementation_autoset",
    }
)


class ConfigError(ValueError):
    """A config.json that describes no model of ours. The message names the field, and its value."""


class Fields:
    """The fields of a config.json; each is taken once, so that what is left was not understood."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], place: str) -> None:
        self._values, self._defaults, self._place = dict(values), defaults, place

    def take(self, name: str, default: Any = None) -> Any:
        """Its value; the family's default, or this one, where it is missing or null."""
        value = self._values.pop(name, None)
        return self._defaults.get(name, default) if value is None else value

    def peek(self, name: str, default: Any = None) -> Any:
        """Its value, null as well, without taking it; this one where it is missing."""
        return self._values.get(name, default)

    def table(self, name: str) -> Mapping[str, Any] | None:
        """An object with fields of its own, or None. Raises ConfigError."""
        value = self.take(name)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{self._place}: {name} must be an object with fields, not {value!r}")
        return value

    def within(self, name: str, values: Any) -> "Fields":
        """The fields of such an object."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{self._place}: {name} must be an object with fields, not {values!r}")
        return Fields(values, {}, f"{self._place}: {name}")

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1. Raises ConfigError, also where there is none and no default."""
        value = self.take(name, default)
        if value is None:
            raise ConfigError(f"{self._place} has no field {name!r}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{self._place}: {name} must be a whole number of at least 1, not {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number. Raises ConfigError."""
        value = self.take(name, default)
        if value is None:
            raise ConfigError(f"{self._place} needs {name!r}")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{self._place}: {name} must be a number, not {value!r}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or False. Raises ConfigError."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._place}: {name} must be true or false, not {value!r}")
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
        left = {n: v for n, v in self._values.items() if n not in WITHOUT_EFFECT and v is not None and v is not False}
        if left:
            shown = ", ".join(f"{name}={value!r}" for name, value in sorted(left.items()))
            raise ConfigError(f"{self._place}: fields that are not implemented: {shown}")
