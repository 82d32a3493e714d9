"""Hugging Face folders: outputs equal those of transformers, and reading then writing gives the same bytes."""

import filecmp
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from jax.sharding import Mesh
from ml_dtypes import float8_e4m3fn

from rl_llm import prng
from rl_llm.export import save
from rl_llm.export.config_json import config_to_json
from rl_llm.model import ModelConfig, forward, init, load
from rl_llm.model.huggingface import read_model
from rl_llm.model.huggingface.config_json import config_from_json
from rl_llm.model.huggingface.tensor_files import WeightsError, tensors_in
from rl_llm.parallel.mesh import MeshShape, make_mesh
from rl_llm.sampler import Sampling, compile_sampler
from rl_llm.types import Prompts

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FOLDERS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
MESH = make_mesh(MeshShape(), jax.devices()[:1])

Golden = tuple[ModelConfig, dict, dict[str, np.ndarray]]

compiled_forward = jax.jit(forward, static_argnums=0)

FEW = ("gemma3_scaled", "llama", "qwen3_moe", "qwen3_yarn")  # together they have every family feature


@pytest.fixture(scope="module", params=[n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in FOLDERS])
def golden(request: pytest.FixtureRequest) -> Golden:
    """A model of each family, and the outputs of transformers for some prompts."""
    config, params = load(GOLDEN / request.param)
    return config, params, dict(np.load(GOLDEN / request.param / "golden.npz"))


def test_logits_equal_those_of_transformers(golden: Golden) -> None:
    config, params, data = golden
    logits = np.asarray(compiled_forward(config, params, data["tokens"], data["lengths"]))
    valid = np.arange(data["tokens"].shape[1]) < data["lengths"][:, None]
    scale = np.abs(data["logits"]).max()
    np.testing.assert_allclose(logits[valid], data["logits"][valid], rtol=0, atol=min(1e-4, 5e-6 * max(scale, 1.0)))


def test_left_padding_changes_nothing(golden: Golden) -> None:
    config, params, data = golden
    width = data["tokens"].shape[1]
    mask = np.arange(width) >= width - data["lengths"][:, None]
    logits = np.asarray(compiled_forward(config, params, data["left_tokens"], mask=jnp.asarray(mask)))
    np.testing.assert_allclose(logits[mask], data["left_logits"][mask], rtol=0, atol=1e-4)


def test_greedy_generations_equal_those_of_transformers(golden: Golden) -> None:
    config, params, data = golden
    prompts = Prompts(data["tokens"], data["lengths"], np.arange(len(data["lengths"]), dtype=np.int32))
    length = data["generated"].shape[1]
    sample = compile_sampler(config, MESH, 1, length)
    rollout = sample(params, prompts, prng.key(0, prng.Purpose.ROLLOUT), Sampling().at(0.0).values(()))
    np.testing.assert_array_equal(rollout.tokens, data["generated"])


def test_bfloat16_compute_errs_less_than_a_bfloat16_model(golden: Golden) -> None:
    config, params, data = golden
    logits = np.asarray(
        compiled_forward(replace(config, compute_dtype="bfloat16"), params, data["tokens"], data["lengths"])
    )
    valid = np.arange(data["tokens"].shape[1]) < data["lengths"][:, None]
    rounding = np.abs(data["logits_bf16"] - data["logits"])[valid].mean()  # of a model wholly in bfloat16
    assert 0 < np.abs(logits - data["logits"])[valid].mean() < rounding


@pytest.mark.parametrize("name", FOLDERS)
def test_a_model_is_written_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    config, params = load(GOLDEN / name)
    save(config, params, tmp_path / "copy", like=GOLDEN / name)
    written = [path.name for path in (tmp_path / "copy").iterdir()]
    assert {"config.json", "generation_config.json"} < set(written)
    for file in written:
        assert filecmp.cmp(GOLDEN / name / file, tmp_path / "copy" / file, shallow=False), file


class Bucket(MemoryFileSystem):
    """gs:// in memory."""

    protocol = "gs"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("gs://"))


def test_a_folder_can_be_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: Bucket())
    for file in (GOLDEN / "qwen3").iterdir():
        Bucket().pipe_file(f"bucket/qwen3/{file.name}", file.read_bytes())
    config, params = load("gs://bucket/qwen3")
    jax.tree.map(np.testing.assert_array_equal, params, load(GOLDEN / "qwen3")[1])
    save(config, params, "gs://bucket/copy", like="gs://bucket/qwen3")
    files = [file for file in (GOLDEN / "qwen3").iterdir() if file.stem != "golden"]  # unknown, so not copied
    assert {path.rpartition("/")[2] for path in Bucket().ls("bucket/copy", detail=False)} == {f.name for f in files}
    for file in files:
        assert Bucket().cat_file(f"bucket/copy/{file.name}") == file.read_bytes()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_written_model_is_read_back_unchanged(name: str, tmp_path: Path) -> None:
    config, params = load(GOLDEN / name)
    save(config, params, tmp_path / "ours", dtype="float32")
    again, read = load(tmp_path / "ours")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, read, params)
    if (GOLDEN / name / "model.safetensors").exists():  # written by transformers, in one file
        assert filecmp.cmp(GOLDEN / name / "model.safetensors", tmp_path / "ours" / "model.safetensors", shallow=False)


