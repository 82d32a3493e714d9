"""Typed access to the fields of a config.json, so that none is misread or overlooked."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

# Fields that change nothing in a model's computation from given tokens: notes of transformers and of trainers, how to
# run a model, how to train it, special tokens and lengths, and settings of generation, which once stood in config.json.
WITHOUT_EFFECT = frozenset(
    """
    architectures model_type dtype torch_dtype transformers_version transformers.js_config license model_name
    description tags _name_or_path name_or_path _model_name_or_path _commit_hash internal_version is_llama_config
    is_decoder unsloth_fixed unsloth_version

    use_cache cache_implementation return_dict return_dict_in_generate output_attentions output_hidden_states
    output_scores output_logits output_router_logits torchscript use_bfloat16 attn_implementation
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal experts_implementation
    _experts_implementation use_flash_attention use_flash_attention_2 _flash_attn_2_enabled _flash_attn
    chunk_size_feed_forward num_logits_to_keep keys_to_ignore_at_inference
    ep_size model_parallel_size base_model_tp_plan base_model_pp_plan base_model_ep_plan

    initializer_range router_aux_loss_coef pretraining_tp neftune_noise_alpha gradient_checkpointing
    use_gradient_checkpointing tf_legacy_loss finetuning_task task_specific_params problem_type num_labels id2label
    label2id

    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id bos_token eos_token pad_token unk_token tokenizer_class prefix max_position_embeddings
    max_sequence_length model_max_length seq_length

    max_length max_new_tokens min_length min_new_tokens do_sample temperature top_k top_p min_p typical_p
    epsilon_cutoff eta_cutoff repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size num_beams num_beam_groups diversity_penalty penalty_alpha early_stopping
    num_return_sequences remove_invalid_values renormalize_logits bad_words_ids forced_bos_token_id
    forced_eos_token_id exponential_decay_length_penalty suppress_tokens begin_suppress_tokens guidance_scale
    sequence_bias token_healing stop_strings max_time generation_config
    """.split()  # noqa: SIM905 - a list of strings would be five times as long
)


class ConfigError(ValueError):
    """A config.json that cannot be read as a ModelConfig. The message names the field and its value."""


def read_object(path: epath.Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises ConfigError for another content."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}; expected an object with fields")
    return values


def as_object(value: Any, place: str) -> Mapping[str, Any]:
    """Return a value that is an object with fields. Raises ConfigError for another."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place} is {value!r}; expected an object with fields")
    return value


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
        return None if value is None else as_object(value, f"{self._place}: {name}")

    def within(self, name: str, values: Any) -> "ConfigFields":
        """The fields of such an object."""
        place = f"{self._place}: {name}"
        return ConfigFields(as_object(values, place), {}, place)

    def count(self, name: str, default: int | None = None) -> int:
        """Take a whole number of at least 1, required unless there is a default."""
        value = self._required(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{self._place}: {name} is {value!r}; expected a whole number of at least 1")
        return value

    def optional_count(self, name: str) -> int | None:
        """Take a whole number of at least 1, or None."""
        return None if self.peek(name) is None else self.count(name)

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
        """Refuse fields that were not taken, unless they are off, empty or have no effect."""
        if self._values.get("quantization_config"):
            raise ConfigError(
                f"{self._place}: quantization_config: quantized weights are not implemented; expected a folder with "
                "weights in bfloat16, float16 or float32"
            )
        left = {n: v for n, v in self._values.items() if n not in WITHOUT_EFFECT and v is not None and v is not False}
        left = {name: value for name, value in left.items() if value not in ({}, [])}
        if left:
            shown = ", ".join(f"{name}={value!r}" for name, value in sorted(left.items()))
            raise ConfigError(
                f"{self._place}: these fields are not implemented: {shown}. Take out of the file those that change "
                "nothing in this model"
            )
