"""Checkpoints: round trips are bitwise, all damage is detected, and a good step can always be restored."""

import errno
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from rl_llm.runs.checkpoint import CheckpointError, Checkpoints, Restored, state_sha256

SAVE_THREE_STEPS = """
import sys, time
import jax.numpy as jnp
from rl_llm.runs.checkpoint import Checkpoints
for step in (1, 2, 3):
    Checkpoints(sys.argv[1]).save(step, {"x": jnp.full((64, 64), step)}, {"step": step})
time.sleep(60)
"""


@struct.dataclass
class State:
    """All kinds of leaves and nodes of a training state."""

    step: jax.Array
    params: dict[str, Any]
    moments: tuple[dict[str, jax.Array], None]


def make_state(seed: int = 0) -> State:
    key = jax.random.key(seed)
    weight = jax.random.normal(key, (5, 3))
    params = {
        "a": {"weight": weight.at[0, 0].set(jnp.nan)},
        "b.c": weight.astype(jnp.bfloat16),
        "d": -weight[0],
    }
    return State(jnp.int32(seed), params, ({"mask": weight > 0, "zero": jnp.float32(-0.0)}, None))


def template_of(state: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda progress: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def restore(checkpoints: Checkpoints) -> Restored:
    restored = checkpoints.restore_newest(template_of(make_state()))
    assert restored is not None
    return restored


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    for step in (10, 20):
        Checkpoints(folder).save(step, make_state(step), {"phase": "rl", "epoch": step})
    return folder


@pytest.fixture
def checkpoints(saved_once: Path, tmp_path: Path) -> Checkpoints:
    """Good checkpoints of steps 10 and 20 that a test may damage."""
    return Checkpoints(shutil.copytree(saved_once, tmp_path / "checkpoints"))


def test_round_trip_is_bitwise(checkpoints: Checkpoints) -> None:
    restored = restore(checkpoints)
    assert (restored.step, restored.progress, restored.rejected) == (20, {"phase": "rl", "epoch": 20}, [])
    assert isinstance(restored.state, State)
    assert_same_bits(restored.state, make_state(20))


def test_the_template_gets_the_saved_progress(checkpoints: Checkpoints) -> None:
    asked = []

    def template(progress: dict[str, Any]) -> Any:
        asked.append(progress)
        return template_of(make_state())(progress)

    checkpoints.restore_newest(template)
    assert asked == [{"phase": "rl", "epoch": 20}]


def test_nothing_saved_restores_nothing(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").restore_newest(template_of(make_state())) is None
    assert not (tmp_path / "none").exists()


def test_one_flipped_bit_in_any_file_is_detected(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(0)
    folder = checkpoints.folder / "20"
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    assert {"seal.json", "state/_METADATA"} < set(names)
    for name in names:
        whole = (folder / name).read_bytes()
        for _ in range(3 if whole else 0):
            changed = bytearray(whole)
            changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            (folder / name).write_bytes(changed)
            caplog.clear()
            restored = restore(checkpoints)
            assert restored.step == 10, name
            assert [name in reason for reason in restored.rejected] == [True]
            assert restored.rejected[0] in caplog.messages[0].replace(f"{folder}", "20")
        (folder / name).write_bytes(whole)
    assert restore(checkpoints).step == 20
    assert_same_bits(restored.state, make_state(10))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.unlink(), id="missing"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-1]), id="truncated"),
        pytest.param(lambda file: file.with_name(f"{file.name}.copy").touch(), id="extra"),
    ],
)
@pytest.mark.parametrize("name", ["seal.json", "state/_METADATA", "state/manifest.ocdbt"])
def test_missing_truncated_and_extra_files_are_detected(
    checkpoints: Checkpoints, damage: Callable[[Path], None], name: str
) -> None:
    damage(checkpoints.folder / "20" / name)
    restored = restore(checkpoints)
    assert restored.step == 10
    assert name in restored.rejected[0]