def test_the_safetensors_library_reads_our_files(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    config, params = load(GOLDEN / "qwen3")
    save(config, params, tmp_path / "ours", dtype="float32")
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], params["embedding"])
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert filecmp.cmp(tmp_path / "theirs", tmp_path / "ours" / "model.safetensors", shallow=False)


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, params = load(GOLDEN / "qwen3")
    monkeypatch.setattr("rl_llm.export.writing.LARGEST_FILE", 15_000)
    save(config, params, tmp_path / "ours")
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    again, read = load(tmp_path / "ours")
    assert again == config
    np.testing.assert_array_equal(read["embedding"], np.asarray(params["embedding"].astype(jnp.bfloat16), np.float32))


@pytest.mark.parametrize("name", ["qwen3_tied", "qwen3_moe"])
def test_weights_are_read_straight_into_their_shardings(name: str, tmp_path: Path) -> None:
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    config, params = load(GOLDEN / name, mesh)
    _, whole = load(GOLDEN / name)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    gate = params["layers"]["gate"]
    assert isinstance(gate.sharding.mesh, Mesh)
    assert gate.addressable_shards[0].data.size < gate.size
    save(config, params, tmp_path / "copy", like=GOLDEN / name)
    for file in (GOLDEN / name).glob("*.safetensors"):
        assert filecmp.cmp(file, tmp_path / "copy" / file.name, shallow=False)


def changed_config(folder: Path, **changes: object) -> Path:
    values = json.loads((folder / "config.json").read_text())
    values = {name: value for name, value in (values | changes).items() if value != "gone"}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_that_a_dtype_cannot_hold_are_refused_by_name(dtype: Literal["float16", "bfloat16"], tmp_path: Path):
    config, params = load(GOLDEN / "llama")
    params["final_norm"] = params["final_norm"].at[3].set(1e6 if dtype == "float16" else jnp.nan)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight"):
        save(config, params, tmp_path / "x", dtype=dtype)
    with pytest.raises(ValueError, match="cut off"):
        save(config, params, tmp_path / "x", dtype="float32")


def test_a_folder_with_two_sets_of_weights_is_refused(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "llama", tmp_path / "x"))
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    _, params = load(folder)
    names = [t.name for t in tensors_in(epath.Path(folder / "model.safetensors"))]
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    both = r"two sets of weights: model\.safetensors, and the files in model\.safetensors\.index\.json, model-00001-of"
    with pytest.raises(WeightsError, match=both):
        load(folder)
    (folder / "model.safetensors").unlink()
    assert jax.tree.all(jax.tree.map(np.array_equal, load(folder)[1], params))


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "../b"}}'])
def test_a_damaged_index_is_refused(content: str, tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "x"))
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match=r"index\.json"):
        load(folder)


def test_a_duplicate_tensor_is_refused(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "llama", tmp_path / "x"))
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"model.layers.1.mlp.up_proj.weight"', b'"model.layers.0.mlp.up_proj.weight"'))
    with pytest.raises(WeightsError, match="appears twice"):
        load(folder)


