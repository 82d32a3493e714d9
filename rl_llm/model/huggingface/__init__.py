"""Hugging Face folders: read their config.json and safetensors, and write them, straight from and to a mesh."""

from rl_llm.model.huggingface.reading import is_huggingface, is_part, load, positions, read_config, read_model
from rl_llm.model.huggingface.writing import save

__all__ = ["is_huggingface", "is_part", "load", "positions", "read_config", "read_model", "save"]