@pytest.mark.parametrize("name", ["30", "30.unfinished", "30.orbax-checkpoint-tmp", "030", "best", "٣"])
def test_other_folders_are_rejected(checkpoints: Checkpoints, name: str) -> None:
    (checkpoints.folder / name).mkdir()
    restored = restore(checkpoints)
    assert restored.step == 20
    assert [reason.split(":")[0] for reason in restored.rejected] == [name]


def test_a_checkpoint_under_the_name_of_another_step_is_rejected(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / "20").rename(checkpoints.folder / "30")
    restored = restore(checkpoints)
    assert restored.step == 10
    assert "30: is the checkpoint of step 20" in restored.rejected[0]


def test_if_all_are_damaged_the_error_lists_the_reasons(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / "10" / "seal.json").unlink()
    (checkpoints.folder / "20" / "state" / "_METADATA").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the 2.*\n.*20: .*_METADATA was changed.*\n.*10: has no"):
        restore(checkpoints)


def test_a_killed_first_save_restores_nothing_and_is_logged(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(checkpoints.folder / "10")
    (checkpoints.folder / "20").rename(checkpoints.folder / "20.unfinished")
    assert checkpoints.restore_newest(template_of(make_state())) is None
    assert "20.unfinished: left by a save that was killed" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(step=jnp.float32(0)), r"step is int32\[\], but the run has float32\[\]"),
        (
            lambda s: s.replace(params={**s.params, "d": jnp.zeros(4)}),
            r"params/d is float32\[3\].*float32\[4\]",
        ),
        (lambda s: s.replace(params={**s.params, "e": jnp.zeros(4)}), r"params/e is missing"),
        (lambda s: s.replace(params={"d": s.params["d"]}), r"params/a/weight is .* no such array"),
        (lambda s: s.replace(moments=(s.moments[0], jnp.zeros(1))), r"moments/1 is missing"),
    ],
)
def test_a_wrong_template_is_an_error_naming_the_leaf(
    checkpoints: Checkpoints, change: Callable[[State], State], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore_newest(template_of(change(make_state())))


@pytest.mark.parametrize(("before", "after"), [(("data",), ()), ((), ("data",))])
def test_restores_to_the_sharding_of_the_template(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    saved, wanted = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (before, after))
    state = {"x": jax.device_put(jnp.arange(3.0 * jax.device_count()), saved)}
    Checkpoints(tmp_path).save(1, state, {})
    template = {"x": jax.ShapeDtypeStruct(state["x"].shape, state["x"].dtype, sharding=wanted)}
    restored = Checkpoints(tmp_path).restore_newest(lambda progress: template)
    assert restored is not None
    assert restored.state["x"].sharding == wanted
    assert_same_bits(restored.state, state)


def test_a_good_step_is_never_overwritten(checkpoints: Checkpoints) -> None:
    with pytest.raises(CheckpointError, match="never overwritten"):
        checkpoints.save(20, make_state(1), {})
    assert_same_bits(restore(checkpoints).state, make_state(20))


@pytest.mark.parametrize("rest", ["20", "20.unfinished"])
def test_saving_replaces_a_damaged_step(checkpoints: Checkpoints, rest: str) -> None:
    (checkpoints.folder / "20" / "seal.json").unlink()
    if rest != "20":
        (checkpoints.folder / "20").rename(checkpoints.folder / rest)
    checkpoints.save(20, make_state(5), {"epoch": 5})
    restored = restore(checkpoints)
    assert (restored.step, restored.progress, restored.rejected) == (20, {"epoch": 5}, [])
    assert_same_bits(restored.state, make_state(5))


def test_keeps_the_newest_and_removes_leftovers_of_killed_saves(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / "15.unfinished").mkdir()
    newest_two = Checkpoints(checkpoints.folder, keep=2)
    newest_two.save(30, make_state(30), {})
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["20", "30"]
    assert restore(newest_two).rejected == []


def flip(step: Path) -> None:
    """Flip a bit in the largest file of a step."""
    file = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "without a seal": lambda step: (step / "seal.json").unlink(),
    "empty": lambda step: (shutil.rmtree(step), step.mkdir()),
    "a file": lambda step: (shutil.rmtree(step), step.touch()),
    "a broken link": lambda step: (shutil.rmtree(step), step.symlink_to("nothing")),
    "seal is a folder": lambda step: ((step / "seal.json").unlink(), (step / "seal.json").mkdir()),
    "seal is a list": lambda step: (step / "seal.json").write_text("[]"),
    "seal is a text": lambda step: (step / "seal.json").write_text('"step"'),
    "seal is deep": lambda step: (step / "seal.json").write_text("[" * 100_000),
    "seal lacks fields": lambda step: (step / "seal.json").write_text('{"sha256": ""}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("keep", "restored"), [(1, False), (2, True)])
def test_damaged_steps_are_moved_aside_and_never_counted(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, damage: str, keep: int, restored: bool
) -> None:
    """However many newer steps are damaged, a save keeps its own step and the good ones before it.

    The instance that saves finds the damage itself: another one may have restored.
    """
    for step in (40, 99):
        shutil.copytree(checkpoints.folder / "20", checkpoints.folder / str(step))
        DAMAGES[damage](checkpoints.folder / str(step))
    resumed = Checkpoints(checkpoints.folder, keep)
    assert restore(resumed if restored else Checkpoints(checkpoints.folder)).step == 20
    caplog.clear()
    resumed.save(30, make_state(30), {})
    assert {path.name for path in checkpoints.folder.iterdir()} == ({"30", "20"} if keep == 2 else {"30"})
    aside = checkpoints.folder.with_name("checkpoints.damaged")
    assert {path.name for path in aside.iterdir()} == {"40", "99"}
    assert [message.startswith(f"checkpoint moved aside to {aside}/") for message in caplog.messages] == [True, True]
    assert restore(Checkpoints(checkpoints.folder)).rejected == []


def test_a_good_copy_put_back_beside_damaged_steps_survives(checkpoints: Checkpoints) -> None:
    """As the error message says: newer steps are all damaged, and an old good one is put back and resumed from."""
    good = shutil.copytree(checkpoints.folder / "10", checkpoints.folder.with_name("copy"))
    for step in (20, 30):
        if step != 20:
            shutil.copytree(checkpoints.folder / "20", checkpoints.folder / str(step))
        flip(checkpoints.folder / str(step))
    flip(checkpoints.folder / "10")
    with pytest.raises(CheckpointError, match=r"none of the 3 .*(.|\n)*Put a good copy back.*nothing was changed"):
        restore(checkpoints)
    shutil.rmtree(checkpoints.folder / "10")
    good.rename(checkpoints.folder / "10")
    resumed = Checkpoints(checkpoints.folder, keep=3)
    assert restore(resumed).step == 10
    resumed.save(11, make_state(11), {})
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["10", "11"]


def test_a_good_step_that_is_newer_than_the_run_is_moved_aside(checkpoints: Checkpoints) -> None:
    """A copy of a later step, put there while the run goes on, does not cost the run its own steps."""
    running = Checkpoints(checkpoints.folder, keep=1)
    assert restore(running).step == 20
    Checkpoints(checkpoints.folder).save(99, make_state(99), {})
    running.save(30, make_state(30), {})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["30"]
    assert [path.name for path in checkpoints.folder.with_name("checkpoints.damaged").iterdir()] == ["99"]


def test_two_damaged_ones_of_a_step_are_both_moved_aside(checkpoints: Checkpoints) -> None:
    for place in ("20", "20.1"):
        flip(checkpoints.folder / "20")
        checkpoints = Checkpoints(checkpoints.folder)
        checkpoints.save(20, make_state(20), {})
        assert (checkpoints.folder.with_name("checkpoints.damaged") / place / "state").is_dir()
    assert restore(checkpoints).step == 20


@pytest.mark.parametrize("damaged", [False, True])
def test_the_spared_step_must_be_good_as_well(checkpoints: Checkpoints, damaged: bool) -> None:
    if damaged:
        flip(checkpoints.folder / "10")
    resumed = Checkpoints(checkpoints.folder, keep=1)
    resumed.save(30, make_state(30), {}, spare=10)
    assert {path.name for path in checkpoints.folder.iterdir()} == ({"30"} if damaged else {"30", "10"})
    assert resumed.holds(10) is not damaged
    assert (checkpoints.folder.with_name("checkpoints.damaged") / "10").exists() is damaged


def test_a_step_that_cannot_be_read_is_rejected(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing disk gives an I/O error instead of bytes, here injected where a file is opened."""
    whole = Path.open

    def failing(self: Path, *arguments: Any, **options: Any) -> Any:
        if "/20/state/" in str(self):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    restored = restore(checkpoints)
    assert restored.step == 10
    assert "20: cannot be read: [Errno 5] Input/output error" in restored.rejected[0]
    checkpoints.save(20, make_state(20), {})
    assert "checkpoint moved aside to" in caplog.text
    monkeypatch.undo()
    assert restore(Checkpoints(checkpoints.folder)).step == 20


def test_a_file_instead_of_the_folder_is_refused_by_name(checkpoints: Checkpoints) -> None:
    shutil.rmtree(checkpoints.folder)
    checkpoints.folder.touch()
    for action in (lambda: restore(checkpoints), lambda: checkpoints.save(1, make_state(), {})):
        with pytest.raises(CheckpointError, match=r"checkpoints cannot be read as a folder of checkpoints \(Not a dir"):
            action()


def test_a_link_to_a_step_elsewhere_is_followed_and_only_the_link_is_removed(checkpoints: Checkpoints) -> None:
    """As if old steps had been moved to a larger disk."""
    elsewhere = (checkpoints.folder / "10").rename(checkpoints.folder.with_name("10"))
    (checkpoints.folder / "10").symlink_to(elsewhere)
    Checkpoints(checkpoints.folder, keep=1).save(30, make_state(30), {})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["30"]
    assert (elsewhere / "seal.json").exists()


def test_keep_must_be_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1, not 0"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize(
    ("state", "progress", "message"),
    [
        ({"data": {"position": 3}}, {}, "data/position is a int"),
        ({"x": jnp.zeros(3)}, {"key": jnp.zeros(3)}, "not JSON serializable"),
    ],
)
def test_unsupported_values_are_refused_before_anything_is_written(
    tmp_path: Path, state: Any, progress: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        Checkpoints(tmp_path / "checkpoints").save(1, state, progress)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("moment", ["3.unfinished", "3.unfinished/state"])
def test_a_process_killed_during_a_save_leaves_a_whole_step(tmp_path: Path, moment: str) -> None:
    """The previous one, or the new one if a busy machine kills too late."""
    folder = tmp_path / "checkpoints"
    with subprocess.Popen([sys.executable, "-c", SAVE_THREE_STEPS, str(folder)]) as saver:
        while saver.poll() is None and not ((folder / moment).exists() or (folder / "3").exists()):
            time.sleep(0.0005)
        saver.send_signal(signal.SIGKILL)
    assert saver.returncode == -signal.SIGKILL
    restored = Checkpoints(folder).restore_newest(template_of({"x": jnp.zeros((64, 64), jnp.int32)}))
    assert restored is not None
    assert restored.step == (3 if (folder / "3").exists() else 2)
    assert restored.progress == {"step": restored.step}
    assert np.asarray(restored.state["x"] == restored.step).all()


def test_saving_and_restoring_logs_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(1, make_state(), {})
        restore(checkpoints)
    assert caplog.messages == []


def test_the_state_digest_distinguishes_every_difference() -> None:
    state = make_state()
    others = [
        state,
        state.replace(step=jnp.int32(1)),
        state.replace(step=jnp.uint32(0)),
        state.replace(params={**state.params, "d": state.params["d"][None]}),
        state.replace(params={**state.params, "e": state.params["d"]}),
        state.replace(moments=({**state.moments[0], "zero": jnp.float32(0.0)}, None)),
    ]
    digests = [state_sha256(other) for other in others]
    digests += [state_sha256(state, {"position": 1}), state_sha256(state, {"position": 2})]
    assert len(set(digests)) == len(digests)
    assert state_sha256(make_state(), {"b": 1, "a": 2}) == state_sha256(state, {"a": 2, "b": 1})
