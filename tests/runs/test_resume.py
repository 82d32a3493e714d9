"""A run that is interrupted anywhere, by any means, and resumed equals the uninterrupted run bit for bit."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from program import (
    STEPS,
    TINY,
    WARM_STEPS,
    Finished,
    assert_same_run,
    finish,
    outcome,
    rl_llm,
    start,
    steps_done,
    train,
    wait_until,
    without_time,
)

from rl_llm.runs.ledger import Ledger

OFTEN = ("--set", "checkpointing.every=1")  # so that a phase lasts and many kills fall into a save


def saving(folder: Path) -> bool:
    """Whether a checkpoint is being written now."""
    return any((folder / "checkpoints").glob("*.unfinished"))


@pytest.mark.slow
def test_killed_while_saving_in_both_phases_it_ends_as_if_never_killed(whole: Finished, tmp_path: Path):
    folder = tmp_path / "run"
    for steps in (3, WARM_STEPS + 2):
        process = start("train", TINY, "--out", folder, *OFTEN, "--resume")
        wait_until(process, lambda steps=steps: steps_done(folder) >= steps and saving(folder))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    resumed = train(folder, "--resume")
    assert_same_run(resumed, whole)
    events = [entry["event"] for entry in Ledger.verify(folder / "ledger.jsonl")]
    assert (events.count("started"), events.count("resumed")) == (1, 2)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[int, str, int]], Finished]:
    """A run stopped in the warm start by SIGTERM and in RL by Ctrl-C, which a terminal sends to the graders, too.

    Returns code, stderr and steps of each process, and the finished run.
    """
    folder = tmp_path_factory.mktemp("stopped") / "run"
    processes, command = [], ["train", TINY, "--out", str(folder), *OFTEN]
    for steps, number in ((3, signal.SIGTERM), (WARM_STEPS + 1, signal.SIGINT)):
        process = start(*command)
        wait_until(process, lambda steps=steps: steps_done(folder) >= steps)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        code, _, stderr = finish(process)
        processes.append((code, stderr, steps_done(folder)))
        command = shlex.split(stderr.splitlines()[-1])[1:]  # as a user would: by what the message says
    code, stdout, stderr = rl_llm(*command)
    assert code == 0, stderr
    return processes, Finished(folder, stdout, stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "name", "exit_code", "first", "last"),
    [(0, "SIGTERM", 143, 3, WARM_STEPS), (1, "SIGINT", 130, WARM_STEPS + 1, STEPS - 1)],
)
def test_a_stopped_run_saves_and_prints_how_to_resume(
    stopped: tuple, index: int, name: str, exit_code: int, first: int, last: int
):
    code, stderr, steps = stopped[0][index]
    assert code == exit_code
    assert first <= steps <= last
    assert f"stopped by {name} at step {steps}; the state is saved" in stderr
    assert ("Ctrl-C again ends at once" in stderr) == (name == "SIGINT")
    assert re.search(r"\n  rl-llm train .*--resume", stderr)
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_stopped_twice_and_resumed_it_ends_as_if_never_stopped(stopped: tuple, whole: Finished):
    assert_same_run(stopped[1], whole)


@pytest.mark.slow
def test_a_stopped_run_resumes_at_the_step_it_stopped_at(stopped: tuple):
    """No step is repeated: the state was saved at the step at which the process stopped."""
    events = Ledger.verify(stopped[1].folder / "ledger.jsonl")
    assert [entry["data"]["step"] for entry in events if entry["event"] in ("preempted", "resumed")] == [
        steps for *_, steps in stopped[0] for _ in range(2)
    ]


@pytest.mark.slow
def test_seconds_before_an_interruption_count(stopped: tuple):
    run = stopped[1]
    assert run.summary["wall_seconds"] > sum(line["time/step"] for line in run.metrics)


def test_a_damaged_checkpoint_is_skipped_with_a_message(whole: Finished, copy: Path):
    """One bit of the newest is flipped: the run resumes from the one before and ends in the same state."""
    newest = copy / "checkpoints" / str(STEPS)
    arrays = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)
    resumed = train(copy, "--resume")
    assert f"rejected checkpoint {STEPS}: " in resumed.stderr
    assert f"{arrays.relative_to(newest)} was changed after it was saved" in resumed.stderr
    assert_same_run(resumed, whole)
    aside = copy / "checkpoints.damaged" / str(STEPS)
    assert f"checkpoint moved aside to {aside}: " in resumed.stderr
    assert (aside / arrays.relative_to(newest)).read_bytes() == content


def test_resuming_a_finished_run_writes_nothing(copy: Path):
    """Also with other values of options that do not change the result. Only a report that is missing is made."""
    written = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    before = snapshot(copy)
    resumed = train(copy, "--resume", "--set", "checkpointing.every=3", "--set", "grading.workers=1")
    assert f"{copy} has ended at step {STEPS}, so there is nothing to resume" in resumed.stderr
    assert snapshot(copy) == before
    assert {path: path.stat().st_mtime_ns for path in written} == written
    (copy / "report.html").unlink()
    train(copy, "--resume")
    assert snapshot(copy).keys() == before.keys()
    assert snapshot(copy).items() - before.items() == {("report.html", (copy / "report.html").read_bytes().hex())}


CONSTANT = ("--set", "optimizer.schedule=constant")


@pytest.mark.slow
def test_more_steps_continue_a_finished_run_as_if_it_had_them_from_the_start(tmp_path: Path):
    """Only what the evaluation after the first end cost differs."""
    folder = tmp_path / "run"
    train(folder, *CONSTANT, "--set", "steps=4")
    raised = train(folder, *CONSTANT, "--resume")
    whole = train(tmp_path / "whole", *CONSTANT)
    assert "had 4 steps and gets 6" in raised.stdout + raised.stderr
    assert without_time(raised.metrics) == without_time(whole.metrics)
    assert (folder / "samples.jsonl").read_bytes() == (whole.folder / "samples.jsonl").read_bytes()
    cost = ("tokens_evaluated",)
    first, second = ({k: v for k, v in outcome(run.summary).items() if k not in cost} for run in (raised, whole))
    assert first == second
    events = [entry for entry in Ledger.verify(folder / "ledger.jsonl") if entry["event"] == "steps_raised"]
    assert [(event["data"]["was"], event["data"]["steps"]) for event in events] == [(4, 6)]
    record = json.loads((folder / "experiment.json").read_text())
    assert (record["experiment"]["steps"], record["overrides"]) == (6, ["optimizer.schedule=constant"])
    code, _, stderr = rl_llm("train", TINY, "--out", folder, "--resume", *CONSTANT, "--set", "steps=5")
    assert (code, "experiment.steps: 6 -> 5" in stderr) == (2, True), stderr


def test_more_steps_under_a_falling_schedule_are_refused_with_the_reason(whole: Finished):
    before = snapshot(whole.folder)
    code, _, stderr = rl_llm("train", TINY, "--out", whole.folder, "--resume", "--set", "steps=8")
    assert code == 2
    assert "optimizer.schedule='linear' falls until the last step" in stderr
    code, _, stderr = rl_llm("train", TINY, "--out", whole.folder, "--resume", "--set", "steps=8", "--seed", "1")
    assert code == 2
    assert snapshot(whole.folder) == before


def test_resuming_with_other_package_versions_warns(copy: Path):
    """It is allowed, but equal bits are promised for equal versions only."""
    record = json.loads((copy / "experiment.json").read_text())
    now = record["versions"]["jax"]
    record["versions"]["jax"] = "0.1.2"
    (copy / "experiment.json").write_text(json.dumps(record))
    resumed = train(copy, "--resume")
    assert f"jax is {now}, was 0.1.2: bits may differ" in resumed.stderr
    assert "numpy" not in resumed.stderr


def test_a_run_with_changed_problems_is_not_resumed(copy: Path):
    """As if a data file or a generator had changed between stop and resume."""
    record = json.loads((copy / "experiment.json").read_text())
    then, record["problems"] = record["problems"], "0" * 64
    (copy / "experiment.json").write_text(json.dumps(record))
    code, _, stderr = rl_llm("train", TINY, "--out", copy, "--resume")
    assert (code, f"problems: {'0' * 64} -> {then}" in stderr) == (2, True), stderr


def test_a_run_with_missing_lines_of_metrics_is_not_resumed(copy: Path):
    lines = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_bytes(b"".join(lines[:2] + lines[5:]))
    code, _, stderr = rl_llm("train", TINY, "--out", copy, "--resume")
    assert (code, "lacks 3 of the steps up to 22 (the first is 3)" in stderr) == (2, True), stderr
    assert "Traceback" not in stderr


def damage_every_seal(checkpoints: Path) -> None:
    for seal in checkpoints.glob("*/seal.json"):
        seal.write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_every_seal, "none of the 3 checkpoints"),
        (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "is empty, so its checkpoints were removed"),
        (shutil.rmtree, "has no checkpoint any more, but ledger.jsonl says that the run saved some"),
        (lambda folder: (shutil.rmtree(folder), folder.touch()), "cannot be read as a folder of checkpoints"),
    ],
    ids=["damaged", "emptied", "deleted", "a file"],
)
def test_without_any_good_checkpoint_resuming_fails_and_says_what_to_do(copy: Path, damage: Callable, message: str):
    """It does not begin again at step 0, which would drop metrics and samples."""
    damage(copy / "checkpoints")
    before = snapshot(copy)
    code, _, stderr = rl_llm("train", TINY, "--out", copy, "--resume")
    assert (code, message in stderr, "Traceback" in stderr) == (1, True, False), stderr
    assert snapshot(copy) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "already holds a run; continue it with --resume"),
        (("--resume", "--seed", "1"), "seed: 0 -> 1"),
        (("--resume", "--set", "optimizer.learning_rate=0.02"), "experiment.optimizer.learning_rate: 0.01 -> 0.02"),
    ],
)
def test_a_finished_folder_is_not_used_for_another_run(whole: Finished, arguments: tuple[str, ...], message: str):
    before = snapshot(whole.folder)
    code, _, stderr = rl_llm("train", TINY, "--out", whole.folder, *arguments)
    assert (code, message in stderr) == (2, True), stderr
    assert snapshot(whole.folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly("seed 0 runs"))])
def test_killed_repeatedly_at_random_it_ends_as_if_never_killed(whole: Finished, tmp_path: Path, seed: int):
    """Kills fall anywhere: in imports, compilation, a save, evaluation, the report."""
    draw, folder, kills = random.Random(seed), tmp_path / "run", 0
    while not (folder / "report.html").exists():
        process = start("train", TINY, "--out", folder, *OFTEN, "--resume")
        begun, target = time.monotonic(), steps_done(folder) + draw.randrange(8)
        seconds = draw.uniform(0.0, 3.0)  # for kills between the steps
        while process.poll() is None and (steps_done(folder) < target or time.monotonic() < begun + seconds):
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.3))
        process.kill()
        code, _, stderr = finish(process)
        assert code in (0, -signal.SIGKILL), stderr
        kills += code == -signal.SIGKILL
    assert kills > 0
    assert_same_run(train(folder, "--resume"), whole)


@pytest.mark.slow
@pytest.mark.nightly("test_killed_while_saving_in_both_phases kills in two saves, one of each phase")
def test_killed_in_one_save_after_another_it_ends_as_if_never_killed(whole: Finished, tmp_path: Path):
    folder, draw = tmp_path / "run", random.Random(0)
    for _ in range(8):
        process = start("train", TINY, "--out", folder, *OFTEN, "--resume")
        done = steps_done(folder)
        wait_until(process, lambda done=done: steps_done(folder) > done and saving(folder))
        time.sleep(draw.uniform(0.0, 0.1))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    assert_same_run(train(folder, "--resume"), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_its_processes_loses_nothing(whole: Finished, tmp_path: Path, number: int, code: int):
    """As a terminal (Ctrl-C) or a scheduler sends it: the grading processes get it as well."""
    folder = tmp_path / "run"
    process = start("train", TINY, "--out", folder, *OFTEN)
    wait_until(process, lambda: steps_done(folder) > WARM_STEPS)
    os.killpg(process.pid, number)
    ended, _, stderr = finish(process)
    assert (ended, "--resume" in stderr) == (code, True), stderr
    assert_same_run(train(folder, "--resume"), whole)


def snapshot(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().hex()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
