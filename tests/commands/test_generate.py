"""`rl-llm generate`: one prompt, answered by a Hugging Face folder or a run's policy."""

import io
from pathlib import Path

import jax
import pytest
from program import rl_llm

from rl_llm.cli import main
from rl_llm.export import save
from rl_llm.model import ModelConfig, init
from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer

TOKENIZER = Path(__file__).parents[1] / "data" / "tokenizers" / "qwen3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with Qwen3's kind of tokenizer."""
    path = tmp_path_factory.mktemp("generate") / "model"
    files = {file.name: file.read_bytes() for file in TOKENIZER.iterdir() if file.is_file() and "token" in file.name}
    size = HuggingFaceTokenizer(str(TOKENIZER), chat=False).vocab_size
    config = ModelConfig(vocabulary=size, width=8, layers=1, heads=2, kv_heads=1, head_width=4, feed_forward=8)
    save(config, init(config, jax.random.key(0)), path, dtype="float32", beside=files)
    return path


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Standard output and error of a command that succeeds."""
    assert main(["generate", *arguments]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_folder_answers_and_says_what_was_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = str(folder), "What is 2+2?", "--max-tokens", "4", "--samples", "2"
    first = asked(capsys, *common, "--seed", "1")
    assert first[1].count("tokens, ") == 2
    assert "[4 tokens, cut by --max-tokens]" in first[1]
    assert asked(capsys, *common, "--seed", "1") == first
    assert asked(capsys, *common, "--seed", "2") != first


def test_a_prompt_is_read_from_standard_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = "--max-tokens", "4", "--temperature", "0"
    given = asked(capsys, str(folder), "What is 2+2?", *common)
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 2+2?\n"))
    assert asked(capsys, str(folder), "-", *common) == given


def test_a_platform_without_a_device_is_one_line(folder: Path) -> None:
    code, stdout, stderr = rl_llm("generate", folder, "2+2=", JAX_PLATFORMS="cuda")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert stderr.startswith("rl-llm generate: JAX_PLATFORMS=cuda: JAX finds no such device (")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}", "x", "--step", "3"], "is a Hugging Face folder, without --step: it holds one model"),
        (["Qwen/Qwen3-4B", "x"], "hf download Qwen/Qwen3-4B --local-dir qwen3-4b, then ask qwen3-4b"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_way_out(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *(text.format(folder=folder) for text in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_a_negative_seed_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", str(folder), "x", "--seed", "-1"])
    assert "must be a whole number from 0 to" in capsys.readouterr().err


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path), "2+2="]) == 2
    assert "is not a run folder" in capsys.readouterr().err
