"""The model: a config, a parameter pytree, and pure functions over both."""

from rl_llm.model.attention import KeyValues, platform
from rl_llm.model.config import Experts, Lora, ModelConfig, RopeScaling, SlidingWindow
from rl_llm.model.decoding import Caches, decode, grown, no_caches, reader
from rl_llm.model.flops import forward_flops
from rl_llm.model.huggingface import load, save
from rl_llm.model.lora import joined, merged, separated, trained_and_frozen, with_adapters
from rl_llm.model.transformer import extend, forward, gathered_head, packed, prefill, unembed
from rl_llm.model.weights import Initialization, Weight, init, parameter_count, weight_table

__all__ = [
    "Caches",
    "Experts",
    "Initialization",
    "KeyValues",
    "Lora",
    "ModelConfig",
    "RopeScaling",
    "SlidingWindow",
    "Weight",
    "decode",
    "extend",
    "forward",
    "forward_flops",
    "gathered_head",
    "grown",
    "init",
    "joined",
    "load",
    "merged",
    "no_caches",
    "packed",
    "parameter_count",
    "platform",
    "prefill",
    "reader",
    "save",
    "separated",
    "trained_and_frozen",
    "unembed",
    "weight_table",
    "with_adapters",
]
