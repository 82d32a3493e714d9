"""`rl-llm samples`: which responses are shown, and that none of them can act on the terminal."""

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.cli import main
from rl_llm.commands import samples
from rl_llm.commands.common import CLOSED_PIPE
from rl_llm.commands.samples import escaped

LINES = [
    {"step": 4, "when": "before", "prompt": "1+1=", "answer": "2", "response": "it is 3", "reward": 0.0},
    {
        "step": 4,
        "when": "ungraded",
        "prompt": "1+2=",
        "answer": "3",
        "response": "?",
        "status": "error",
        "message": "m",
    },
    {"step": 9, "when": "after", "prompt": "1+1=", "answer": "2", "response": "it\nis \x1b[31m2\x07", "reward": 1.0},
]
EVALUATED = {
    **{"suite": "gsm8k", "problem": 7, "sample": 1, "prompt": [{"role": "user", "content": "2+2?"}], "gold": "4"},
    **{
        "response": "5",
        "answer": "5",
        "grade": 0.0,
        "reward": 0.0,
        "status": "ok",
        "tokens": 3,
        "finish_reason": "stop",
    },
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [0, 1, 2]),
        (["--step", "4"], [0, 1]),
        (["--when", "ungraded"], [1]),
        (["--min-reward", "0.5"], [2]),
        (["--max-reward", "0"], [0]),
        (["--contains", "it"], [0, 2]),
        (["--contains", "1+2"], [1]),
        (["--limit", "1"], [0]),
    ],
)
def test_filters_choose_lines(
    run: Path, filters: list[str], expected: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["samples", str(run), "--json", *filters]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert shown == [LINES[index] for index in expected]


def test_control_characters_are_escaped(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["samples", str(run), "--when", "after"])
    printed = capsys.readouterr().out
    assert "  response  it\n            is \\x1b[31m2\\x07\n  gold 2  reward 1.0\n" in printed


@given(st.text())
def test_no_text_reaches_the_terminal_unescaped(text: str) -> None:
    shown = escaped(text)
    assert all(character.isprintable() or character == "\t" for character in shown)
    if text.isprintable():
        assert shown == text


def test_an_evaluation_shows_gold_answer_and_grade(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "samples.jsonl").write_text(json.dumps(EVALUATED) + "\n")
    assert main(["samples", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "suite gsm8k  problem 7  sample 1" in printed
    assert "gold 4  answer 5  grade 0.0  reward 0.0  status ok  tokens 3  finish_reason stop" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "5"], "--step 5: no sample of"),
        (["--when", "aftr"], "there are: after, before, ungraded"),
    ],
)
def test_a_filter_that_no_sample_can_pass_names_the_values(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["samples", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_runs_steps_are_shown_as_steps_of_rl_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "experiment.json").write_text(json.dumps({"experiment": {"warm_start": {"steps": 4}}}))
    main(["samples", str(run)])
    printed = capsys.readouterr().out
    assert "step 4  when before" in printed
    assert "RL step 5  step 9  when after" in printed


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_ends_a_command_quietly(
    run: Path, stream: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `rl-llm samples RUN | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, stream, closed)
        assert main(["samples", str(run)]) == CLOSED_PIPE
    assert "Traceback" not in capsys.readouterr().err


def test_a_broken_pipe_to_another_process_stays_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(samples, "run", broken)
    with pytest.raises(BrokenPipeError, match="a worker's"):
        main(["samples", str(run)])


def test_a_folder_without_samples_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", str(tmp_path)]) == 2
    assert "samples.jsonl does not exist" in capsys.readouterr().err
