"""Metrics on disk and progress on screen."""

import io
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rl_llm.runs.folder import RunFolder, read_metrics
from rl_llm.runs.progress import Progress

EXPERIMENT: dict[str, Any] = {"seed": 0, "fingerprint": "f00d", "problems": "cafe", "tokenizer": "abba"}


def test_metrics_read_back_as_written(tmp_path: Path) -> None:
    records = [
        {"step": 1, "phase": "warm_start", "loss": 0.1 + 0.2},
        {"step": 2, "phase": "rl", "loss": float("inf"), "update/skipped": 1},
    ]
    with RunFolder.create(tmp_path / "run", EXPERIMENT) as folder:
        for record in records:
            folder.log(record)
    assert read_metrics(tmp_path / "run") == records
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == records


def test_an_incomplete_last_line_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "nan"}\n{"step": 2, "lo')
    [record] = read_metrics(tmp_path)
    assert record["step"] == 1
    assert math.isnan(record["loss"])


def test_a_damaged_line_is_an_error_naming_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2,, "loss": 3}\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_metrics(tmp_path)


def lines_of_progress(total: int, done: int = 0) -> list[str]:
    console = Console(file=io.StringIO(), width=60)
    with Progress(console) as progress, progress.phase("rl", total, done) as phase:
        for step in range(done + 1, total + 1):
            phase.update(step, tokens=1000, reward=step / total)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_without_a_terminal_progress_is_a_line_every_twentieth_of_the_steps() -> None:
    steps = [int(line.split()[1].split("/")[0]) for line in lines_of_progress(total=200)]
    assert steps == [1, *range(11, 200, 10), 200]


def test_a_plain_line_has_step_numbers_rate_and_time() -> None:
    last = lines_of_progress(total=3)[-1]
    assert re.fullmatch(r"rl 3/3  reward 1  [\d,]+ tokens/s  \d+:\d\d elapsed", last)


def test_the_compilation_in_the_first_step_counts_for_no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step takes 60 s, each other one 2 s. Without a measured step there is no forecast."""
    clock = iter([0.0, *(time for step in range(1, 21) for time in (58.0 + 2 * step,) * 2)])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    console = Console(file=io.StringIO(), width=60)
    with Progress(console) as progress, progress.phase("rl", 20, compiles="the update") as phase:
        for step in range(1, 21):
            phase.update(step, tokens=1000)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[:2] == ["rl: compiling the update in the first step ...", "rl 1/20    1:00 elapsed"]
    assert lines[2] == "rl 2/20  500 tokens/s  1:02 elapsed, 0:36 left"
    assert lines[-1] == "rl 20/20  500 tokens/s  1:38 elapsed"


def test_a_resumed_phase_continues_from_the_steps_done() -> None:
    assert lines_of_progress(total=30, done=28)[0].startswith("rl 29/30  reward 0.967")


@pytest.mark.parametrize("terminal", [True, False])
def test_say_prints_the_text_unchanged(terminal: bool) -> None:
    text = "4+2=[bold]6[/bold] " + "a long line " * 20
    console = Console(file=io.StringIO(), width=40, force_terminal=terminal)
    with Progress(console) as progress, progress.phase("rl", total=2) as phase:
        phase.update(1, reward=0.5)
        progress.say(text)
    assert isinstance(console.file, io.StringIO)
    assert text in console.file.getvalue()


def test_a_terminal_shows_a_bar_for_every_phase() -> None:
    """Everything except the last numbers fits into 80 columns."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with Progress(console) as progress:
        for name in ("warm start", "reinforcement learning"):
            with progress.phase(name, total=4) as phase:
                phase.update(4, tokens=10, reward=0.25)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert re.search(r"warm start +━+ 4/4 [\d:]+ left [\d:]+ +reward 0.25", shown)
    assert re.search(r"reinforcement learning +━+ 4/4 [\d:]+ left [\d:]+ +reward 0.25", shown)
