"""The model: a config, a parameter pytree, and pure functions over both."""

from rl_llm.model.attention import KeyValues
from rl_llm.model.config import Experts, ModelConfig, RopeScaling, SlidingWindow
from rl_llm.model.flops import forward_flops
from rl_llm.model.huggingface import load, save
from rl_llm.model.transformer import decode, decoding_layers, extend, forward, prefill, unembed
from rl_llm.model.weights import Weight, init, parameter_count, weight_table

__all__ = [
    "Experts",
    "KeyValues",
    "ModelConfig",
    "RopeScaling",
    "SlidingWindow",
    "Weight",
    "decode",
    "decoding_layers",
    "extend",
    "forward",
    "forward_flops",
    "init",
    "load",
    "parameter_count",
    "prefill",
    "save",
    "unembed",
    "weight_table",
]
