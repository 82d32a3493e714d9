"""The benchmarks run at a tiny size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["--layers", "1", "--width", "16", "--heads", "2", "--head-dim", "8", "--ffn", "16", "--vocab", "32"]
TINY += ["--prompts", "2", "--responses", "2", "--prompt-tokens", "4", "--new-tokens", "4", "--steps", "1"]


def lines_of(script: str, *options: str) -> list[str]:
    command = [sys.executable, f"experiments/benchmarks/{script}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_step_is_timed():
    result = json.loads(lines_of("rl_step.py", *TINY)[-1])
    assert result["generated_tokens"] == 16
    assert 0 < result["generate_s"] < result["step_s"]
    assert result["agreement_max"] < 1e-4


@pytest.mark.slow
def test_real_shapes_are_timed_against_a_chip():
    options = ("--smoke", "--models", "QWEN3_0_6B", "--prompts", "2", "--responses", "2", "--micro-batches", "2")
    assert lines_of("accelerator.py", *options)[-1].startswith("| QWEN3_0_6B | ")


@pytest.mark.nightly("test_population_study.py checks what is timed; the other benchmarks run")
def test_a_population_is_timed_against_one_run():
    options = ("--experiment", "tests/data/gates.py:passes", "--members", "2")
    one, two = lines_of("population.py", *options)[-2:]
    assert one.startswith("| 1 | ")
    assert two.startswith("| 2 | ")


def test_gold_answers_are_put_back_and_responses_timed(tmp_path: Path):
    lines = [{"question": "?", "answer": gold} for gold in ("7", "x+1", "#### 1/2")]
    (tmp_path / "golds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "| golds.jsonl | GSM8K | 3 | 100.00% | 1 |" in lines_of("answers.py", str(tmp_path))
    responses = tmp_path / "responses.jsonl"
    responses.write_text(json.dumps({"gold": "7", "response": "So 7."}) + "\n")
    assert lines_of("answers.py", "--responses", str(responses))[0].startswith("numeric golds: 1 responses, gradings")
