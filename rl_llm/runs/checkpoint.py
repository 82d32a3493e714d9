"""Verified checkpoints: a step is either complete and intact, or rejected.

Orbax writes and shards the arrays, but silently reads flipped bits, empty folders and other dtypes. So a step is

    <step>/state/      the files of Orbax
    <step>/seal.json   SHA-256 of every file, dtype and shape of every array, the caller's progress

written as `<step>.unfinished` and renamed when sealed. A folder without a valid seal is not a checkpoint: it counts for
nothing, and is moved to `<folder>.damaged/`. Each process writes its shards of the arrays; the first process does
everything else.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rl_llm.parallel import hosts
from rl_llm.runs.files import canonical_json, synchronize_folder
from rl_llm.runs.seal import SEAL, defect, read_seal, seal_folder

PyTree = Any
UNFINISHED = ".unfinished"
AGAIN = "start again with another --out; nothing was changed"
logger = logging.getLogger(__name__)


class CheckpointError(Exception):
    """There is no usable checkpoint, or it does not fit. The message names the step and the reason."""


@dataclass(frozen=True)
class Restored:
    """A verified checkpoint. `rejected` has the reasons why newer ones were rejected."""

    step: int
    state: PyTree
    progress: dict[str, Any]
    rejected: list[str]


class Checkpoints:
    """The newest `keep` good checkpoints of a run in one folder, and one that is spared. Created at the first save.

    `check` raises if the folder must not be written any more; it is called before every write.
    """

    def __init__(self, folder: Path | str, keep: int = 3, check: Callable[[], None] = lambda: None) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}; otherwise nothing could be resumed")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._check = check
        self._verified: dict[int, str | None] = {}  # steps saved or verified here; None, or the damage

    def save(self, step: int, state: PyTree, progress: dict[str, Any], spare: int | None = None) -> None:
        """Write `state` (a pytree of jax arrays) and `progress` (JSON values) as the checkpoint of `step`.

        Returns when the checkpoint is sealed and on disk; only then are steps beyond `keep` good ones removed, but for
        `spare`. A damaged checkpoint of the same step is moved aside; a good one raises CheckpointError.
        """
        import orbax.checkpoint as ocp

        leaves = _named_leaves(state)
        progress = json.loads(canonical_json(progress))  # refuses values that are not JSON
        unfinished = self.folder / f"{step}{UNFINISHED}"

        def seal() -> None:
            with self._naming_loss(unfinished):
                self._seal(step, leaves, progress, unfinished)
            self._retain(step, spare)

        hosts.on_writer(lambda: self._make_room(step, unfinished))
        with self._naming_loss(unfinished), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(unfinished / "state", args=ocp.args.PyTreeSave(leaves))
        hosts.on_writer(seal)

    def _make_room(self, step: int, unfinished: Path) -> None:
        """Create an empty folder for a save. The first one comes with its parent: that one is never empty."""
        self._check()
        if self.holds(step):
            final = self.folder / str(step)
            raise CheckpointError(f"{final} already exists and is good; a good checkpoint is never overwritten")
        self._names()  # refuses a file
        try:
            if self.folder.exists():
                _remove(unfinished)
                unfinished.mkdir()
            else:
                first = self.folder.with_name(f"{self.folder.name}{UNFINISHED}")
                _remove(first)
                first.mkdir()
                (first / unfinished.name).mkdir()
                first.rename(self.folder)
        except OSError as error:
            raise CheckpointError(f"{unfinished} cannot be created: {error}") from error

    @contextmanager
    def _naming_loss(self, unfinished: Path) -> Iterator[None]:
        """Discard a save that fails. If the folder was lost meanwhile, raise that as the reason."""
        try:
            yield
        except Exception:
            if hosts.writes():
                shutil.rmtree(unfinished, ignore_errors=True)
                with suppress(OSError):  # not empty, unless Orbax created them again in place of a moved folder
                    self.folder.rmdir()
                    self.folder.parent.rmdir()
            self._check()
            raise

    def _seal(self, step: int, leaves: dict[str, Any], progress: dict[str, Any], unfinished: Path) -> None:
        """Seal the files and move them into place."""
        self._check()
        described = {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()}
        seal_folder(unfinished, {"step": step, "progress": progress, "leaves": described})
        self._check()  # reading all files back may have taken long
        unfinished.rename(self.folder / str(step))
        synchronize_folder(self.folder)
        self._verified[step] = None

    def _retain(self, step: int, spare: int | None) -> None:
        """Remove steps beyond `keep` good ones up to `step`, the newest, and what killed saves have left."""
        kept = 0
        for old in self._steps():
            if old > step:  # put there during the run; a resume from it would lack the steps between
                self._verified[old] = self._verified.get(old) or f"is newer than the run, which is at step {step}"
            if kept < self.keep or old == spare:
                kept += self.holds(old)
            else:
                self._check()
                _remove(self.folder / str(old))
        for killed in list(self.folder.glob(f"*{UNFINISHED}")):
            _remove(killed)

    def holds(self, step: int) -> bool:
        """Whether there is a good checkpoint of `step`. One that is not good is moved aside."""
        path = self.folder / str(step)
        if not os.path.lexists(path):
            return False
        if step not in self._verified:
            self._verified[step] = defect(path)
        if (damage := self._verified[step]) is None:
            return True
        self._check()
        folder = self.folder.resolve()  # beside the files themselves, where renaming is possible
        aside = folder.with_name(f"{folder.name}.damaged")
        aside.mkdir(exist_ok=True)
        places = (aside / (f"{step}.{number}" if number else str(step)) for number in count())
        place = next(place for place in places if not os.path.lexists(place))
        path.rename(place)
        del self._verified[step]
        logger.warning("checkpoint moved aside to %s: %s", place, damage)
        return False

    def restore_newest(self, template: Callable[[dict[str, Any]], PyTree], step: int | None = None) -> Restored | None:
        """Restore the newest checkpoint with a valid seal, or that of `step`; None if no save has ever finished.

        template: maps the saved progress to a pytree of `jax.ShapeDtypeStruct` with the wanted shardings (None: the
        first device). Damaged and unfinished steps are skipped with a warning and listed in `rejected`. Raises
        CheckpointError if all are damaged, if there is none of `step`, or if the one found does not fit the template.
        """
        found = hosts.on_writer(lambda: self.newest(step))
        if found is None:
            return None
        step, seal, rejected = found
        state = _read_state(self.folder / str(step), seal, template(seal["progress"]))
        return Restored(step, state, seal["progress"], rejected)

    def newest(self, only: int | None = None) -> tuple[int, dict[str, Any], list[str]] | None:
        """The newest good step (or `only` that one), its seal, and why others were rejected; None without any step."""
        leftovers = (UNFINISHED, ".orbax-checkpoint-tmp")
        rejected = [
            f"{name}: " + ("left by a save that was killed" if name.endswith(leftovers) else "not the name of a step")
            for name in self._names()
            if not _is_step(name)
        ]
        for reason in rejected:
            logger.warning("checkpoint rejected: %s", reason)
        steps = self._steps()
        if self.folder.exists() and not self._names():
            raise CheckpointError(f"{self.folder} is empty, so its checkpoints were removed; put one back, or {AGAIN}")
        if only is not None and only not in steps:
            raise CheckpointError(f"{self.folder} has no step {only}; it has {', '.join(map(str, steps)) or 'none'}")
        steps = steps if only is None else [only]
        for step in steps:
            folder = self.folder / str(step)
            self._verified[step] = damage = defect(folder)
            if damage is None:
                return step, read_seal(folder), rejected
            rejected.append(f"{step}: {damage}")
            logger.warning("checkpoint rejected: %s: %s", folder, damage)
        if steps:
            reasons = "\n  ".join(rejected)
            raise CheckpointError(
                f"none of the {len(steps)} checkpoints in {self.folder} is good:\n  {reasons}\n"
                f"Put a good copy back, or {AGAIN}."
            )
        return None

    def _names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be read as a folder of checkpoints ({error.strerror}); put the folder back"
            ) from error

    def _steps(self) -> list[int]:
        return sorted((int(name) for name in self._names() if _is_step(name)), reverse=True)


def state_sha256(tree: PyTree, *extra_json: Any) -> str:
    """Digest of `extra_json` and of every leaf of `tree` (name, dtype, shape, bytes): equal if bitwise equal."""
    digest = hashlib.sha256()
    for name, leaf in _named_leaves(tree).items():
        array = hosts.to_host(leaf)
        digest.update(canonical_json([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    digest.update(canonical_json(list(extra_json)).encode())
    return digest.hexdigest()


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by path, such as `params/blocks/query`."""
    import jax

    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            kind = type(leaf).__name__
            raise TypeError(f"{name} is a {kind}; leaves must be jax arrays, and other values belong in progress")
        if name in leaves:
            raise ValueError(f"two leaves of the tree are called {name}; rename one")
        leaves[name] = leaf
    return leaves


