"""PEFT's adapters: read with its logits, written so that they are read back, and refused by name if they cannot be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from rl_llm.export import save_adapter
from rl_llm.export.writing import make_header, write_file
from rl_llm.model import Lora, add_adapters, forward, init, load
from rl_llm.model.config import ADAPTABLE
from rl_llm.model.huggingface import read_config
from rl_llm.model.huggingface.adapters import base_folder, is_adapter, read_adapted, read_lora
from rl_llm.model.huggingface.tensor_files import tensors_in
from rl_llm.parallel.mesh import MeshShape, make_mesh

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
ADAPTERS = {  # made by tests/tools/make_adapters.py
    "llama": Lora(3, 12.0),
    "qwen3_moe": Lora(4, 6.0 * 2, ("query", "value")),  # rsLoRA: alpha / sqrt(4) = 2 alpha / 4
    "gemma3_scaled": Lora(2, 5.0, ("output", "gate", "down")),
}
MESH = make_mesh(MeshShape(), jax.devices()[:1])
compiled_forward = jax.jit(forward, static_argnums=0)


def adapter(name: str) -> Path:
    return GOLDEN / f"{name}_adapter"


def logits_error(name: str, config: Any, params: dict) -> float:
    """Largest difference from PEFT's logits."""
    data = np.load(adapter(name) / "golden.npz")
    found = np.asarray(compiled_forward(config, params, data["tokens"], data["lengths"]))
    valid = np.arange(found.shape[1]) < data["lengths"][:, None]
    return float(np.abs(found - data["logits"])[valid].max())


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_of_peft_have_its_logits_kept_or_merged(name: str):
    lora = read_lora(adapter(name))
    assert (lora.rank, lora.targets) == (ADAPTERS[name].rank, ADAPTERS[name].targets)
    assert lora.alpha == pytest.approx(ADAPTERS[name].alpha)
    kept = read_adapted(adapter(name), replace(lora, alpha=7.0), MESH)
    assert kept.config.lora == replace(lora, alpha=7.0)
    merged = read_adapted(adapter(name), None, MESH)
    assert merged.config == read_config(GOLDEN / name)
    assert logits_error(name, kept.config, kept.params) < 1e-4
    assert logits_error(name, merged.config, merged.params) < 1e-4
    assert logits_error(name, *load(GOLDEN / name)) > 1
    assert kept.digest == merged.digest


def test_adapters_of_another_rank_are_merged_and_those_of_the_run_drawn():
    merged = read_adapted(adapter("llama"), Lora(2, 4.0), MESH)
    assert merged.config.lora is None
    config = replace(merged.config, lora=Lora(2, 4.0))
    assert logits_error("llama", config, add_adapters(config, merged.params, jax.random.key(0))) < 1e-4


def test_kept_adapters_are_not_drawn_again():
    kept = read_adapted(adapter("llama"), Lora(3, 12.0), MESH)
    assert add_adapters(kept.config, kept.params, jax.random.key(0)) is kept.params


def test_adapters_are_read_straight_into_their_shardings():
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    for wanted in (ADAPTERS["gemma3_scaled"], None):
        sharded = read_adapted(adapter("gemma3_scaled"), wanted, mesh)
        whole = read_adapted(adapter("gemma3_scaled"), wanted, MESH)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), sharded.params, whole.params)
        gate = sharded.params["layers"]["gate"]
        assert gate.addressable_shards[0].data.size < gate.size


@pytest.mark.parametrize("name", ADAPTERS)
def test_written_adapters_are_read_back_and_are_those_of_peft(name: str, tmp_path: Path):
    read = read_adapted(adapter(name), read_lora(adapter(name)), MESH)
    save_adapter(read.config, read.params, tmp_path / "ours", str(GOLDEN / name), beside={"README.md": b"#"})
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md")
    }
    ours, theirs = (folder / "adapter_model.safetensors" for folder in (tmp_path / "ours", adapter(name)))
    assert ours.read_bytes() == theirs.read_bytes()
    again = read_adapted(tmp_path / "ours", read.config.lora, MESH)
    jax.tree.map(np.testing.assert_array_equal, again.params, read.params)


def test_a_half_written_folder_is_no_adapter(tmp_path: Path):
    assert is_adapter(adapter("llama"))
    folder = Path(shutil.copytree(adapter("llama"), tmp_path / "x"))
    (folder / "adapter_config.json").unlink()
    assert not is_adapter(folder)
    assert not is_adapter(GOLDEN / "llama")


