"""A warm start on conversations of a file: it learns, resumes bit for bit, and refuses another file."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from program import EXPERIMENT, TINY, without_time
from test_datasets import write

from rl_llm.experiment import Conversations, Experiment, WarmStart
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import Draw, init_state
from rl_llm.model import Lora
from rl_llm.parallel.mesh import MeshShape, make_mesh
from rl_llm.prepare import prepare, problems_fingerprint
from rl_llm.prng import Purpose, key
from rl_llm.runs.folder import RunFolderError, read_metrics
from rl_llm.runs.load import SourceModels
from rl_llm.runs.preemption import Preempted
from rl_llm.runs.record import experiment_record
from rl_llm.runs.run import Run, open_folder, open_run
from rl_llm.tasks.conversations import read_conversations
from rl_llm.types import TrainState
from rl_llm.update.warm_start import warm_start

STEPS, ROWS, S = 6, 4, 48
MESH = make_mesh(MeshShape(2), jax.devices()[:2])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw, task = np.random.default_rng(0), EXPERIMENT.task
    pairs = [
        {"prompt": problem.prompt, "response": task.demonstrate(problem, draw)}
        for problem in task.problems("train", 30, 0)
    ]
    return write(tmp_path_factory.mktemp("data") / "pairs.jsonl", *pairs)


def experiment_on(path: Path, **changes: Any) -> Experiment:
    demonstrations = Conversations(path, rows_per_step=ROWS, row_tokens=S, **changes)
    return replace(EXPERIMENT, warm_start=WarmStart(STEPS, AdamW(3e-2), demonstrations=demonstrations))


@dataclass
class StopAfter:
    """A stop signal that arrives at a given step."""

    run: Run
    step: int

    @property
    def received(self) -> int:
        return signal.SIGTERM if self.run.step >= self.step else 0


def learn(folder: Path, experiment: Experiment, stop_after: int | None = None) -> tuple[TrainState, list[dict]]:
    """Run the warm start from the folder's progress: the last state, and all lines of metrics.jsonl."""
    assert experiment.warm_start is not None
    assert experiment.warm_start.demonstrations is not None
    found = read_conversations(experiment.warm_start.demonstrations.path, None, experiment.tokenizer, S)
    problems = {"conversations": found}
    record = experiment_record(experiment, TINY, [], 0, problems_fingerprint(problems, SourceModels()))
    with (
        open_folder(folder, record, True, 3) as opened,
        open_run(experiment, 0, opened, time.monotonic(), MESH) as started,
    ):
        run, state = started
        if stop_after is not None:
            run.stop = StopAfter(run, stop_after)  # type: ignore[assignment]
        state = warm_start(run, state, problems, MESH, None)
        run.save(state)
        lines = read_metrics(folder)
    return state, lines


@pytest.mark.slow
def test_it_learns_the_file_and_a_resumed_run_is_the_same(path: Path, tmp_path: Path):
    experiment = experiment_on(path)
    whole, lines = learn(tmp_path / "whole", experiment)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    for line in lines:
        assert 0.5 < line["packing/filled"] <= 1
        assert 0 < line["tokens/demonstrated"] < line["packing/filled"] * ROWS * S
    with pytest.raises(Preempted):
        learn(tmp_path / "stopped", experiment, stop_after=3)
    resumed, again = learn(tmp_path / "stopped", experiment)
    assert without_time(again) == without_time(lines)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.slow
def test_micro_batches_change_only_rounding(path: Path, tmp_path: Path):
    one, other = (learn(tmp_path / str(m), experiment_on(path, micro_batches=m))[1] for m in (1, 2))
    for name in ("loss", "policy/entropy", "update/gradient_norm"):
        np.testing.assert_allclose([line[name] for line in one], [line[name] for line in other], rtol=1e-3)


@pytest.mark.slow
def test_only_adapters_learn(path: Path, tmp_path: Path):
    experiment = experiment_on(path)
    state, lines = learn(tmp_path, replace(experiment, model=replace(experiment.model, lora=Lora(4, 8.0))))
    assert lines[-1]["loss"] < lines[0]["loss"]
    drawn = init_state(experiment.model, AdamW(3e-2).build(STEPS), MESH, Draw(key(0, Purpose.PARAMETERS))).params
    np.testing.assert_array_equal(state.frozen["embedding"], drawn["embedding"])


@pytest.mark.slow
def test_another_file_is_refused_on_resume(path: Path, tmp_path: Path):
    copy = tmp_path / "pairs.jsonl"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(Preempted):
        learn(tmp_path / "run", experiment_on(copy), stop_after=1)
    copy.write_text(copy.read_text().replace("<answer>1", "<answer>2", 1))
    with pytest.raises(RunFolderError, match="problems"):
        learn(tmp_path / "run", experiment_on(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 28}, "WarmStart.max_tokens=28 cannot act beside demonstrations of a file"),
        ({"demonstrations_per_step": 8}, "WarmStart.demonstrations_per_step=8 cannot act beside"),
        ({"demonstrations": None}, "WarmStart.demonstrations_per_step is missing"),
    ],
)
def test_options_of_other_demonstrations_are_refused(path: Path, change: dict, message: str):
    settings = experiment_on(path).warm_start
    with pytest.raises(ValueError, match=message):
        replace(settings, **change)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 8, 1), "Conversations.rows_per_step=0 is out of range; expected >= 1"),
        ((4, 1, 1), "Conversations.row_tokens=1 is out of range; expected >= 2"),
        ((4, 8, 3), "Conversations.rows_per_step=4 must be a multiple of micro_batches=3"),
    ],
)
def test_impossible_sizes_are_refused(sizes: Sequence[int], message: str):
    with pytest.raises(ValueError, match=message):
        Conversations("chats.jsonl", *sizes)


def test_rows_that_do_not_divide_by_the_devices_are_refused_before_the_run(path: Path):
    experiment = replace(experiment_on(path), prompts_per_step=16)  # 4 rows, 8 devices
    with pytest.raises(
        ValueError, match="rows_per_step=4 / micro_batches=1 is 4; expected a multiple of 8 data-parallel devices"
    ):
        prepare(experiment, 0)


def test_the_task_needs_no_demonstrations_of_its_own(path: Path):
    class Silent:
        name = "silent"

    assert replace(experiment_on(path), task=Silent()).warm_steps == STEPS
