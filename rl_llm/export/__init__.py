"""Exported models: Hugging Face folders and PEFT adapters, written tensor by tensor."""

from rl_llm.export.adapters import save_adapter
from rl_llm.export.writing import save