def test_adapters_are_no_model_by_themselves():
    with pytest.raises(FileNotFoundError, match=r"has no config.json, only the adapters of a model: use the folder of"):
        read_config(adapter("llama"))


def test_a_whole_model_with_adapters_beside_it_is_the_model(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "llama", tmp_path / "x"))
    shutil.copy(adapter("llama") / "adapter_config.json", folder)
    assert not is_adapter(folder)


def test_the_base_is_named_from_the_current_folder_or_from_the_adapters(tmp_path: Path, monkeypatch):
    folder = Path(shutil.copytree(adapter("llama"), tmp_path / "x"))
    with pytest.raises(
        FileNotFoundError, match=r"'../llama' is not a Hugging Face folder: name the folder of the base"
    ):
        base_folder(folder)
    shutil.copytree(GOLDEN / "llama", tmp_path / "llama")
    assert Path(base_folder(folder)).resolve() == tmp_path / "llama"
    changed(folder, base_model_name_or_path="org/Name-1B")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"or get it:\n  hf download org/Name-1B --local-dir name-1b"):
        base_folder(folder)
    for place in ("name-1b", "org/Name-1B"):
        shutil.copytree(GOLDEN / "llama", tmp_path / place)
        assert base_folder(folder) == place


def changed(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not implemented; expected 'LORA'"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS' is not implemented"),
        ({"use_dora": True}, "not implemented: use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"bias": "lora_only"}, "bias='lora_only' is not implemented; expected 'none'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not implemented"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"of_a_later_version": 1}, "of_a_later_version=1"),
        ({"r": "3"}, "r is '3'; expected a whole number"),
        ({"lora_alpha": -1}, "alpha=-1"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None; expected the folder"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, Any], words: str, tmp_path: Path):
    shutil.copytree(GOLDEN / "llama", tmp_path / "llama")
    folder = changed(Path(shutil.copytree(adapter("llama"), tmp_path / "x")), **changes)
    with pytest.raises(ValueError, match=words):
        read_adapted(folder, None, MESH)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(next(iter(t))), r"lora_A.weight \(3, 40\) is missing"),
        (
            lambda t: t.update({"base_model.model.lm_head.lora_A.weight": np.zeros((3, 32))}),
            "lm_head.* is not part of the model",
        ),
        (lambda t: t.update({next(iter(t)): np.zeros((4, 40))}), r"has the shape \(4, 40\); .* asks for \(3, 40\)"),
        (lambda t: t.clear(), "Lora.targets is \\(\\)"),
    ],
)
def test_other_tensors_are_refused_by_name(change: Callable, words: str, tmp_path: Path):
    shutil.copytree(GOLDEN / "llama", tmp_path / "llama")
    folder = Path(shutil.copytree(adapter("llama"), tmp_path / "x"))
    file = epath.Path(folder) / "adapter_model.safetensors"
    tensors = {tensor.name: tensor.read() for tensor in tensors_in(file)}
    change(tensors)
    header = make_header([(name, value.shape) for name, value in tensors.items()], "F32")
    write_file(file, header, [(name, "F32") for name in sorted(tensors)], tensors.__getitem__)
    with pytest.raises(ValueError, match=words):
        read_adapted(folder, None, MESH)
    file.rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"lacks adapter_model.safetensors: .* PEFT's save_pretrained"):
        read_adapted(folder, None, MESH)


def test_adapters_over_other_weights_are_not_written(tmp_path: Path):
    base = read_config(GOLDEN / "llama")
    config = replace(base, lora=Lora(2, 4.0, ADAPTABLE[:2]))
    drawn = init(config, jax.random.key(0))
    with pytest.raises(ValueError, match=r"beneath the adapters is not that of .*llama: they belong to other weights"):
        save_adapter(config, drawn, tmp_path / "x", str(GOLDEN / "llama"))
    with pytest.raises(ValueError, match=r"is not that of .*qwen3"):
        save_adapter(config, drawn, tmp_path / "x", str(GOLDEN / "qwen3"))
    with pytest.raises(ValueError, match="the model has no adapters"):
        save_adapter(base, drawn, tmp_path / "x", str(GOLDEN / "llama"))
    assert not (tmp_path / "x").exists()
