"""Typed access to the fields of a config.json, so that none is misread or overlooked."""

from collections.abc import Mapping
from typing import Any

# Fields that change nothing in a model's computation from given tokens.
WITHOUT_EFFECT = frozenset(
    [
        *("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "max_position_embeddings"),
        *("use_cache", "cache_implementation", "return_dict", "_attn_implementation_autoset"),
        *("initializer_range", "output_router_logits", "router_aux_loss_coef", "pretraining_tp"),
        *("unsloth_fixed", "unsloth_version"),
    ]
)


class ConfigError(ValueError):
    """A config.json that cannot be read as a ModelConfig. The message names the field and its value."""


class ConfigFields:
    """The fields of a config.json. Each is taken once, so fields left at the end were not understood.

    Typed methods raise ConfigError, naming the place, the field and its value.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], place: str) -> None:
        self._values, self._defaults, self._place = dict(values), defaults, place

    def take(self, name: str, default: Any = None) -> Any:
        """Take a field. If it is missing or null: the family's default, or else `default`."""
        value = self._values.pop(name, None)
        return self._defaults.get(name, default) if value is None else value

    def peek(self, name: str, default: Any = None) -> Any:
        """A field's value (null included) without taking it; `default` if it is missing."""
        return self._values.get(name, default)

    def table(self, name: str) -> Mapping[str, Any] | None:
        """Take a field that is an object with fields of its own, or None."""
        value = self.take(name)
        return None if value is None else self._mapping(name, value)

    def within(self, name: str, values: Any) -> "ConfigFields":
        """The fields of such an object."""
        return ConfigFields(self._mapping(name, values), {}, f"{self._place}: {name}")

    def _mapping(self, name: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self._place}: {name} is {value!r}; expected an object with fields")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """Take a whole number of at least 1, required unless there is a default."""
        value = self._required(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{self._place}: {name} is {value!r}; expected a whole number of at least 1")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Take a number, required unless there is a default."""
        value = self._required(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{self._place}: {name} is {value!r}; expected a number")
        return float(value)

    def _required(self, name: str, default: Any) -> Any:
        value = self.take(name, default)
        if value is None:
            raise ConfigError(f"{self._place} has no field {name!r}, which is required")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Take true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._place}: {name} is {value!r}; expected true or false")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Take a field that may be missing or have one of the allowed values."""
        value = self.take(name)
        if value is not None and value not in allowed:
            raise self.refuse(name, value, " or ".join(map(repr, allowed)))

    def refuse(self, name: str, value: Any, expected: str) -> ConfigError:
        """The error for a value that is not implemented."""
        return ConfigError(f"{self._place}: {name}={value!r} is not implemented; expected {expected}")

    def finish(self) -> None:
        """Refuse fields that were not taken, unless they are off or have no effect."""
        left = {n: v for n, v in self._values.items() if n not in WITHOUT_EFFECT and v is not None and v is not False}
        if left:
            shown = ", ".join(f"{name}={value!r}" for name, value in sorted(left.items()))
            raise ConfigError(f"{self._place}: these fields are not implemented: {shown}")
