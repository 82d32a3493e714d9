"""Real multi-process runs: the same run as in one process, graded, written, stopped and failing together."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from program import (
    CACHE,
    ROOT,
    STEPS,
    TINY,
    WARM_STEPS,
    Finished,
    assert_same_run,
    finish,
    rl_llm,
    steps_done,
    wait_until,
    without_time,
)

from rl_llm.runs.ledger import Ledger

ONE, OTHER = 0, 1
pytestmark = pytest.mark.slow


def start_all(processes: int, devices: int, *arguments: str | Path) -> list[subprocess.Popen[str]]:
    """Start the same command in several processes with `devices` devices each. The first one writes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes)}
    surroundings = {**os.environ, **CACHE, **together, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={**surroundings, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for index in range(processes)
    ]


def finish_all(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for all: exit code and output of each."""
    try:
        return [finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()


def train_all(processes: int, devices: int, folder: Path, *arguments: str) -> Finished:
    """Run the tiny experiment to its end in all processes."""
    ended = finish_all(start_all(processes, devices, "-m", "rl_llm", "train", TINY, "--out", folder, *arguments))
    assert [code for code, *_ in ended] == [0] * processes, ended
    for _, stdout, stderr in ended[1:]:
        assert "run folder" not in stdout, "only the first process writes and speaks"
        assert stderr == ""
    return Finished(folder, *ended[0][1:])


def assert_nearly_the_same(several: Finished, one: Finished) -> None:
    """Equal up to rounding: several processes sum numbers in another order."""
    assert (several.folder / "samples.jsonl").read_bytes() == (one.folder / "samples.jsonl").read_bytes()
    for line, other in zip(without_time(one.metrics), without_time(several.metrics), strict=True):
        assert line.pop("phase") == other.pop("phase")
        assert line == pytest.approx(other, rel=1e-3, abs=1e-5)
    assert several.summary["accuracy_after"] == one.summary["accuracy_after"]


def found_by(processes: int, devices: int, folder: Path, what: str) -> list[dict[str, Any]]:
    """The results that tests/data/hosts_program.py prints in each process."""
    ended = finish_all(start_all(processes, devices, "tests/data/hosts_program.py", folder, what))
    assert [code for code, *_ in ended] == [0] * processes, ended
    return [json.loads(stdout.split("found ")[-1]) for _, stdout, _ in ended]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with a checkpoint written by two processes, and their results."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, found_by(2, 1, folder, "save")


def test_values_of_one_process_reach_all(saved: tuple):
    _, (first, second) = saved
    assert [(x["process"], x["several"], x["writes"]) for x in (first, second)] == [(0, True, True), (1, True, False)]
    for found in (first, second):
        assert found["gathered"] == ["x", "x" * 6]
        assert found["from_writer"] == 0
        assert found["raised"] == "only here"


def test_each_row_belongs_to_one_process_and_all_rows_can_be_gathered(saved: tuple):
    _, (first, second) = saved
    assert (first["own"], second["own"]) == ([[0, 1], [0.0, 3.0]], [[2, 3], [6.0, 9.0]])
    for found in (first, second):
        assert found["whole"] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0], [9.0, 10.0, 11.0]]
        assert found["moved"] == [9.0, 0.0, 3.0, 6.0]


def test_a_checkpoint_of_two_processes_is_restored_by_one_and_by_two(saved: tuple):
    folder, (first, second) = saved
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["3"]
    for found in (*found_by(1, 2, folder, "restore"), *found_by(2, 1, folder, "restore")):
        assert found["sha256"] == first["sha256"] == second["sha256"]
        assert found["progress"] == {"seen": 0}, "the writer's"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES without JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID"),
        (
            {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID=2: process_id and num_processes must be",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            "JAX_NUM_PROCESSES=two",
        ),
    ],
)
def test_an_incomplete_environment_is_wrong_usage(environment: dict[str, str], message: str, tmp_path: Path):
    for command in (("train", TINY, "--out", tmp_path / "run"), ("evaluate", tmp_path / "run")):
        code, _, stderr = rl_llm(*command, **environment)
        assert (code, "Traceback" in stderr) == (2, False), stderr
        assert message in stderr
        assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run of one process with two devices.

    Sums of two numbers have no order, so two processes with one device each give the same bits.
    """
    folder = tmp_path_factory.mktemp("one") / "run"
    code, stdout, stderr = rl_llm("train", TINY, "--out", folder, JAX_NUM_CPU_DEVICES="2")
    assert code == 0, stderr
    return Finished(folder, stdout, stderr)


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run of one process with four devices."""
    folder = tmp_path_factory.mktemp("four") / "run"
    code, stdout, stderr = rl_llm("train", TINY, "--out", folder, JAX_NUM_CPU_DEVICES="4")
    assert code == 0, stderr
    return Finished(folder, stdout, stderr)


@pytest.mark.parametrize(
    ("told", "processes"),
    [
        ((OTHER,), 2),
        pytest.param(
            *((ONE, OTHER), 1),
            marks=pytest.mark.nightly("test_a_checkpoint_of_two_processes_is_restored_by_one_and_by_two"),
        ),
    ],
)
def test_stopped_together_and_resumed_it_is_the_uninterrupted_run(
    told: tuple, processes: int, two_devices: Finished, tmp_path: Path
):
    """After a signal to either process, both save at the same step and exit with 143. Two resume, or one alone."""
    folder = tmp_path / "run"
    command = ("-m", "rl_llm", "train", TINY, "--out", folder, "--set", "checkpointing.every=1", "--resume")
    running = start_all(2, 1, *command)
    wait_until(running[ONE], lambda: steps_done(folder) >= WARM_STEPS + 1)
    for index in told:
        running[index].send_signal(signal.SIGTERM)
    ended = finish_all(running)
    assert [code for code, *_ in ended] == [143, 143], ended
    assert "; the state is saved in" in ended[ONE][2]
    assert WARM_STEPS < steps_done(folder) < STEPS
    assert_same_run(train_all(processes, 2 // processes, folder, "--resume"), two_devices)
    events = [entry["event"] for entry in Ledger.verify(folder / "ledger.jsonl")]
    assert (events.count("preempted"), events.count("resumed")) == (1, 1)


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [
        (2, 2, "mesh.fsdp=4"),
        pytest.param(4, 1, "mesh.data=4", marks=pytest.mark.nightly("two processes with two devices each run")),
    ],
)
def test_several_processes_give_the_run_of_one(
    processes: int, devices: int, mesh: str, four_devices: Finished, tmp_path: Path
):
    assert_nearly_the_same(train_all(processes, devices, tmp_path / "several", "--set", mesh), four_devices)


def test_arrays_go_from_mesh_to_mesh_in_parts_where_layers_are_stacked():
    """Five layers go two at a time, so the last part repeats a layer."""
    ended = finish_all(start_all(2, 4, "tests/data/transfer_program.py"))
    assert [code for code, *_ in ended] == [0, 0], ended
    for _, stdout, _ in ended:
        found = json.loads(stdout.split("found ")[-1])
        assert all(array["same"] and array["placed"] for array in found.values()), found
        assert {name: array["at_once"] for name, array in found.items()} == {
            "stacked": 2,
            "split": None,
            "rows": None,
            "number": None,
        }


def test_a_sampler_on_its_own_mesh_has_devices_in_every_process(tmp_path: Path):
    """Parameters go from mesh to mesh within each process, and rollouts come back."""
    command = ("train", "tests/data/techniques.py:apart", "--out")
    code, stdout, stderr = rl_llm(*command, tmp_path / "one", JAX_NUM_CPU_DEVICES="8")
    assert code == 0, stderr
    ended = finish_all(start_all(2, 4, "-m", "rl_llm", *command, tmp_path / "two"))
    assert [code for code, *_ in ended] == [0, 0], ended
    assert_nearly_the_same(Finished(tmp_path / "two", *ended[ONE][1:]), Finished(tmp_path / "one", stdout, stderr))


def test_several_processes_evaluate_as_one_does(two_devices: Finished, tmp_path: Path):
    """The first one prints, and writes the samples of all rows. The others print nothing."""
    options = ("--problems", "10", "--logits", "3", "--responses")
    command = ("evaluate", two_devices.folder, *options)
    code, stdout, stderr = rl_llm(*command, tmp_path / "one.jsonl", JAX_NUM_CPU_DEVICES="2")
    assert code == 0, stderr
    ended = finish_all(start_all(2, 1, "-m", "rl_llm", *command, tmp_path / "two.jsonl"))
    assert [code for code, *_ in ended] == [0, 0], ended
    said = ["".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]")) for _, out, _ in ended]
    assert said == [stdout, ""]
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]


@pytest.mark.parametrize(
    "name",
    ["selecting", pytest.param("everything", marks=pytest.mark.nightly("the rewards of all rows reach `selecting`"))],
)
def test_host_side_work_is_the_same_in_several_processes(name: str, tmp_path: Path):
    """Rewards of all rows for curricula, filters and baselines, and carried state."""
    spec = f"tests/data/techniques.py:{name}"
    code, stdout, stderr = rl_llm("train", spec, "--out", tmp_path / "one", JAX_NUM_CPU_DEVICES="2")
    assert code == 0, stderr
    ended = finish_all(start_all(2, 1, "-m", "rl_llm", "train", spec, "--out", tmp_path / "two"))
    assert [code for code, *_ in ended] == [0, 0], ended
    assert_same_run(Finished(tmp_path / "two", *ended[ONE][1:]), Finished(tmp_path / "one", stdout, stderr))


def test_processes_with_different_experiments_are_refused(tmp_path: Path):
    """They differ by an environment variable, because the test starts one command in all processes."""
    spec = tmp_path / "told_apart.py"
    spec.write_text(
        "import os\nfrom dataclasses import replace\nfrom tests.data import tiny\n"
        "base = replace(tiny.base, train_problems=40 + int(os.environ['JAX_PROCESS_ID']))\n"
    )
    ended = finish_all(start_all(2, 1, "-m", "rl_llm", "train", spec, "--out", tmp_path / "run"))
    assert [code for code, *_ in ended] == [2, 2], ended
    assert "the processes have different commands" in ended[OTHER][2]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("killed", [ONE, OTHER])
def test_the_death_of_one_ends_the_others(killed: int, tmp_path: Path):
    folder = tmp_path / "run"
    processes = start_all(2, 1, "-m", "rl_llm", "train", TINY, "--out", folder, "--set", "steps=10000")
    wait_until(processes[ONE], lambda: steps_done(folder) >= 3)
    processes[killed].kill()
    ended = finish_all(processes)
    assert ended[killed][0] == -signal.SIGKILL
    assert ended[1 - killed][0] in (1, -signal.SIGABRT)
