"""Verified checkpoints: a step is either complete and intact, or rejected.

Orbax writes and shards the arrays, but silently reads flipped bits, empty folders and other dtypes. So a step is

    <step>/state/      the files of Orbax
    <step>/seal.json   SHA-256 of every file, dtype and shape of every array, the caller's progress

written as `<step>.unfinished` and renamed when sealed. A folder without a valid seal is not a checkpoint. Each process
writes its shards of the arrays; the first process does everything else.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_llm.parallel import hosts
from rl_llm.runs.files import canonical_json, synchronize_folder, write_atomically

PyTree = Any
SEAL = "seal.json"
UNFINISHED = ".unfinished"
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
    """The newest `keep` checkpoints of a run in one folder, and one that is spared. Created at the first save."""

    def __init__(self, folder: Path | str, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}; otherwise nothing could be resumed")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._damaged: set[int] = set()

    def save(self, step: int, state: PyTree, progress: dict[str, Any], spare: int | None = None) -> None:
        """Write `state` (a pytree of jax arrays) and `progress` (JSON values) as the checkpoint of `step`.

        Returns when the checkpoint is sealed and on disk; only then are steps beyond `keep` removed, but for `spare`.
        Replaces a damaged checkpoint of the same step; raises CheckpointError for a good one.
        """
        import orbax.checkpoint as ocp

        leaves = _named_leaves(state)
        progress = json.loads(canonical_json(progress))  # refuses values that are not JSON
        final, unfinished = self.folder / str(step), self.folder / f"{step}{UNFINISHED}"

        def make_room() -> None:
            if final.exists() and _defect(final) is None:
                raise CheckpointError(f"{final} already exists and is good; a good checkpoint is never overwritten")
            _remove(unfinished)
            unfinished.mkdir(parents=True)

        hosts.on_writer(make_room)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(unfinished / "state", args=ocp.args.PyTreeSave(leaves))
        hosts.on_writer(lambda: self._seal(step, leaves, progress, unfinished, spare))

    def _seal(
        self, step: int, leaves: dict[str, Any], progress: dict[str, Any], unfinished: Path, spare: int | None
    ) -> None:
        """Seal the files, move them into place and remove old steps."""
        final = self.folder / str(step)
        seal = {
            "step": step,
            "progress": progress,
            "leaves": {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()},
            "files": {name: _file_sha256(unfinished / name) for name in _files(unfinished)},
        }
        write_atomically(unfinished / SEAL, _sealed(seal))
        _remove(final)
        unfinished.rename(final)
        synchronize_folder(self.folder)
        self._damaged.discard(step)
        # Damaged steps stay, and do not count towards `keep`.
        for old in [old for old in self._steps() if old not in self._damaged][self.keep :]:
            if old != spare:
                _remove(self.folder / str(old))
        for killed in list(self.folder.glob(f"*{UNFINISHED}")):
            _remove(killed)

    def restore_newest(self, template: Callable[[dict[str, Any]], PyTree], step: int | None = None) -> Restored | None:
        """Restore the newest checkpoint with a valid seal, or that of `step`; None if no save has ever finished.

        template: maps the saved progress to a pytree of `jax.ShapeDtypeStruct` with the wanted shardings (None: the
        first device). Damaged and unfinished steps are skipped with a warning and listed in `rejected`. Raises
        CheckpointError if all are damaged, if there is none of `step`, or if the one found does not fit the template.
        """
        found = hosts.on_writer(lambda: self._newest(step))
        if found is None:
            return None
        step, seal, rejected = found
        state = _read_state(self.folder / str(step), seal, template(seal["progress"]))
        return Restored(step, state, seal["progress"], rejected)

    def _newest(self, only: int | None) -> tuple[int, dict[str, Any], list[str]] | None:
        """The newest good step (or `only` that one), its seal, and why others were rejected."""
        leftovers = (UNFINISHED, ".orbax-checkpoint-tmp")
        rejected = [
            f"{name}: " + ("left by a save that was killed" if name.endswith(leftovers) else "not the name of a step")
            for name in self._names()
            if not _is_step(name)
        ]
        for reason in rejected:
            logger.warning("checkpoint rejected: %s", reason)
        steps = self._steps()
        if only is not None and only not in steps:
            raise CheckpointError(f"{self.folder} has no step {only}; it has {', '.join(map(str, steps)) or 'none'}")
        steps = steps if only is None else [only]
        for step in steps:
            folder = self.folder / str(step)
            if (defect := _defect(folder)) is None:
                return step, json.loads((folder / SEAL).read_bytes()), rejected
            self._damaged.add(step)
            rejected.append(f"{step}: {defect}")
            logger.warning("checkpoint rejected: %s: %s", folder, defect)
        if steps:
            reasons = "\n  ".join(rejected)
            raise CheckpointError(
                f"none of the {len(steps)} checkpoints in {self.folder} is good:\n  {reasons}\n"
                "Restore a good copy, or remove the folder to start again."
            )
        return None

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []

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


def _defect(folder: Path) -> str | None:
    """Why the step in `folder` is not good; None if its seal matches every byte."""
    if not (folder / SEAL).is_file():
        return f"has no {SEAL}: never finished, or damaged"
    content = (folder / SEAL).read_bytes()
    try:
        seal = json.loads(content)
        seal.pop("sha256")
    except (ValueError, AttributeError, KeyError):
        return f"{SEAL} is damaged: not the JSON object that was written"
    if content != _sealed(seal):
        return f"{SEAL} is damaged: it does not match its own digest"
    if str(seal["step"]) != folder.name:
        return f"is the checkpoint of step {seal['step']} under another name"
    found, sealed = set(_files(folder)) - {SEAL}, set(seal["files"])
    if found != sealed:
        missing, extra = sorted(sealed - found), sorted(found - sealed)
        return "; ".join([f"{name} is missing" for name in missing] + [f"{name} is unexpected" for name in extra])
    changed = sorted(name for name in sealed if _file_sha256(folder / name) != seal["files"][name])
    return "; ".join(f"{name} was changed after it was saved" for name in changed) or None


def _sealed(seal: dict[str, Any]) -> bytes:
    own_digest = hashlib.sha256(canonical_json(seal).encode()).hexdigest()
    return canonical_json({**seal, "sha256": own_digest}).encode() + b"\n"


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name))


def _remove(path: Path) -> None:
    """Remove a file or folder, the seal first, so that remains after a kill cannot pass for a checkpoint."""
    (path / SEAL).unlink(missing_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
