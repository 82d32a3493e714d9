"""A run that starts from a Hugging Face folder: texts that the folder's model cannot read are refused before it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from experiments.qwen3_4b_gsm8k import chats, smoke
from rl_llm.experiment import Experiment
from rl_llm.export import save
from rl_llm.model import YarnScaling, from_folder, init
from rl_llm.prepare import prepare
from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the start of `smoke`, whose model reads 256 positions."""
    return Path(shutil.copytree(str(smoke.start), tmp_path / "model"))


def started(experiment: Experiment, folder: Path, **changes: object) -> Experiment:
    return replace(experiment, start=str(folder), tokenizer=replace(experiment.tokenizer, folder=folder), **{**changes})


def test_a_prompt_with_its_response_must_fit_the_positions_of_the_model(folder: Path):
    problems = prepare(started(smoke, folder), 0)[1]
    longest = max(
        len(smoke.tokenizer.encode_prompt(problem.prompt)) for found in problems.values() for problem in found
    )
    most = replace(smoke.sampling, max_tokens=256 - longest)
    prepare(started(smoke, folder, sampling=most), 0)
    more = replace(most, max_tokens=most.max_tokens + 1)
    said = f"the longest prompt, {longest} tokens, with a response of sampling.max_tokens={more.max_tokens} has 257 "
    with pytest.raises(ValueError, match=said + r"positions; the model in .*model reads 256, .*use shorter texts, or"):
        prepare(started(smoke, folder, sampling=more), 0)


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_stretched_positions_hold_longer_texts(spelling: str, folder: Path):
    """The remedy that the error names is one: with it in config.json, the run is prepared, with the same base."""
    values = json.loads((folder / "config.json").read_text())
    base = values["rope_theta"] = values.pop("rope_parameters")["rope_theta"] * 2
    if spelling == "rope_parameters":
        values[spelling] = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps(values))
    sampling = replace(smoke.sampling, max_tokens=600)
    with pytest.raises(ValueError, match=f'there by "{spelling}"') as refusal:
        prepare(started(smoke, folder, model=from_folder(folder), sampling=sampling), 0)
    added = json.loads("{" + str(refusal.value).rpartition("there by ")[2] + "}")
    (folder / "config.json").write_text(json.dumps(values | added))
    model = from_folder(folder)
    assert (model.rope_base, model.rope_scaling) == (base, YarnScaling(added[spelling]["factor"], 256))
    prepare(started(smoke, folder, model=from_folder(folder), sampling=sampling), 0)


def test_a_conversation_must_fit_the_positions_of_the_model(folder: Path):
    values = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 10_000}
    (folder / "config.json").write_text(json.dumps(values))
    conversations = prepare(started(chats, folder), 0)[1]["conversations"]
    longest = max(len(conversation.metadata["tokens"]) for conversation in conversations)
    values["max_position_embeddings"] = longest - 1
    (folder / "config.json").write_text(json.dumps(values))
    short = replace(chats.sampling, max_tokens=1)
    with pytest.raises(ValueError, match=rf"the conversation '.*', {longest} tokens, has {longest} positions; the mod"):
        prepare(started(chats, folder, sampling=short), 0)


def test_a_placeholder_beyond_the_vocabulary_is_refused_only_where_it_occurs(folder: Path, tmp_path: Path):
    """As in Gemma 3 1B: its tokenizer has one more id, for images, than its model."""
    size = HuggingFaceTokenizer(folder).vocab_size
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": size, "content": "<image_soft_token>"})
    config = replace(from_folder(folder), vocabulary=size)
    save(config, init(config, jax.random.key(0)), tmp_path / "small")
    for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copy(folder / name, tmp_path / "small")
    (tmp_path / "small" / "tokenizer.json").write_text(json.dumps(content))
    experiment = started(smoke, tmp_path / "small", model=from_folder(tmp_path / "small"))
    prepare(experiment, 0)
    file = tmp_path / "problems.jsonl"
    file.write_text(Path(str(smoke.task.path)).read_text().replace("?", "<image_soft_token>?"))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=rf"' has the token '<image_soft_token>' .id {size}., .*vocabulary={size}"):
        prepare(replace(experiment, task=replace(smoke.task, path=file)), 0)
