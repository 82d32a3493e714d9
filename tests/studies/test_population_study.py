"""Members of a study run as populations by `rl-llm ablate`: ordinary runs, close to single runs."""

import json
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import finish, rl_llm, start, steps_done, wait_until

from rl_llm.runs.folder import read_metrics
from rl_llm.runs.ledger import Ledger
from rl_llm.studies.hardware import fitting, needed_bytes
from tests.data import tiny

STUDY = "tests/data/study.py"
pytestmark = pytest.mark.slow
ARMS = ("slow", "fast", "twin")
COMMAND = ("ablate", STUDY, "--scale", "smoke", "--seeds", "3", "--jobs", "1", "--population", "9")
MEMBERS = [f"{arm}-seed{seed}" for arm in ARMS for seed in range(3)]
RELATIVE = 1e-2  # for differences in the order of sums; 1e-5 was observed


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study with three starts as one population and nine members as another, and the compilation log."""
    out = tmp_path_factory.mktemp("population") / "study"
    code, _, stderr = rl_llm(*COMMAND, "--out", out, JAX_LOG_COMPILES="1")
    assert code == 0, stderr
    return out, "".join(path.read_text() for path in (out / "logs").glob("*.log"))


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times and metrics of rounding errors."""
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "agreement/"))}
        for line in read_metrics(folder)
    ]


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for line, other in zip(found, expected, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            if isinstance(value, float):
                np.testing.assert_allclose(
                    value, other[name], rtol=RELATIVE, atol=1e-4, err_msg=f"{line['step']} {name}"
                )
            else:
                assert value == other[name], (line["step"], name)


def single(out: Path, arm: str, seed: int, folder: Path, *options: str) -> None:
    begin = next((out / "starts").glob(f"warm-*-seed{seed}"))
    chosen = ("--seed", str(seed), "--out", folder, "--set", f"start={begin}", *options)
    code, _, stderr = rl_llm("train", f"{STUDY}:smoke/{arm}", *chosen)
    assert code == 0, stderr


@pytest.mark.parametrize(("arm", "seed"), [("fast", 1), ("slow", 2)])
def test_a_member_of_a_population_is_close_to_a_single_run(
    study: tuple[Path, str], tmp_path: Path, arm: str, seed: int
):
    """Compares all metrics of all steps (token counts exactly), the held-out responses and the accuracies."""
    out, _ = study
    single(out, arm, seed, tmp_path / "alone")
    member = out / f"{arm}-seed{seed}"
    assert_close(numbers(member), numbers(tmp_path / "alone"))
    responses = [
        [json.loads(line)["response"] for line in (folder / "samples.jsonl").read_text().splitlines()]
        for folder in (member, tmp_path / "alone")
    ]
    assert responses[0] == responses[1]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (member, tmp_path / "alone")]
    for name in ("accuracy_before", "accuracy_after", "greedy_after", "tokens_generated", "tokens_evaluated"):
        assert summaries[0][name] == summaries[1][name]


def test_all_members_share_one_program_of_each_kind(study: tuple[Path, str]):
    compiled = Counter(re.findall(r"Finished XLA compilation of jit\((\w+)\)", study[1]))
    # One for the 3 members of the warm start and one for the 9 of RL; both use the batch and two samplers, one greedy.
    assert (compiled["train_step"], compiled["_generate"], compiled["_make_batch"]) == (3, 4, 2)


def test_every_member_has_its_own_folder_and_log(study: tuple[Path, str]):
    out, _ = study
    for name in MEMBERS:
        assert Ledger.verify(out / name / "ledger.jsonl")[-1]["event"] == "finished"
        assert str(out / name / "report.html") in (out / "logs" / f"{name}.log").read_text().replace("\n", "")
    events = Counter(entry["event"] for entry in Ledger.verify(out / "ledger.jsonl"))
    assert (events["member"], events["member_failed"]) == (12, 0)


def test_sigterm_saves_all_members_which_resume_alone_or_together(study: tuple[Path, str], tmp_path: Path):
    whole, _ = study
    starts = [Path("starts", path.name) for path in sorted((whole / "starts").iterdir())]
    out = tmp_path / "study"
    process = start(*COMMAND, "--out", out)
    wait_until(process, lambda: all(steps_done(out / path) >= 2 for path in starts))
    process.send_signal(signal.SIGTERM)
    code, _, stderr = finish(process)
    assert code == 143, stderr
    for path in starts:
        assert Ledger.verify(out / path / "ledger.jsonl")[-1]["event"] == "preempted"
    code, _, stderr = rl_llm("train", f"{STUDY}:smoke/warm", "--seed", "0", "--out", out / starts[0], "--resume")
    assert code == 0, stderr
    code, _, stderr = rl_llm(*COMMAND, "--out", out, "--resume")
    assert code == 0, stderr
    for path in (*starts, *MEMBERS):
        assert_close(numbers(out / path), numbers(whole / path))


def test_a_failing_member_leaves_the_others_running(tmp_path: Path):
    options = ("--seeds", "1", "--jobs", "1", "--population", "3", "--out", tmp_path / "study")
    code, _, stderr = rl_llm("ablate", "tests/data/gates.py", *options)
    assert code == 1, stderr
    assert "fails seed 0 failed: exit code 1" in stderr
    assert "warm_start.gate.minimum" in (tmp_path / "study" / "logs" / "fails-seed0.log").read_text()
    for name in ("passes-seed0", "passes_too-seed0"):
        assert (tmp_path / "study" / name / "summary.json").exists()


def test_several_devices_are_refused(tmp_path: Path):
    code, _, stderr = rl_llm(*COMMAND, "--out", tmp_path / "study", JAX_NUM_CPU_DEVICES="2")
    assert code == 2
    assert "--population 9 needs a single device; there are 2" in stderr
    assert not (tmp_path / "study").exists()


def test_the_number_of_members_follows_from_memory():
    needed = needed_bytes(tiny.base)
    assert needed > 3 * 4 * 3 * 2000  # its weights and moments
    assert [fitting([tiny.base], factor * needed) for factor in (0.5, 10.5, 1000)] == [1, 10, 64]
