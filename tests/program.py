"""Run `rl-llm ...` and read finished runs: in a process of its own, as users start it, or in a warm one."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import warm

from rl_llm.config import load_experiment
from rl_llm.reports.run_report import contradictions
from rl_llm.runs.folder import read_metrics
from rl_llm.runs.ledger import Ledger
from rl_llm.studies.folder import COMPILED

ROOT = Path(__file__).parent.parent
TINY = "tests/data/tiny.py"
EXPERIMENT = load_experiment(str(ROOT / TINY))[1]
WARM_STEPS, STEPS = EXPERIMENT.warm_start.steps, EXPERIMENT.warm_start.steps + EXPERIMENT.steps
PATIENCE = 300.0  # seconds after which a process counts as hanging

# Most of a tiny run is compilation. Only this and XLA_FLAGS (conftest.py) differ from a user's shell.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


@dataclass(frozen=True)
class Finished:
    """A finished run and the output of its process."""

    folder: Path
    stdout: str
    stderr: str

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start `rl-llm ...` as a process of its own, in the project's folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "rl_llm", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **CACHE, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal can be sent to it and its children only
    )


def finish(process: subprocess.Popen[str], patience: float = PATIENCE) -> tuple[int, str, str]:
    """Wait for a process: exit code, standard output, standard error."""
    try:
        stdout, stderr = process.communicate(timeout=patience)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.returncode, stdout, stderr


def rl_llm(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    """Run a command to its end: exit code, standard output, standard error.

    It runs in the warm process, or in one of its own if it needs environment variables.
    """
    if environment:
        return finish(start(*arguments, **environment))
    return warm.run([str(argument) for argument in arguments], CACHE, PATIENCE)


def train(folder: Path, *arguments: str, **environment: str) -> Finished:
    """Run the tiny experiment to its end in a folder."""
    return finished(folder, rl_llm("train", TINY, "--out", folder, *arguments, **environment))


def finished(folder: Path, ended: tuple[int, str, str]) -> Finished:
    """The run in a folder. Its command must have exited with 0."""
    code, stdout, stderr = ended
    assert code == 0, stderr
    return Finished(folder, stdout, stderr)


def shared_folder(base: Path) -> Path:
    """A new folder for `rl-llm ablate --shared` with the compiled programs of all tests."""
    (base / "shared").mkdir()
    (base / "shared" / COMPILED).symlink_to(CACHE["JAX_COMPILATION_CACHE_DIR"])
    return base / "shared"


@cache
def uninterrupted(base: Path) -> Finished:
    """The run that others are compared with, made once per pytest worker in a process of its own."""
    folder = base / "uninterrupted"
    return finished(folder, finish(start("train", TINY, "--out", folder)))


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds. The test fails with the output of a process that ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the process ended first, or hangs: {process.communicate()}")
        time.sleep(0.005)


def steps_done(folder: Path) -> int:
    """Count the whole lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def without_time(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics that must repeat: all but the seconds."""
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def outcome(summary: dict[str, Any]) -> dict[str, Any]:
    """The part of a summary that must repeat: all but the seconds and the ledger, whose events have times."""
    return {name: value for name, value in summary.items() if name not in ("wall_seconds", "time", "ledger_head")}


def assert_same_run(run: Finished, whole: Finished) -> None:
    """Both runs have the same metrics, samples and outcome, and no file of the run contradicts another."""
    assert without_time(run.metrics) == without_time(whole.metrics)
    assert (run.folder / "samples.jsonl").read_bytes() == (whole.folder / "samples.jsonl").read_bytes()
    assert outcome(run.summary) == outcome(whole.summary)
    assert Ledger.verify(run.folder / "ledger.jsonl")[-1]["sha256"] == run.summary["ledger_head"]
    assert contradictions(run.folder) == []
