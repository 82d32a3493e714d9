"""The experiment on a Hugging Face folder at a tiny size.

It runs, learns from exactly the sampled tokens, and refuses another tokenizer when resumed or evaluated.
"""

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from program import ROOT, Finished, rl_llm

from rl_llm.cli import main
from rl_llm.config import load_experiment
from rl_llm.learner.state import Draw, init_state
from rl_llm.learner.train_step import compile_make_batch
from rl_llm.parallel.mesh import Meshes, make_mesh
from rl_llm.rollout.collect import Collector
from rl_llm.rollout.engine import open_engine
from rl_llm.runs.folder import RunFolder
from rl_llm.runs.record import experiment_record
from rl_llm.runs.run import open_run
from rl_llm.sampler import Sampling
from rl_llm.types import Rollout

FILE = "experiments/qwen3_4b_gsm8k.py"
SMOKE = load_experiment(f"{ROOT / FILE}:smoke")[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tokenizer's files, and a folder for the prepared problems."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copytree(SMOKE.tokenizer.folder, folder / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture(scope="module")
def options(files: Path) -> list[str]:
    given = [f"tokenizer.folder={files / 'tokenizer'}", f"task.data_dir={files / 'prepared'}"]
    return [part for change in given for part in ("--set", change)]


@pytest.fixture(scope="module")
def run(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("run") / "run"
    code, stdout, stderr = rl_llm("train", f"{FILE}:smoke", "--out", folder, *options)
    assert code == 0, stderr
    return Finished(folder, stdout, stderr)


@pytest.mark.slow
def test_it_runs_and_sampler_and_learner_agree(run: Finished):
    assert len(run.metrics) == SMOKE.steps
    for line in run.metrics:
        assert line["grading/ok"] == SMOKE.prompts_per_step * SMOKE.responses_per_prompt
        assert line["agreement/max"] < 1e-4  # fails on any other tokens


@pytest.mark.slow
def test_the_learner_gets_exactly_the_sampled_tokens(files: Path, tmp_path: Path):
    """Encoding their text again would give other tokens."""
    task = replace(SMOKE.task, data_dir=files / "prepared")
    experiment = replace(SMOKE, task=task, sampling=Sampling(max_tokens=6), model=replace(SMOKE.model, layers=1))
    mesh, sampled = make_mesh(experiment.mesh, jax.devices()[:1]), []
    params = init_state(experiment.model, experiment.optimizer.build(4), mesh, Draw(jax.random.key(0))).params
    record = experiment_record(experiment, FILE, [], 0, "cafe")
    with (
        RunFolder.create(tmp_path / "run", record) as folder,
        open_run(experiment, 0, folder, time.monotonic(), mesh) as (run, _),
        open_engine(experiment, Meshes(mesh, mesh)) as engine,
    ):

        def noted(*arguments: Any) -> Rollout:
            sampled.append(engine.sample(*arguments))
            return sampled[-1]

        collector = Collector(run, replace(engine, sample=noted), experiment.task.problems("train", 16, 0))
        graded = collector.wait(0, collector.start(0, params))
    batch, _ = compile_make_batch(experiment.algorithm, mesh)(graded.learned, {}, None, None)
    tokens, mask = jax.device_get((sampled[0].tokens, sampled[0].mask))
    np.testing.assert_array_equal(batch.tokens, tokens)
    np.testing.assert_array_equal(batch.mask, mask)
    again = [experiment.tokenizer.encode(text) for text in graded.responses]
    rows = [row[: int(length)].tolist() for row, length in zip(tokens, mask.sum(axis=1), strict=True)]
    assert sum(one == other for one, other in zip(again, rows, strict=True)) < len(rows) / 2


@pytest.mark.slow
def test_the_policy_is_exported_with_its_tokenizer(run: Finished, tmp_path: Path):
    code, _, stderr = rl_llm("export", run.folder, "--out", tmp_path / "like")
    assert code == 0, stderr
    source = ROOT / "tests/data/tokenizers/qwen3"
    for name in ("tokenizer.json", "chat_template.jinja", "config.json"):
        assert (tmp_path / "like" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "like" / "model.safetensors").stat().st_size == (source / "model.safetensors").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json"])
def test_other_tokenizer_files_are_refused_when_resumed_or_evaluated(
    run: Finished, options: list[str], files: Path, name: str, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(ROOT)
    changed = files / "tokenizer" / name
    content = changed.read_text()
    changed.write_text(content.replace("assistant", "helper") if name.endswith("jinja") else content + " ")
    try:
        assert main(["evaluate", str(run.folder)]) == 2
        assert "the tokenizer or its chat template has changed since the run" in capsys.readouterr().err
        assert main(["train", f"{FILE}:smoke", "--out", str(run.folder), "--resume", *options]) == 2
        assert re.search(r"another experiment.*\n  tokenizer: \w{64} -> \w{64}", capsys.readouterr().err)
    finally:
        changed.write_text(content)


def test_missing_files_are_named_with_how_to_get_them(monkeypatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(ROOT)
    for spec, given, words in (
        ("paper", [], "hf download Qwen/Qwen3-4B-Base"),
        ("smoke", ["--set", "task.path=nowhere.jsonl"], "'nowhere.jsonl' is not a file"),
    ):
        assert main(["train", f"{FILE}:{spec}", "--out", str(tmp_path / "run"), *given]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
