"""Maximum text length in an exported policy's config.json: servers truncate there."""

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
def test_config_json_has_the_maximum_length_if_given(name: str, tmp_path: Path):
    config, params = load(GOLDEN / name)
    save(config, params, tmp_path / "given", max_positions=9216)
    assert json.loads((tmp_path / "given" / "config.json").read_text())["max_position_embeddings"] == 9216
    assert load(tmp_path / "given")[0] == config
    save(config, params, tmp_path / "without")
    assert "max_position_embeddings" not in json.loads((tmp_path / "without" / "config.json").read_text())
    with pytest.raises(ValueError, match="max_positions=9216 cannot act: config"):
        save(config, params, tmp_path / "like", like=GOLDEN / name, max_positions=9216)


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
def test_without_a_start_folder_it_is_the_longest_trained_text(
    warm_start: WarmStart | None, longest: int, tmp_path: Path
):
    for start in (None, str(tmp_path)):  # not a Hugging Face folder, so it says nothing
        assert longest_text(replace(EXPERIMENT, warm_start=warm_start, start=start)) == longest


def test_with_a_start_folder_it_is_that_of_the_folder(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "gemma3", tmp_path / "x"))
    text = json.loads((folder / "config.json").read_text())
    experiment = replace(EXPERIMENT, start=str(folder))
    assert longest_text(experiment) == text["max_position_embeddings"] == 256
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert longest_text(experiment) == 256
    del text["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert longest_text(experiment) is None
