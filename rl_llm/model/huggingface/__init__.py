"""Hugging Face folders: config.json and safetensors, read tensor by tensor, straight to a mesh."""

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
