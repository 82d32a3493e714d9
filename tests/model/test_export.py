"""An exported folder: what describes the model for others, and nothing that holds or points to other weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from program import EXPERIMENT

from rl_llm.cli import main
from rl_llm.commands.export import export, longest_text
from rl_llm.commands.model_card import _front_matter
from rl_llm.config import load_experiment, override
from rl_llm.experiment import Conversations, Experiment, WarmStart
from rl_llm.export import save
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import init_state, policy_of
from rl_llm.model import add_adapters, forward, init, join_params, load
from rl_llm.model.huggingface.adapters import read_adapted
from rl_llm.parallel.mesh import MeshShape, make_mesh
from rl_llm.runs.folder import RunFolder
from rl_llm.runs.ledger import Ledger
from rl_llm.runs.load import load_source_models
from rl_llm.runs.record import experiment_record
from rl_llm.runs.state import save_state
from rl_llm.types import TrainState

DATA = Path(__file__).parents[1] / "data"
GOLDEN, TOKENIZER = DATA / "golden", DATA / "tokenizers" / "qwen3"
SPEC = str(DATA / "exported.py")
MESH = make_mesh(MeshShape(), jax.devices()[:1])
STALE = (
    *("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json", "model.gguf"),
    *("flax_model.msgpack", "tf_model.h5", "pytorch_model.bin", "pytorch_model.bin.index.json", "model.onnx"),
    *("license_head.safetensors", "LICENSE.bin", "notice.pt", "adapter_config.json"),
    *("adapter_model.safetensors", "consolidated.safetensors", "README.md"),
)
TERMS = ("LICENSE.txt", "NOTICE", "LICENSE-APACHE-2.0", "license.fr.md", "USE_POLICY.md")
DESCRIBING = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
MODEL = {"config.json", "model.safetensors", "README.md"}
END, TURN = 320, 322  # <|endoftext|>, <|im_end|>
SUMMARY = {"accuracy_before": 0.25, "accuracy_after": 0.5, "greedy_before": 0.0, "greedy_after": 0.75, "findings": []}
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


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model's folder, whose texts end at <|endoftext|> and whose turns end at <|im_end|>."""
    folder = Path(shutil.copytree(TOKENIZER, tmp_path / "base"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<|endoftext|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": END}))
    (folder / "expected.json").unlink()
    return folder


def stopped_run(folder: Path, name: str, start: Path, *changes: str, summary: dict | None = None) -> TrainState:
    """Make the folder of a run in step 2 that started from a folder, and return its state, not of the start."""
    overrides = [f"start={start}", *changes]
    if not any(change.startswith("tokenizer.folder") for change in changes):
        overrides.append(f"tokenizer.folder={start}")
    spec = f"{SPEC}:{name}"
    experiment = override(load_experiment(spec, Experiment)[1], overrides)
    sources = load_source_models(experiment, MESH)
    assert sources.start is not None
    first = add_adapters(experiment.model, sources.start, jax.random.key(1))
    state = init_state(experiment.model, experiment.optimizer.build(2), MESH, first)
    state = replace(state, params=jax.tree.map(lambda weight: weight + 0.02, state.params))
    record = experiment_record(experiment, spec, overrides, 0, "cafe", sources.origins)
    with RunFolder.create(folder, record) as opened:
        save_state(opened, 2, state, {})
        if summary:
            opened.write_summary(summary)
    return state


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_only_what_describes_the_model_is_copied(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in (*STALE, *TERMS, "special_tokens_map.json"):
        (base / name).write_text("{}")
    (base / "global_step5").mkdir()
    stopped_run(tmp_path / "run", "base", base)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert names(tmp_path / "out") == MODEL | DESCRIBING | {*TERMS, "special_tokens_map.json"}
    assert f"not copied from {base}: LICENSE.bin, adapter_config.json, adapter_model.safetensors, consolidated" in said
    assert "the policy of step 2: " in said
    assert (tmp_path / "out" / "README.md").read_text() != "{}"


def test_the_end_tokens_of_the_run_are_those_of_the_folder(base: Path, tmp_path: Path):
    stopped_run(tmp_path / "run", "base", base)
    exported = export(tmp_path / "run", str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written == {"temperature": 0.6, "eos_token_id": [TURN, END]}
    assert exported.notes == (
        f"generation_config.json: eos_token_id is [{TURN}, {END}], where the run stopped, instead of [{END}]",
    )
    for name in DESCRIBING - {"generation_config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()


def test_end_tokens_that_are_the_same_leave_the_file_as_it_is(tmp_path: Path):
    stopped_run(tmp_path / "run", "base", TOKENIZER)
    export(tmp_path / "run", str(tmp_path / "out"))
    for name in DESCRIBING | {"config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (TOKENIZER / name).read_bytes()


def test_without_a_generation_config_the_other_special_tokens_are_kept(base: Path, tmp_path: Path):
    (base / "generation_config.json").unlink()
    values = json.loads((base / "config.json").read_text())
    stopped_run(tmp_path / "run", "base", base)
    export(tmp_path / "run", str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    special = {name: values[name] for name in ("bos_token_id", "pad_token_id")}
    assert written == special | {"eos_token_id": [TURN, END]}
    (base / "config.json").write_text(json.dumps(values | {"eos_token_id": [END, TURN]}))
    stopped_run(tmp_path / "again", "base", base)
    export(tmp_path / "again", str(tmp_path / "same"))
    assert "generation_config.json" not in names(tmp_path / "same")


def test_the_tokenizer_is_the_runs_and_not_that_of_the_start(base: Path, tmp_path: Path):
    weights = Path(shutil.copytree(base, tmp_path / "weights"))
    (weights / "added_tokens.json").write_text("{}")
    (weights / "chat_template.jinja").write_text("{{ messages }}")
    stopped_run(tmp_path / "run", "base", weights, f"tokenizer.folder={base}")
    export(tmp_path / "run", str(tmp_path / "out"))
    assert names(tmp_path / "out") == MODEL | DESCRIBING
    template = (tmp_path / "out" / "chat_template.jinja").read_bytes()
    assert template == (base / "chat_template.jinja").read_bytes()
    chosen = export(tmp_path / "run", str(tmp_path / "like"), like=str(weights))
    assert f"{weights} has other tokenizer files than the run: chat_template.jinja" in chosen.notes
    assert (tmp_path / "like" / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.slow
def test_adapters_are_exported_alone_and_give_the_policy_over_their_base(base: Path, tmp_path: Path):
    state = stopped_run(tmp_path / "run", "lora", base)
    exported = export(tmp_path / "run", str(tmp_path / "out"), adapter=True)
    assert names(tmp_path / "out") == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert exported.notes == (
        f"the run stopped at the tokens [{TURN}, {END}], and {base} names [{END}]: give servers the former",
    )
    read = read_adapted(tmp_path / "out", None, MESH)
    experiment = load_experiment(f"{SPEC}:lora", Experiment)[1]
    tokens = np.arange(12)[None]
    expected = forward(replace(experiment.model, compute_dtype="float32"), policy_of(state), tokens)
    np.testing.assert_allclose(forward(read.config, read.params, tokens), expected, atol=1e-4)
    assert np.abs(forward(*load(base), tokens) - expected).max() > 0.01
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("name", "use"), [("lora", "go on as the run's"), ("wide", "are merged into the weights")])
def test_a_run_starts_from_adapters_and_is_exported_like_their_base(name: str, use: str, base: Path, tmp_path: Path):
    first = stopped_run(tmp_path / "run", "lora", base)
    export(tmp_path / "run", str(tmp_path / "adapter"), adapter=True)
    experiment = load_experiment(f"{SPEC}:{name}", Experiment)[1]
    sources = load_source_models(replace(experiment, start=str(tmp_path / "adapter")), MESH)
    assert sources.notes == (f"start={tmp_path / 'adapter'}: its adapters of {base} {use}",)
    if name == "lora":
        kept = join_params(first.params, first.frozen)
        jax.tree.map(np.testing.assert_array_equal, sources.start, kept)
    stopped_run(tmp_path / "next", name, tmp_path / "adapter", f"tokenizer.folder={base}")
    export(tmp_path / "next", str(tmp_path / "out"))
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    if name == "lora":
        export(tmp_path / "next", str(tmp_path / "again"), adapter=True)
        read_adapted(tmp_path / "again", experiment.model.lora, MESH)
    else:
        with pytest.raises(ValueError, match=r"beneath the adapters is not that of .*: they belong to other weights"):
            export(tmp_path / "next", str(tmp_path / "again"), adapter=True)


def test_adapters_that_others_cannot_load_are_not_exported(base: Path, tmp_path: Path):
    stopped_run(tmp_path / "run", "base", base)
    with pytest.raises(ValueError, match=r"--adapter cannot act: the run .*run has no adapters"):
        export(tmp_path / "run", str(tmp_path / "out"), adapter=True)
    with pytest.raises(ValueError, match="dtype=float16 cannot act"):
        export(tmp_path / "run", str(tmp_path / "out"), dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_model_of_the_hub_to_be_like_is_refused_with_its_download(base: Path, tmp_path: Path):
    stopped_run(tmp_path / "run", "base", base)
    with pytest.raises(FileNotFoundError, match="hf download Qwen/Qwen3-4B --local-dir qwen3-4b, then use the folder"):
        export(tmp_path / "run", str(tmp_path / "out"), like="Qwen/Qwen3-4B")


def card_of(base: Path, tmp_path: Path, **results: Any) -> str:
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlicense_link: there\ntags:\n- x\n---\nlicense: none\n")
    stopped_run(tmp_path / "run", "base", base, summary=SUMMARY | results if results else None)
    export(tmp_path / "run", str(tmp_path / "out"))
    return (tmp_path / "out" / "README.md").read_text()


def test_the_model_card_says_what_was_trained(base: Path, tmp_path: Path):
    card = card_of(base, tmp_path, steps=2)
    front, _, rest = card.removeprefix("---\n").partition("\n---\n")
    assert front.splitlines()[:2] == ["library_name: transformers", "pipeline_tag: text-generation"]
    assert f'base_model: "{base}"' in front
    assert "\nlicense: apache-2.0\nlicense_link: there\n" in front
    assert "license: none" not in card
    assert "These are the weights of step 2 of 2." in rest
    record = json.loads((tmp_path / "run" / "experiment.json").read_text())
    for row in (
        "| algorithm.advantage | Normalize(mean='group', std='batch'",
        "| algorithm.objective | Clip(low=0.2, high=0.2, cap=None) |",
        "learning_rate=0.001",
        "| task | JsonlProblems(",
        f"| end tokens | {TURN}, {END} |",
        f"| SHA-256 of the experiment | {record['fingerprint']} |",
        "| SHA-256 of the problems | cafe |",
        "| accuracy on 4 held-out problems | before RL | after RL |",
        "| sampled | 25.0% | 50.0% |",
        f"rl-llm train {SPEC}:base --seed 0 --set start={base}",
        f"| jax | {record['versions']['jax']} |",
    ):
        assert row in rest, row


def test_the_card_says_that_the_code_was_changed_during_the_run(base: Path, tmp_path: Path):
    run = tmp_path / "run"
    stopped_run(run, "base", base)
    record = json.loads((run / "experiment.json").read_text())
    (run / "experiment.json").write_text(json.dumps(record | {"code": {"reward.py": "11", "task.py": "33"}}))
    Ledger(run / "ledger.jsonl").append("code_recorded", code={"reward.py": "22"}, was={"reward.py": "11"}, commit=None)
    export(run, str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| SHA-256 of reward.py | 22 |" in card
    assert "| SHA-256 of task.py | 33 |" in card
    assert "The code was changed during the run: reward.py. One command does not repeat it." in card


def test_the_card_names_no_base_for_a_model_trained_from_scratch(base: Path, tmp_path: Path):
    spec = f"{SPEC}:base"
    experiment = override(load_experiment(spec, Experiment)[1], ["start=null", f"tokenizer.folder={base}"])
    assert experiment.start is None
    state = init_state(experiment.model, experiment.optimizer.build(2), MESH, init(experiment.model, jax.random.key(0)))
    with RunFolder.create(
        tmp_path / "run", experiment_record(experiment, spec, ["start=null", f"tokenizer.folder={base}"], 0, "cafe")
    ) as opened:
        save_state(opened, 2, state, {})
    export(tmp_path / "run", str(tmp_path / "out"), like=str(base))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in card
    assert "# run: a model\n" in card


def test_the_start_is_found_from_any_folder_and_missed_if_it_is_gone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    stopped_run(tmp_path / "run", "base", Path("base"), f"tokenizer.folder={base}")
    stopped_run(tmp_path / "next", "base", Path("base"), f"tokenizer.folder={TOKENIZER}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    export(tmp_path / "run", str(tmp_path / "out"))
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert f'base_model: "{base}"' in (tmp_path / "out" / "README.md").read_text()
    base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"start=base of the run is gone: .*base is no Hugging .*or name a copy"):
        export(tmp_path / "next", str(tmp_path / "again"))
    export(tmp_path / "next", str(tmp_path / "again"), like=str(tmp_path / "moved"))
    assert f'base_model: "{tmp_path / "moved"}"' in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", {"license": ["mit", "apache-2.0"]}),
        (
            "---\nlicense: other\nlicense_link: >-\n  https://x.y/\n---\n# a\n",
            {"license": "other", "license_link": "https://x.y/"},
        ),
        ("\ufeff---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
        ("---\nlicense: [unfinished\n---\n", {"license": "other", "license_link": "LICENSE"}),
        ("# no front matter\nlicense: mit\n", {"license": "other", "license_link": "LICENSE"}),
    ],
)
def test_the_card_has_the_licence_of_its_base(card: str, licence: dict, tmp_path: Path):
    (tmp_path / "README.md").write_bytes(card.encode())
    (tmp_path / "LICENSE").write_text("terms")
    values = yaml.safe_load(_front_matter(str(tmp_path), adapter=False).replace("---", ""))
    assert {name: value for name, value in values.items() if name.startswith("license")} == licence


def test_the_card_of_a_run_cut_off_has_no_evaluation(base: Path, tmp_path: Path):
    card = card_of(base, tmp_path)
    assert "The run was not finished, so there is no evaluation of this policy." in card


def test_the_card_names_the_step_of_an_evaluation_of_other_weights(base: Path, tmp_path: Path):
    assert "The policy after RL is that of step 4, not the one in this folder." in card_of(base, tmp_path, steps=4)
