"""Load other runs from their folders: the recorded experiment and the newest good state."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import Mesh

from rl_llm.config import code_of, differences, file_of, fingerprint, load_experiment, override, to_json
from rl_llm.config.hub import download_command
from rl_llm.config.recorded import NeedsFileError, from_json
from rl_llm.config.terminal import show
from rl_llm.config.trust import check_trusted, untrusted_files
from rl_llm.experiment import Experiment
from rl_llm.learner.state import policy_of
from rl_llm.model import ModelConfig, merge_adapters, weight_table
from rl_llm.model.huggingface import read_config, read_model
from rl_llm.model.huggingface.adapters import is_adapter, model_folder, read_adapted
from rl_llm.parallel import hosts
from rl_llm.parallel.mesh import weight_shardings
from rl_llm.runs.checkpoint import CheckpointError, Checkpoints, Restored
from rl_llm.runs.code import code_changes, recorded_code
from rl_llm.runs.folder import CHECKPOINTS, FROZEN, LEDGER, SUMMARY, RunFolderError, check_format
from rl_llm.runs.progress import Progress
from rl_llm.runs.record import read_experiment_record
from rl_llm.runs.state import restore_state
from rl_llm.types import TrainState


class RecordError(Exception):
    """A run folder cannot be used. The message names it and says why."""


def recorded_experiment(folder: Path | str) -> tuple[Experiment, dict[str, Any]]:
    """Rebuild the experiment of a run folder from its record; returns it with experiment.json.

    Classes outside installed packages need the experiment's file, which must be trusted (`config.trust`). Then
    standard error says if the code has changed. Raises RecordError if the record cannot be loaded or the file is not
    trusted, or if the values or the files of the tokenizer have changed.
    """
    if not (Path(folder) / "experiment.json").is_file():
        hub = download_command(folder)
        remedy = f": {hub.command}, then train a run with start={hub.folder}" if hub else ": it has no experiment.json"
        raise RecordError(f"{folder} is not a run folder{remedy}")
    try:
        record = read_experiment_record(Path(folder))
        check_format(record, Path(folder))
        experiment, own_code = _rebuilt(record), None
        if experiment is None:
            check_trusted(folder, spec := spec_of(record))
            _, experiment = load_experiment(spec, Experiment)
            own_code = code_of(spec, experiment)
        experiment = override(experiment, record["overrides"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RecordError(f"{folder}: experiment.json cannot be loaded: {error}") from error
    except RunFolderError as error:
        raise RecordError(str(error)) from error
    now = fingerprint(experiment)
    if now != record["fingerprint"]:
        raise RecordError(
            f"{record['spec']} has changed since the run in {folder}: fingerprint mismatch, recorded "
            f"{record['fingerprint'][:12]}, now {now[:12]}"
        )
    try:
        same_tokenizer = experiment.tokenizer.fingerprint() == record["tokenizer"]
    except (ValueError, OSError) as error:
        start = record["folder"]
        raise RecordError(f"{folder}: the tokenizer of this run cannot be read from {start}: {error}") from error
    if not same_tokenizer:
        raise RecordError(
            f"{folder}: the tokenizer or its chat template has changed since the run, so its tokens would mean "
            f"something else. Put the files back ({experiment.tokenizer})"
        )
    try:
        recorded = recorded_code(record, Path(folder) / LEDGER) if own_code else None
        changes = code_changes(Path(folder), recorded, own_code) if own_code else {}
    except ValueError as error:
        raise RecordError(str(error)) from error
    if changes and hosts.writes():
        show(f"note: the code has changed since the run in {folder}:", *changes.values(), file=sys.stderr)
    return experiment, record


def untrusted_code(folder: Path | str) -> dict[Path, bytes]:
    """Files of a run folder's experiment that would run when it is loaded, and that were not trusted yet.

    Raises RecordError if none has to run: the record names installed classes only.
    """
    try:
        record = read_experiment_record(Path(folder))
        if _rebuilt(record) is not None:
            raise RecordError(f"{folder} needs no code of its own: its experiment is rebuilt from installed classes")
        return untrusted_files(spec_of(record))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RecordError(f"{folder}: experiment.json cannot be loaded: {error}") from error


def _rebuilt(record: Mapping[str, Any]) -> Experiment | None:
    """The recorded experiment; None if it has classes or functions outside installed packages."""
    try:
        return cast(Experiment, from_json(record["experiment"], Experiment))
    except NeedsFileError:
        return None


def newest_state(experiment: Experiment, folder: Path | str, mesh: Mesh, step: int | None = None) -> Restored:
    """Restore the newest good checkpoint of a run folder, or that of `step`; raises CheckpointError without one."""
    checkpoints, frozen = (Checkpoints(Path(folder) / name) for name in (CHECKPOINTS, FROZEN))
    try:
        restored = restore_state(experiment, checkpoints, frozen, mesh, step)
    except CheckpointError as error:
        if step is None or not experiment.warm_steps:
            raise
        raise CheckpointError(
            f"{error}. RL begins at step {experiment.warm_steps + 1}, after the warm start"
        ) from error
    if restored is None:
        raise CheckpointError(f"{folder} has no checkpoint yet")
    return restored


@dataclass(frozen=True)
class SourceModels:
    """Models that an experiment takes from other runs, on the mesh; None for those it does not use.

    start: first parameters, from a run or a Hugging Face folder. teacher: its experiment and parameters. reward_model:
    its experiment and its critic's parameters. origins: names of the checkpoints. notes: remarks for the user.
    """

    origins: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    start: dict | None = None
    teacher: tuple[Experiment, dict] | None = None
    reward_model: tuple[Experiment, dict] | None = None


def check_start(experiment: Experiment, found: ModelConfig) -> None:
    """Raise RecordError unless the model of `start` is the experiment's."""
    wrong = differences(to_json(experiment.model.stored), to_json(found.stored), "model")
    if wrong:
        raise RecordError(f"start={experiment.start} does not match the experiment's model: {'; '.join(wrong)}")


