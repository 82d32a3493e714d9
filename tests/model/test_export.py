"""How long the texts are that an exported policy is said to be meant for: servers cut there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from program import EXPERIMENT

from rl_llm.commands.export import longest_text
from rl_llm.experiment import Conversations, WarmStart
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import load, save

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
WARM_START = WarmStart(1, AdamW(1e-3), demonstrations_per_step=4, max_tokens=40)


@pytest.mark.parametrize("name", ["qwen2", "llama", "gemma3"])
def test_a_config_says_what_texts_its_model_is_meant_for(name: str, tmp_path: Path):
    config, params = load(GOLDEN / name)
    save(config, params, tmp_path / "said", positions=9216)
    assert json.loads((tmp_path / "said" / "config.json").read_text())["max_position_embeddings"] == 9216
    assert load(tmp_path / "said")[0] == config
    save(config, params, tmp_path / "not")
    assert "max_position_embeddings" not in json.loads((tmp_path / "not" / "config.json").read_text())
    with pytest.raises(ValueError, match="positions=9216 cannot act: config"):
        save(config, params, tmp_path / "like", like=GOLDEN / name, positions=9216)


@pytest.mark.parametrize(
    ("warm_start", "longest"),
    [
        (None, 9 + 16),
        (WARM_START, 9 + 40),
        (replace(WARM_START, max_tokens=8), 9 + 16),
        (WarmStart(1, AdamW(1e-3), demonstrations=Conversations("some.jsonl", 4, row_tokens=64)), 64),
        (WarmStart(1, AdamW(1e-3), demonstrations=Conversations("some.jsonl", 4, row_tokens=12)), 9 + 16),
    ],
)
def test_without_a_folder_it_is_what_a_run_was_trained_on(warm_start: WarmStart | None, longest: int, tmp_path: Path):
    for start in (None, str(tmp_path)):  # a folder that is no Hugging Face folder says nothing
        assert longest_text(replace(EXPERIMENT, warm_start=warm_start, start=start)) == longest


def test_with_a_folder_it_is_what_that_one_says(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "gemma3", tmp_path / "x"))
    text = json.loads((folder / "config.json").read_text())
    experiment = replace(EXPERIMENT, start=str(folder))
    assert longest_text(experiment) == text["max_position_embeddings"] == 256
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert longest_text(experiment) == 256
    del text["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert longest_text(experiment) is None
