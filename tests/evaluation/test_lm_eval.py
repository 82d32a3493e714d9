"""lm-evaluation-harness and transformers on our folders and samples.

The nightly tests need `pip install "lm_eval[hf]"` beside the package.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from program import rl_llm

from rl_llm.evaluation.samples import write_lm_eval

MODEL = Path(__file__).parents[1] / "data" / "tokenizers" / "qwen3"  # a whole, tiny Hugging Face folder
PROMPT = "Question: {question}\nAnswer:"
TASK = """include: GSM8K
task: own_gsm8k
dataset_path: json
dataset_name: null
dataset_kwargs: {data_files: {test: FILE}}
training_split: null
fewshot_split: test
num_fewshot: 0
generation_kwargs: {until: ["Question:"], do_sample: false, max_gen_toks: 8}
"""


def line(problem: int, sample: int, **changes: Any) -> dict[str, Any]:
    given = {"suite": "gsm8k", "problem": problem, "sample": sample, "prompt": "1 + 1?", "gold": "2"}
    return given | {"response": "It is #### 2", "answer": "2", "grade": 1.0, "components": {}} | changes


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def write(folder: Path, *lines: dict[str, Any]) -> list[dict[str, Any]]:
    write_lm_eval(folder, lines)
    (path,) = folder.glob("samples_gsm8k_*.jsonl")
    return read(path)


def test_samples_are_written_a_line_each_as_lm_eval_does(tmp_path: Path):
    wrong = line(7, 1, response="No.", answer=None, grade=None)
    lines = write(tmp_path, line(7, 0), wrong, line(9, 0, gold="3", grade=0.0), line(9, 1))
    assert [(one["doc_id"], one["filter"], one["exact_match"]) for one in lines] == [
        (0, "sample-0", 1.0),
        (0, "sample-1", 0.0),
        (1, "sample-0", 0.0),
        (1, "sample-1", 1.0),
    ]
    assert lines[1]["resps"] == [["No."]]
    assert lines[1]["filtered_resps"] == ["[invalid]"]
    assert lines[2]["doc"] == {"question": "1 + 1?", "answer": "3"}


def test_a_prompt_of_several_messages_is_one_text(tmp_path: Path):
    (found,) = write(tmp_path, line(7, 0, prompt=[{"role": "user", "content": "Two?"}]))
    assert found["arguments"] == [['[{"role": "user", "content": "Two?"}]', {}]]


@pytest.mark.nightly
@pytest.mark.slow
def test_lm_eval_reads_our_samples_with_its_own_filters_and_metric(tmp_path: Path):
    pytest.importorskip("lm_eval")
    from lm_eval.filters import build_filter_ensemble
    from lm_eval.utils import get_file_task_name

    lines = write(tmp_path, line(7, 0), line(9, 0, response="It is 3.", answer=None, grade=0.0))
    assert get_file_task_name(next(tmp_path.glob("samples_*.jsonl")).name) == "gsm8k"
    pattern = {"regex_pattern": "#### (\\-?[0-9\\.\\,]+)"}  # of its gsm8k.yaml
    strict = build_filter_ensemble("strict-match", [["regex", pattern], ["take_first", None]])
    found = [one["resps"][0] for one in lines]
    for apply_filter in strict.filters:
        found = list(apply_filter().apply(found, [one["doc"] for one in lines]))
    assert found == ["2", "[invalid]"]
    assert [float(answer == one["target"]) for answer, one in zip(found, lines, strict=True)] == [1.0, 0.0]


@pytest.mark.nightly
@pytest.mark.slow
def test_lm_eval_and_transformers_answer_as_we_do(tmp_path: Path):
    """lm_eval with its own task file for GSM8K, greedy, on another file of problems, without a hub."""
    for package in ("lm_eval", "torch", "transformers"):
        pytest.importorskip(package)
    rows = [{"question": f"How much is {n} plus {n}?", "answer": f"#### {2 * n}"} for n in range(4)]
    (tmp_path / "file.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (package,) = find_spec("lm_eval").submodule_search_locations  # type: ignore[union-attr]
    task = TASK.replace("GSM8K", f"{package}/tasks/gsm8k/gsm8k.yaml").replace("FILE", str(tmp_path / "file.jsonl"))
    (tmp_path / "own_gsm8k.yaml").write_text(task)
    (tmp_path / "prompt.txt").write_text(PROMPT)
    options = ("--no-chat", "--temperature", "0", "--max-tokens", "8", "--stop", "Question:", "--lm-eval")
    suite = ("--suite", f"gsm8k={tmp_path / 'file.jsonl'}", "--prompt", tmp_path / "prompt.txt")
    code, _, stderr = rl_llm("evaluate", MODEL, *suite, *options, "--out", tmp_path / "ours")
    assert code == 0, stderr
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={MODEL},dtype=float32"]
    command += ["--tasks", "own_gsm8k", "--include_path", str(tmp_path), "--device", "cpu", "--log_samples"]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path / "theirs")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (read(next((tmp_path / name).rglob("samples_*.jsonl"))) for name in ("ours", "theirs"))
    answers = {one["arguments"][0][0]: one["resps"][0][0] for one in ours}
    assert len(answers) == 4
    assert any(answers.values())
    for one in theirs:
        prompt = one["arguments"]["gen_args_0"]["arg_0"]
        assert one["resps"][0][0].strip() == answers[prompt].strip()
