"""Hugging Face folders: read and write config.json and safetensors, tensor by tensor, straight from and to a mesh."""

from rl_llm.model.huggingface.reading import (
    from_folder,
    is_huggingface,
    is_multimodal,
    load,
    max_positions,
    read_config,
    read_model,
    readable_positions,
    yarn_fields,
)
from rl_llm.model.huggingface.writing import save
