"""Published models: their sizes are the published ones, and each is a model of its family."""

import pytest

from rl_llm.export.config_json import config_to_json
from rl_llm.model import ModelConfig, families, parameter_count
from rl_llm.model.huggingface.config_json import config_from_json

PRESETS = {name: value for name, value in vars(families).items() if isinstance(value, ModelConfig) and name[0] != "_"}

# Billions of parameters from the model cards: in total, or without embeddings.
TOTAL = {
    "QWEN2_5_0_5B": 0.49,
    "QWEN2_5_1_5B": 1.54,
    "QWEN2_5_3B": 3.09,
    "QWEN2_5_7B": 7.61,
    "QWEN2_5_14B": 14.77,  # these three from the hub's count of weights: their cards round down
    "QWEN2_5_32B": 32.76,
    "QWEN2_5_72B": 72.71,
    "LLAMA3_2_1B": 1.23,
    "LLAMA3_2_3B": 3.21,
    "LLAMA3_1_8B": 8.03,
    "GEMMA3_1B": 1.0,
    "GEMMA3_4B": 3.88,
    "GEMMA3_12B": 11.77,
    "GEMMA3_27B": 27.01,
}
WITHOUT_EMBEDDINGS = {
    "QWEN3_0_6B": 0.44,
    "QWEN3_1_7B": 1.4,
    "QWEN3_4B": 3.6,
    "QWEN3_8B": 6.95,
    "QWEN3_14B": 13.2,
    "QWEN3_32B": 31.2,
    "QWEN3_30B_A3B": 29.9,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_parameter_count(name: str):
    config = PRESETS[name]
    embeddings = config.vocabulary * config.width * (1 if config.tied_embeddings else 2)
    counted = parameter_count(config) - (embeddings if name in WITHOUT_EMBEDDINGS else 0)
    published = (TOTAL | WITHOUT_EMBEDDINGS)[name]
    assert counted / 1e9 == pytest.approx(published, abs=0.006 if published < 10 and name in TOTAL else 0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_config_json(name: str):
    assert config_from_json(config_to_json(PRESETS[name], "bfloat16")) == PRESETS[name].stored