def test_the_text_model_of_a_vision_language_model_is_read(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = GOLDEN / "gemma3"
    values = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": values, "vision_config": {}})
    )
    tensors = {f"language_model.{name}": x for name, x in load_file(source / "model.safetensors").items()}
    save_file(tensors | {"vision_tower.patch.weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    config, params = load(tmp_path)
    again, whole = load(source)
    assert config == again
    jax.tree.map(np.testing.assert_array_equal, params, whole)


WEIGHT = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(WEIGHT), [WEIGHT, "missing"]),
        (lambda t: t.update({"model.layers.9.extra": np.zeros(2, np.float32)}), ["model.layers.9.extra", "not part"]),
        (lambda t: t.update({WEIGHT: t[WEIGHT][:-1]}), [WEIGHT, "shape", "31"]),
        (lambda t: t.update({WEIGHT: t[WEIGHT].astype(np.float64)}), [WEIGHT, "F64", "F32"]),
        (lambda t: t.update({WEIGHT: t[WEIGHT].astype(np.int8)}), [WEIGHT, "I8", "F32, BF16, F16: save the model"]),
        (lambda t: t.update({WEIGHT: t[WEIGHT].astype(float8_e4m3fn)}), [WEIGHT, "F8_E4M3", "F32"]),
        (
            lambda t: t.update({"language_model.model.norm.weight": t["model.norm.weight"]}),
            ["language_model", "not part"],
        ),
        (lambda t: t.update({"vision_tower.x": t["model.norm.weight"]}), ["vision_tower.x", "not part"]),
        (lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), ["lm_head.weight"]),
        (lambda t: t.update({f"_orig_mod.{n}": t.pop(n) for n in list(t)}), ["'_orig_mod.', which torch.compile adds"]),
        (lambda t: t.update({f"module.{n}": t.pop(n) for n in list(t)}), ["'module.'", "save model.module"]),
        (lambda t: t.update({f"base_model.model.{n}": t.pop(n) for n in list(t)}), ["PEFT", "merge_and_unload()"]),
    ],
    ids=[
        *("missing", "extra", "misshapen", "double", "integers", "eight bits", "another model", "vision", "untied"),
        *("compiled", "parallel", "adapted"),
    ],
)
def test_weights_that_do_not_match_the_config_are_refused_by_name(
    change: object, words: list[str], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(GOLDEN / "qwen2", tmp_path / "x"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError) as refusal:
        load(folder)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_buffers_that_follow_from_the_config_are_read_over_and_written_back(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(GOLDEN / "qwen2", tmp_path / "x"))
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save_file(load_file(folder / "model.safetensors") | buffer, folder / "model.safetensors")
    config, params = load(folder)
    jax.tree.map(np.testing.assert_array_equal, params, load(GOLDEN / "qwen2")[1])
    save(config, params, tmp_path / "copy", like=folder)
    assert filecmp.cmp(folder / "model.safetensors", tmp_path / "copy" / "model.safetensors", shallow=False)


@pytest.mark.parametrize("declared", ["bfloat16", "float16", "torch.float32", None])
def test_weights_of_mixed_dtypes_are_read_whatever_config_json_declares(declared: str | None, tmp_path: Path) -> None:
    """As trainers save them: all in float32 under "bfloat16", or norms in float32 beside bfloat16."""
    from safetensors.numpy import load_file, save_file

    folder = changed_config(Path(shutil.copytree(GOLDEN / "qwen3_tied", tmp_path / "x")), torch_dtype=declared)
    jax.tree.map(np.testing.assert_array_equal, load(folder)[1], load(GOLDEN / "qwen3_tied")[1])
    tensors = load_file(folder / "model.safetensors")
    mixed = {name: x if "norm" in name else x.astype(jnp.bfloat16) for name, x in tensors.items()}
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    config, params = load(folder)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(params["embedding"], mixed["model.embed_tokens.weight"].astype(np.float32))
    np.testing.assert_array_equal(params["final_norm"], tensors["model.norm.weight"])
    save(config, params, tmp_path / "copy", like=folder)
    assert filecmp.cmp(folder / "model.safetensors", tmp_path / "copy" / "model.safetensors", shallow=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_finite_are_counted_and_refused(
    dtype: Literal["float32", "bfloat16", "float16"], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    config, params = load(GOLDEN / "qwen2")
    save(config, params, tmp_path / "x", dtype=dtype)
    file = tmp_path / "x" / "model.safetensors"
    tensors = load_file(file)
    values = tensors[WEIGHT].reshape(-1)
    values[[0, 1, -1]] = jnp.finfo(dtype).max, jnp.finfo(dtype).tiny, jnp.finfo(dtype).smallest_subnormal
    save_file(tensors, file)
    load(tmp_path / "x")  # the largest and smallest finite numbers
    values[[0, 5, -1]] = np.nan, -np.inf, np.inf
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=re.escape(f"{WEIGHT} in {file}: 3 of {values.size} values are NaN")):
        load(tmp_path / "x")


@pytest.mark.parametrize("kept", [4, 100, -1])
def test_a_file_that_was_cut_off_is_refused(kept: int, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "llama", tmp_path / "x"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load(folder)


def test_a_pointer_of_git_lfs_is_refused_with_the_command_that_gets_the_weights(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "llama", tmp_path / "x"))
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(WeightsError, match=r"is a pointer of git-lfs.*`git lfs pull`"):
        load(folder)


def test_a_folder_without_weights_is_refused_with_the_expected_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(tmp_path)
    shutil.copy(GOLDEN / "llama" / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(WeightsError, match="safetensors files only"):
        load(tmp_path)
    folder = Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "x"))
    (folder / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(WeightsError, match="model-00002-of-00004"):
        load(folder)


def test_save_refuses_existing_folders_and_models_outside_their_family(tmp_path: Path) -> None:
    config, params = load(GOLDEN / "llama")
    with pytest.raises(ValueError, match="not empty"):
        save(config, params, GOLDEN / "llama")
    with pytest.raises(ValueError, match="not a model of the family"):
        save(replace(config, qk_norm=True), params, tmp_path / "a")
    with pytest.raises(ValueError, match="not that of"):
        save(config, params, tmp_path / "b", like=GOLDEN / "qwen3")
    assert not list(tmp_path.iterdir())


def test_the_digest_changes_with_the_weights(tmp_path: Path) -> None:
    first = read_model(GOLDEN / "llama", MESH)
    folder = Path(shutil.copytree(GOLDEN / "llama", tmp_path / "x"))
    assert read_model(folder, MESH).digest == first.digest
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert read_model(folder, MESH).digest != first.digest


def test_initial_parameters_survive_a_folder(tmp_path: Path) -> None:
    config = ModelConfig(vocabulary=20, width=8, layers=1, heads=2, kv_heads=1, head_width=4, feed_forward=8)
    assert config_from_json(config_to_json(config, "bfloat16")) == config
    params = init(config, jax.random.key(0))
    save(config, params, tmp_path / "x", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "x")[1], params)
