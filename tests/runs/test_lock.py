"""A run writes only into the folder that it locked: one that was moved, deleted or replaced ends the run."""

import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from program import PATIENCE, TINY, finish, start, steps_done, wait_until

from rl_llm.runs.folder import RunFolder
from rl_llm.runs.lock import FolderLostError

EXPERIMENT: dict[str, Any] = {"seed": 0, "fingerprint": "f00d", "problems": "cafe", "tokenizer": "abba"}
STATE = {"x": jnp.arange(64.0)}


def move(path: Path) -> None:
    path.rename(path.with_name("moved"))


def replace_by_a_copy(path: Path) -> None:
    move(path)
    shutil.copytree(path.with_name("moved"), path)


def replace_by_another_run(path: Path) -> None:
    shutil.rmtree(path)
    with RunFolder.create(path, {**EXPERIMENT, "seed": 1}) as other:
        other.log({"step": 1})


LOSSES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "moved": (move, "is gone: it was moved or deleted"),
    "deleted": (shutil.rmtree, "is gone: it was moved or deleted"),
    "replaced by a file": (lambda path: (shutil.rmtree(path), path.touch()), "is gone"),
    "emptied": (lambda path: (shutil.rmtree(path), path.mkdir()), r"has lost its \.lock"),
    "copied": (replace_by_a_copy, "is another folder now"),
    "another run": (replace_by_another_run, "is another folder now"),
}
WRITES: dict[str, Callable[[RunFolder], Any]] = {
    "metrics": lambda folder: folder.log({"step": 2}),
    "samples": lambda folder: folder.samples([{"step": 2}]),
    "ledger": lambda folder: folder.ledger.append("evaluated"),
    "summary": lambda folder: folder.write_summary({}),
    "checkpoint": lambda folder: folder.checkpoints.save(2, STATE, {}),
    "frozen parameters": lambda folder: folder.frozen.save(0, STATE, {}),
    "going back": lambda folder: folder.go_back(0, {}, step=0),
}


def snapshot(path: Path) -> dict[str, bytes | None]:
    return {str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None for entry in path.rglob("*")}


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_written_once_the_folder_is_lost(tmp_path: Path, loss: str) -> None:
    lose, message = LOSSES[loss]
    path = tmp_path / "run"
    with RunFolder.create(path, EXPERIMENT) as folder:
        folder.log({"step": 1})
        folder.checkpoints.save(1, STATE, {})
        lose(path)
        before = snapshot(tmp_path)
        for write in WRITES.values():
            if not (write is WRITES["going back"] and not (path / "metrics.jsonl").exists()):
                with pytest.raises(FolderLostError, match=f"{path} {message}"):
                    write(folder)
    assert snapshot(tmp_path) == before


def test_a_folder_that_was_moved_is_resumed_in_its_new_place_while_the_old_run_still_lives(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", EXPERIMENT) as folder:
        move(tmp_path / "run")
        with pytest.raises(FolderLostError):
            folder.log({"step": 1})
    with RunFolder.resume(tmp_path / "moved", EXPERIMENT) as resumed:
        resumed.log({"step": 1})


@pytest.mark.parametrize("part", ["2.unfinished", "2.unfinished/state.orbax-checkpoint-tmp", "2.unfinished/state"])
def test_a_folder_moved_during_a_save_is_not_created_again(tmp_path: Path, part: str) -> None:
    """Orbax creates missing parents of its files. The move may come too late: then the step is whole."""
    path, ended = tmp_path / "run", threading.Event()

    def move_at_part() -> None:
        while not ((path / "checkpoints" / part).exists() or ended.is_set()):
            pass
        move(path)

    mover = threading.Thread(target=move_at_part)
    with RunFolder.create(path, EXPERIMENT) as folder:
        mover.start()
        with suppress(FolderLostError):
            folder.checkpoints.save(2, {"x": jnp.zeros((500, 1000))}, {})
        ended.set()
        mover.join(PATIENCE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["moved"]


@pytest.mark.slow
def test_a_run_that_loses_its_folder_ends_with_one_line_and_its_name(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start("train", TINY, "--out", path, "--set", "checkpointing.every=1")
    wait_until(process, lambda: steps_done(path) >= 2)
    move(path)
    code, _, stderr = finish(process)
    assert (code, f"rl-llm train: {path} is gone: it was moved or deleted" in stderr) == (1, True), stderr
    assert "Traceback" not in stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["moved"]
