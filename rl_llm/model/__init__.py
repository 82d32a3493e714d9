"""The model: a config, a parameter pytree, and pure functions over both."""

from rl_llm.model.config import ModelConfig
from rl_llm.model.flops import forward_flops
from rl_llm.model.layers import KeyValues
from rl_llm.model.transformer import decode, decoding_layers, extend, forward, prefill, unembed
from rl_llm.model.weights import Weight, init, parameter_count, weight_table

__all__ = [
    "KeyValues",
    "ModelConfig",
    "Weight",
    "decode",
    "decoding_layers",
    "extend",
    "forward",
    "forward_flops",
    "init",
    "parameter_count",
    "prefill",
    "unembed",
    "weight_table",
]
