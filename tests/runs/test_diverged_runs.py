"""A run whose gradients are no longer finite stops, and keeps the evidence."""

import json
from pathlib import Path

import pytest
from program import ROOT, TINY, rl_llm

from rl_llm.runs.divergence import SKIPS_IN_A_ROW
from rl_llm.runs.folder import read_metrics

# Rewards by a coin differ whatever the policy says, so their gradients stay defined while its parameters explode.
COIN = """
from dataclasses import replace
from experiments.paper.controls import Coin
from rl_llm.rewards.components import Reward
from rl_llm.learner.optimizer import AdamW
from tests.data.tiny import cold
base = replace(cold, reward=Reward((Coin(),)), optimizer=AdamW(1e30), steps=40)
"""


def last_event(folder: Path) -> str:
    return json.loads((folder / "ledger.jsonl").read_text().splitlines()[-1])["event"]


def test_a_warm_start_that_diverges_stops_with_its_state_saved(tmp_path: Path):
    rate = ("--set", "warm_start.optimizer.learning_rate=1e30")
    code, _, stderr = rl_llm("train", ROOT / TINY, "--out", tmp_path / "run", *rate)
    assert code == 1, stderr
    assert f"gradients were not finite in {SKIPS_IN_A_ROW} steps in a row" in stderr
    assert "Start a new run with a smaller learning rate" in stderr
    lines = read_metrics(tmp_path / "run")
    assert [line["update/skipped"] for line in lines[-SKIPS_IN_A_ROW:]] == [1.0] * SKIPS_IN_A_ROW
    assert last_event(tmp_path / "run") == "diverged"
    assert (tmp_path / "run" / "checkpoints" / str(len(lines))).is_dir()


@pytest.mark.slow
def test_a_policy_that_diverges_leaves_its_last_batch_and_does_not_go_on_when_resumed(tmp_path: Path):
    (tmp_path / "coin.py").write_text(COIN)
    command = ("train", tmp_path / "coin.py", "--out", tmp_path / "run")
    code, _, stderr = rl_llm(*command)
    assert code == 1, stderr
    assert "samples.jsonl the last batch" in stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    steps = len(read_metrics(tmp_path / "run"))
    assert len([line for line in lines if line["when"] == "diverged" and line["step"] == steps]) == 8 * 4
    assert steps < 40
    assert rl_llm(*command, "--resume")[0] == 1
    assert len(read_metrics(tmp_path / "run")) == steps + 1
