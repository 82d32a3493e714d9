"""A new user types every file and every command of docs/getting_started.md; only sizes are smaller."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import learning_curve
import pytest
from pages import ROOT, Command, blocks, typed
from program import CACHE

from rl_llm.studies.folder import COMPILED

PAGE = ROOT / "docs" / "getting_started.md"
SMALLER = {
    "width=64, layers=2, heads=4, kv_heads=2, head_width=16, feed_forward=128": (
        "width=16, layers=1, heads=2, kv_heads=1, head_width=8, feed_forward=32"
    ),
    "steps=400,": "steps=2,",
    "steps=200,": "steps=1,",
    "steps=40,": "steps=2,",
    "demonstrations_per_step=64": "demonstrations_per_step=16",
    "rows_per_step=8": "rows_per_step=2",
    "warmup_updates=20": "warmup_updates=1",
    "warmup_updates=10": "warmup_updates=1",
    "warmup_updates=4": "warmup_updates=1",
    "prompts_per_step=32": "prompts_per_step=16",
    "responses_per_prompt=8": "responses_per_prompt=2",
    "max_tokens=1024": "max_tokens=8",
    "max_prompt_tokens=512": "max_prompt_tokens=128",
    "train_problems=2048": "train_problems=16",
    "train_problems=4096": "train_problems=16",
    "Evaluation(problems=256, every=10)": "Evaluation(problems=16, every=1)",
    "Evaluation(problems=256, every=20)": "Evaluation(problems=4, every=1)",
    "problems=64)": "problems=16)",
    "seeds=5": "seeds=2",
    "ablate sorting_study.py": "ablate sorting_study.py --jobs 1 --shared shared",
    "--seeds 8": "--seeds 2",
    "--problems 500": "--problems 20",
}
# Programs that fetch or install, and the TPU compiler: tests/docs/test_documents.py reads these lines.
NOT_RUN = ("make", "source", "pip", "hf", "curl")

# One process for all commands: the imports would take longer than they do.
RUN = """
import contextlib, io, json, runpy, sys
from rl_llm.cli import main
if __name__ == "__main__":  # workers import this file, too
    sys.path.insert(0, ".")
    for words in json.loads(sys.argv[1]):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = main(words[1:]) if words[0] == "rl-llm" else runpy.run_path(words[1], run_name="__main__") and 0
        print(json.dumps([words, code, said.getvalue()]))
"""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Ended:
    """A command at its end."""

    command: str
    code: int
    output: str


def smaller(text: str) -> str:
    """A text of the page at the scale of a test."""
    for shown, tried in SMALLER.items():
        text = text.replace(shown, tried)
    return text


def commands() -> list[Command]:
    """The commands that are run."""
    return [one for one in typed(PAGE) if one.words[0] not in NOT_RUN and one.words[:2] != ["rl-llm", "plan"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the user: the files of the page, and a tiny model where a published one is fetched."""
    home = tmp_path_factory.mktemp("user")
    for block in blocks(PAGE):
        if block.language == "python":
            name, _, code = block.text.partition("\n")
            (home / name.removeprefix("# ")).write_text(smaller(code))
    (home / "run.py").write_text(RUN)
    (home / "shared").mkdir()
    (home / "shared" / COMPILED).symlink_to(CACHE["JAX_COMPILATION_CACHE_DIR"])
    shutil.copytree(ROOT / "tests" / "data" / "tokenizers" / "qwen3", home / "Qwen3-0.6B")
    shutil.copy(ROOT / "tests" / "data" / "gsm8k_style.jsonl", home / "train.jsonl")
    return home


@pytest.fixture(scope="module")
def ended(folder: Path) -> list[Ended]:
    """The outcome of every command, with the environment that some of them are shown with."""
    environment = {name: value for one in commands() for name, value in one.environment.items()}
    assert environment == {"JAX_NUM_CPU_DEVICES": "2"}
    words = [shlex.split(smaller(str(one))) for one in commands()]
    done = subprocess.run(
        [sys.executable, "run.py", json.dumps(words)],
        cwd=folder,
        env={**os.environ, **CACHE, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Ended(" ".join(words), code, output) for words, code, output in map(json.loads, done.stdout.splitlines())]


def test_every_command_succeeds(ended: list[Ended]):
    assert len(ended) == len(commands()) > 10
    assert [one for one in ended if one.code != 0] == []


def test_every_file_is_used(ended: list[Ended]):
    """A file of the page is named by a command, or imported by one that is."""
    files = [block.text.partition("\n")[0].removeprefix("# ") for block in blocks(PAGE) if block.language == "python"]
    text = PAGE.read_text() + " ".join(one.command for one in ended)
    unused = [file for file in files if not re.search(rf" {file}\b|^from {file[:-3]} import", text, re.MULTILINE)]
    assert (len(files), unused) == (len(set(files)), [])


def test_every_size_is_shown_by_the_page():
    assert [shown for shown in SMALLER if shown not in PAGE.read_text()] == []


def test_the_run_folder_holds_what_the_page_lists(ended: list[Ended], folder: Path):
    run = folder / "runs" / "sorting-seed0"
    table = re.search(r"\| in `runs/sorting-seed0`.*?\n\n", PAGE.read_text(), re.DOTALL)
    assert table is not None
    listed = {name.rstrip("/") for name in re.findall(r"`([\w.]+(?:json|jsonl|html|/))`", table[0])}
    assert len(listed) == 9
    assert listed <= {path.name for path in run.iterdir()}


def test_the_metrics_are_read_in_python(ended: list[Ended]):
    (read,) = [one for one in ended if one.command == "python accuracy.py"]
    assert re.fullmatch(r"(\d+ \d+ [\d.]+\n){2}", read.output)


def test_the_study_judges_its_hypotheses(ended: list[Ended], folder: Path):
    results = json.loads((folder / "runs" / "studies" / "sorting_study-cpu" / "results.json").read_text())
    assert [verdict["pairs"] for verdict in results["verdicts"]] == [2, 2]


def test_the_export_has_the_files_of_the_model(ended: list[Ended], folder: Path):
    names = [{path.name for path in (folder / part).iterdir()} for part in ("trained", "Qwen3-0.6B")]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names[0] <= names[1] | {"README.md"}
    assert "## Training" in (folder / "trained" / "README.md").read_text()


def test_the_learning_curve_of_a_run_is_drawn(ended: list[Ended], folder: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = folder / "curve.svg"
    monkeypatch.setattr(sys, "argv", ["", str(folder / "runs" / "sorting-seed0"), "--out", str(drawn)])
    learning_curve.main()
    assert drawn.read_text().rstrip().endswith("</svg>")
    assert "tokens per response" in drawn.read_text()
