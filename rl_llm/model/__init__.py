"""The model: a config, a parameter pytree, and pure functions over both. Dimension letters are in `rl_llm.types`."""

from rl_llm.model.attention import platform
from rl_llm.model.config import Experts, Lora, ModelConfig, RopeScaling, SlidingWindow, YarnScaling
from rl_llm.model.decoding import Caches, decode, decode_context, grow_cache, init_cache
from rl_llm.model.flops import forward_flops
from rl_llm.model.huggingface import from_folder, load
from rl_llm.model.lora import add_adapters, join_params, merge_adapters, split_flat, split_params
from rl_llm.model.transformer import extend, forward, gather_head, prefill, read_packed, unembed
from rl_llm.model.weights import Initialization, Weight, init, parameter_count, weight_table