def _read_state(folder: Path, seal: dict[str, Any], template: PyTree) -> PyTree:
    import jax
    import orbax.checkpoint as ocp

    wanted = _named_leaves(template)
    _check_fit(folder, seal["leaves"], wanted)
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaves = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or default)
        for name, leaf in wanted.items()
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restore_args = ocp.checkpoint_utils.construct_restore_args(leaves)
        state = checkpointer.restore(folder / "state", args=ocp.args.PyTreeRestore(leaves, restore_args))
    return jax.tree.unflatten(jax.tree.structure(template), [state[name] for name in wanted])


def _check_fit(folder: Path, saved: dict[str, tuple[str, list[int]]], wanted: dict[str, Any]) -> None:
    """Raise CheckpointError if names, dtypes or shapes differ, because Orbax would cast silently."""
    there = {name: f"{dtype}{shape}" for name, (dtype, shape) in saved.items()}
    here = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in wanted.items()}
    misfits = [
        f"{name} is {there.get(name, 'missing')}, but the run has {here.get(name, 'no such array')}"
        for name in here | there
        if there.get(name) != here.get(name)
    ]
    if misfits:
        shown = "\n  ".join(misfits[:8]) + ("\n  ..." if len(misfits) > 8 else "")
        raise CheckpointError(
            f"checkpoint {folder} does not fit the run ({len(misfits)} of {len(here)} arrays):\n  {shown}\n"
            "Resume with the configuration it was saved with, or write to another folder."
        )


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name))


def _remove(path: Path) -> None:
    """Remove a file, link or folder, the seal first, so that remains after a kill cannot pass for a checkpoint."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if (path / SEAL).is_file():
        (path / SEAL).unlink()
    shutil.rmtree(path)