def load_source_models(experiment: Experiment, mesh: Mesh) -> SourceModels:
    """Load an experiment's source models. Raises RecordError, CheckpointError or ValueError naming the folder."""
    origins: list[str] = []

    def read(name: str, folder: str) -> tuple[Experiment, TrainState]:
        if not Path(folder).exists():
            if (hub := download_command(folder)) is None:
                also = ", nor a Hugging Face folder" if name == "start" else ""
                remedy = f"train it first (rl-llm train FILE:NAME --out {folder}), or --set {name}=DIR to another"
                raise RecordError(f"{name}={folder} is not a run folder{also}: nothing is there; {remedy}")
            use = f"start={hub.folder}"
            then = use if name == "start" else f"train a run with {use} and set {name} to its folder"
            raise RecordError(f"{name}={folder!r} is not a folder: {hub.command}, then {then}")
        other, record = recorded_experiment(folder)
        if record["tokenizer"] != experiment.tokenizer.fingerprint():
            raise RecordError(f"{name}={folder} was trained with another tokenizer; expected the experiment's")
        if not (Path(folder) / SUMMARY).is_file():
            raise RecordError(f"{name}={folder} has not finished; resume it first")
        restored = newest_state(other, folder, mesh)
        origins.append(f"{name}: {record['fingerprint']}, seed {record['seed']}, step {restored.step}")
        return other, restored.state

    start = teacher = reward_model = None
    if experiment.start == "":
        raise RecordError("start is empty: --set start=DIR, a Hugging Face folder or the folder of a finished run")
    base, notes = model_folder(experiment.start), []
    if experiment.start is not None and base is not None:
        check_start(experiment, model := read_config(base))
        adapted = is_adapter(experiment.start)
        megabytes = sum(4 * prod(weight.shape) for weight in weight_table(model).values()) // 10**6
        display = Progress(quiet=not hosts.writes())
        with display, display.phase(f"reading {base}, MB", megabytes, aside=True) as phase:
            if adapted:
                loaded = read_adapted(experiment.start, experiment.model.lora, mesh, phase.update)
            else:
                loaded = read_model(base, mesh, phase.update)
        if adapted:
            use = "go on as the run's" if loaded.config.lora else "are merged into the weights"
            notes.append(f"start={experiment.start}: its adapters of {base} {use}")
        origins.append(f"start{' with adapters' if adapted else ''}: {loaded.digest}")
        start = loaded.params
    elif experiment.start is not None:
        other, state = read("start", experiment.start)
        check_start(experiment, other.model)
        start = _merged(other, state, mesh)[1]
    if experiment.teacher is not None:
        other, state = read("teacher.run", experiment.teacher.run)
        teacher = _merged(other, state, mesh)
    if experiment.reward_model is not None:
        other, state = read("reward_model.run", experiment.reward_model.run)
        if state.critic is None or not other.algorithm.after_token:
            raise RecordError(
                f"reward_model.run={experiment.reward_model.run} has no critic that scores whole responses; expected a "
                "run with value_loss=BradleyTerry()"
            )
        reward_model = other, state.critic.params
    return SourceModels(tuple(origins), tuple(notes), start, teacher, reward_model)


def _merged(experiment: Experiment, state: TrainState, mesh: Mesh) -> tuple[Experiment, dict]:
    """Experiment and policy of a run, with its adapters merged in."""
    model, params = merge_adapters(experiment.model, policy_of(state))
    return replace(experiment, model=model), jax.device_put(params, weight_shardings(mesh, weight_table(model)))


def spec_of(record: Mapping[str, Any]) -> str:
    """Spec of a run or study, relative to the current folder or to the folder where it was given."""
    spec = str(record["spec"])
    return spec if Path(file_of(spec)).is_file() else str(Path(record["folder"]) / spec)
