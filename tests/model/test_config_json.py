"""config.json of a Hugging Face folder: fields that are used, that change nothing, and that are refused by name."""

import json
import shutil
from codecs import BOM_UTF8
from dataclasses import replace
from pathlib import Path

import pytest

from rl_llm.export.config_json import config_to_json
from rl_llm.model import YarnScaling, from_folder, load
from rl_llm.model.families import QWEN3_4B
from rl_llm.model.huggingface import readable_positions
from rl_llm.model.huggingface.config_fields import ConfigError
from rl_llm.model.huggingface.config_json import config_from_json
from rl_llm.model.huggingface.reading import read_config

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def changed_config(folder: Path, **changes: object) -> Path:
    values = json.loads((folder / "config.json").read_text())
    values = {name: value for name, value in (values | changes).items() if value != "gone"}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, ["mamba", "qwen3"]),
        ({"hidden_act": "relu"}, ["hidden_act", "relu", "silu"]),
        ({"attention_dropout": 0.1}, ["attention_dropout", "0.1"]),
        ({"clip_qkv": 8.0}, ["clip_qkv", "8.0"]),
        ({"hidden_size": "gone"}, ["hidden_size"]),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 4.0}}, ["dynamic", "yarn"]),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 0.5}}, ["factor", "0.5", ">= 1"]),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}}, ["rope_parameters", "factor"]),
        (
            {
                "rope_parameters": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64},
                "original_max_position_embeddings": 32,
            },
            ["original_max_position_embeddings", "64", "32"],
        ),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"pruned_heads": {"1": [0]}}, ["pruned_heads", "[0]"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "bfloat16"]),
        ({"rope_interleaved": True}, ["rope_interleaved", "Take out of the file"]),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "linear"}}, ["rope_parameters", "factor"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, ["rope_scaling", "rope_parameters"]),
        ({"num_attention_heads": "4"}, ["num_attention_heads", "'4'"]),
        ({"num_attention_heads": 0}, ["num_attention_heads", "0"]),
        ({"tie_word_embeddings": "false"}, ["tie_word_embeddings", "'false'"]),
        ({"max_position_embeddings": "64"}, ["max_position_embeddings", "'64'", "whole number"]),
        ({"max_position_embeddings": 300.0}, ["max_position_embeddings", "300.0", "whole number"]),
        ({"max_position_embeddings": -1}, ["max_position_embeddings", "-1", "at least 1"]),
        ({"no_rope_layers": [1, 0]}, ["no_rope_layers", "[1, 0]"]),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 2.0}}, ["rope_scaling", "rope_parameters"]),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.5}},
            ["attn_factor=0.5", "attention_factor=0.569", "as vLLM reads it, or neither, as transformers does"],
        ),
        ({"some_scale": 0.0}, ["some_scale", "0.0"]),
        ({"rope_parameters": []}, ["rope_parameters", "[]"]),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"layer_types": ["full_attention", "linear_attention"]}, ["layer_types", "linear_attention"]),
        ({"layer_types": [["sliding_attention"], "full_attention"]}, ["layer_types"]),
        ({"layer_types": ["sliding_attention"] * 2}, ["layer_types", "use_sliding_window"]),
        ({"hidden_act": ["silu"]}, ["hidden_act", "['silu']"]),
        ({"dtype": "float64"}, ["dtype", "float64"]),
        ({"dtype": ["float32"]}, ["dtype", "['float32']"]),
        ({"dtype": "torch.int8"}, ["dtype", "torch.int8", "bfloat16"]),
    ],
)
def test_a_config_field_that_is_not_implemented_is_refused_by_name(
    changes: dict, words: list[str], tmp_path: Path
) -> None:
    folder = changed_config(Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "x")), **changes)
    with pytest.raises(ConfigError) as refusal:
        load(folder)
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize(
    "fields",
    [
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
        {"_model_name_or_path": "some model", "unk_token_id": 0, "_commit_hash": "ab12"},
        {"internal_version": "7b"},
        {"neftune_noise_alpha": 5.0, "gradient_checkpointing": True},
        {"chunk_size_feed_forward": 0, "pruned_heads": {}, "partial_rotary_factor": 1.0, "is_encoder_decoder": False},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 1.0}},
        {"tokenizer_class": "GPT2Tokenizer", "sep_token_id": 3, "torchscript": False, "problem_type": None},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_length": 20, "do_sample": True, "num_beams": 1},
        {"task_specific_params": {"a": 1}, "tf_legacy_loss": False, "quantization_config": None},
        {"original_max_position_embeddings": 128},
        {"keys_to_ignore_at_inference": ["past_key_values"], "base_model_tp_plan": {"layers.*": "colwise"}},
        {"ep_size": 1, "model_parallel_size": 1, "use_qk_norm": True, "no_rope_layers": [1, 1]},
        {"rope_scaling": {"rope_type": "default"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_config_field_that_changes_nothing_is_read_over(fields: dict) -> None:
    values = json.loads((GOLDEN / "qwen3" / "config.json").read_text())
    assert config_from_json(values | fields) == config_from_json(values)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(BOM_UTF8 + (GOLDEN / "qwen3" / "config.json").read_bytes())
    assert read_config(tmp_path) == read_config(GOLDEN / "qwen3")


def test_an_epsilon_that_was_stored_as_float32_is_the_decimal_that_it_was() -> None:
    values = json.loads((GOLDEN / "qwen3" / "config.json").read_text())
    assert config_from_json(values | {"rms_norm_eps": 9.999999747378752e-06}).norm_epsilon == 1e-05


def test_a_mixture_without_a_shared_expert_may_say_so() -> None:
    values = json.loads((GOLDEN / "qwen3_moe" / "config.json").read_text())
    assert config_from_json(values | {"shared_expert_intermediate_size": 0}) == config_from_json(values)
    with pytest.raises(ConfigError, match="shared_expert_intermediate_size=32 is not implemented"):
        config_from_json(values | {"shared_expert_intermediate_size": 32})


def test_yarn_takes_missing_parameters_from_the_fields_beside_them() -> None:
    """As transformers does: the original length, and the attention factor from DeepSeek's two."""
    values = json.loads((GOLDEN / "qwen3" / "config.json").read_text()) | {"max_position_embeddings": 512}

    def read(beside: dict[str, int], **parameters: float) -> object:
        rope = {"rope_type": "yarn", "factor": 4.0, **parameters}
        return config_from_json(values | beside | {"rope_parameters": rope}).rope_scaling

    assert read({}) == YarnScaling(4.0, 512)
    assert read({"original_max_position_embeddings": 128}) == YarnScaling(4.0, 128)
    assert read({}, mscale=1.0) == YarnScaling(4.0, 512)  # acts together with mscale_all_dim only
    assert read({}, mscale=2.0, mscale_all_dim=2.0) == YarnScaling(4.0, 512, attention_factor=1.0)
    assert read({}, attn_factor=1.0) == YarnScaling(4.0, 512)
    published = 0.8782488562869419  # of a distilled DeepSeek R1: times the usual 1 + 0.1 log 4, it is 1
    assert read({}, attn_factor=published) == YarnScaling(4.0, 512, attention_factor=1.0)
    with pytest.raises(ConfigError, match="attn_factor"):
        read({}, attn_factor=published, attention_factor=1.0)
    assert read({}, mscale=2.0, mscale_all_dim=1.0, attention_factor=1.5) == YarnScaling(4.0, 512, attention_factor=1.5)


def test_the_longest_readable_text_counts_the_scaling_of_positions(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "x"))
    scaling = {"rope_theta": 1e6, "factor": 4.0}
    assert readable_positions(folder) == 256
    assert readable_positions(changed_config(folder, rope_parameters=scaling | {"rope_type": "linear"})) == 1024
    yarn = scaling | {"rope_type": "yarn", "original_max_position_embeddings": 128}
    assert readable_positions(changed_config(folder, rope_parameters=yarn)) == 512
    assert readable_positions(GOLDEN / "gemma3_scaled") == 256
    plain = changed_config(folder, rope_parameters={"rope_theta": 1e6}, max_position_embeddings="gone")
    assert readable_positions(plain) is None


def test_an_experiment_takes_its_model_from_a_folder(tmp_path: Path) -> None:
    source = GOLDEN / "llama"
    assert from_folder(source) == load(source)[0]
    assert from_folder(source, remat="layers") == replace(load(source)[0], remat="layers")
    for name in ("bfloat16", "torch.bfloat16"):
        (tmp_path / "config.json").write_text(json.dumps(config_to_json(QWEN3_4B, name)))
        assert from_folder(tmp_path) == QWEN3_4B
    download = "hf download Qwen/Qwen3-4B-Base --local-dir qwen3-4b-base, then use the folder qwen3-4b-base"
    with pytest.raises(FileNotFoundError, match=f"Qwen/Qwen3-4B-Base is not a Hugging Face folder: {download}"):
        from_folder("Qwen/Qwen3-4B-Base")
    for address in ("https://huggingface.co/", "http://www.hf.co/", "hf://", "hf://models/"):
        for after in ("", "/", "/tree/main", "?x=y"):
            with pytest.raises(FileNotFoundError, match=f" is an address, not a folder: {download}"):
                from_folder(f"{address}Qwen/Qwen3-4B-Base{after}")
    with pytest.raises(FileNotFoundError, match="address, not a folder: download it and name its folder"):
        from_folder("https://huggingface.co/datasets/a/b")
    with pytest.raises(FileNotFoundError, match=r"absent is not a Hugging Face folder: it has no config\.json"):
        from_folder(tmp_path / "absent")


def test_dense_layers_among_sparse_ones_are_refused(tmp_path: Path) -> None:
    folder = changed_config(Path(shutil.copytree(GOLDEN / "qwen3_moe", tmp_path / "x")), mlp_only_layers=[1])
    with pytest.raises(ConfigError, match="mlp_only_layers"):
        load(folder)


def test_sliding_windows_equal_those_of_transformers():
    qwen = json.loads((GOLDEN / "qwen2" / "config.json").read_text()) | {"num_hidden_layers": 40, "layer_types": None}
    qwen |= {"use_sliding_window": True, "max_window_layers": None}
    assert config_from_json(qwen | {"sliding_window": None}).sliding is None
    config = config_from_json({name: value for name, value in qwen.items() if name != "sliding_window"})
    assert config.sliding is not None
    assert (config.sliding.window, config.sliding.layers) == (4096, tuple(range(28, 40)))
    moe = json.loads((GOLDEN / "qwen3_moe" / "config.json").read_text())
    config = config_from_json(moe | {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1})
    assert config.sliding is not None
    assert config.sliding.layers == tuple(range(config.layers)), (
        "transformers has one mask for all layers of this family"
    )
    assert config_from_json(config_to_json(config, "float32")) == config
    gemma = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    with pytest.raises(ConfigError, match="final_logit_softcapping"):
        config_from_json(gemma | {"final_logit_softcapping": "8"})
    llama = json.loads((GOLDEN / "llama" / "config.json").read_text())
    with pytest.raises(ConfigError, match="no sliding_attention"):
        config_from_json(llama | {"layer_types": ["sliding_attention", "full_attention"]})
    with pytest.raises(ConfigError, match="full_attention"):
        config_from_json(gemma | {"rope_parameters": {"rope_type": "linear", "factor": 4.0}})


def test_a_vision_language_model_without_its_text_part_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    with pytest.raises(ConfigError, match=r"config\.json: text_config is None; expected an object"):
        readable_positions(tmp_path)
