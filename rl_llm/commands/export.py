"""`rl-llm export`: save a run's policy as a Hugging Face folder, for transformers and servers built on it."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_llm.commands.common import DONE, UsageError, add_step, add_trust, check_devices, trust_folders
from rl_llm.config.terminal import show

if TYPE_CHECKING:
    from rl_llm.experiment import Experiment
    from rl_llm.export.writing import Dtype

SUMMARY = "save a run's policy as a Hugging Face folder"
EXAMPLES = """examples:
  rl-llm export runs/slower --out exported/slower              the newest policy, for transformers
  rl-llm export runs/slower --out exported/best --step 200     an older one, such as best.step in summary.json
  rl-llm export runs/slower --out exported/adapter --adapter   its LoRA adapters alone, for PEFT
  rl-llm export runs/slower --out gs://bucket/slower --like Qwen3-4B-Base"""

GENERATION = "generation_config.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder, on a disk or in a bucket")
    add_step(parser, "checkpoint to save; summary.json names the best on validation problems")
    like = "write the same files as in this folder, tokenizer included, or its adapters (default: the run's start)"
    parser.add_argument("--like", metavar="FOLDER", help=like)
    dtypes = ("bfloat16", "float16", "float32")
    default = "without --like bfloat16, with --adapter float32"
    parser.add_argument("--dtype", choices=dtypes, help=f"dtype of the weights (default: {default})")
    adapter = "save the LoRA adapters alone, as PEFT does, instead of merging them into the weights"
    parser.add_argument("--adapter", action="store_true", help=adapter)
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Save the newest good policy of a run, or that of --step, as a folder that Hugging Face transformers loads.

    A run that started from such a folder is saved like it: the same weight files, names and dtypes, its tokenizer and
    its licence. For any other policy, the folder limits texts to the length that the policy was trained on. The end
    tokens of the run are written into generation_config.json, and a model card into README.md.
    """
    from rl_llm.runs.checkpoint import CheckpointError
    from rl_llm.runs.load import RecordError

    check_devices()
    if arguments.trust:
        trust_folders(arguments.folder)
    try:
        exported = export(
            arguments.folder, arguments.out, arguments.like, arguments.dtype, arguments.adapter, arguments.step
        )
    except (RecordError, CheckpointError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    show(*exported.notes, f"the {'adapters' if arguments.adapter else 'policy'} of {exported.step}: {arguments.out}")
    return DONE


@dataclass(frozen=True)
class Exported:
    """The step that was saved, as `named_step` says it, and remarks for the user."""

    step: str
    notes: tuple[str, ...]


def export(
    run: Path,
    out: str,
    like: str | None = None,
    dtype: "Dtype | None" = None,
    adapter: bool = False,
    step: int | None = None,
) -> Exported:
    """Save a run's policy of `step` (the newest good one) to the new folder `out`, or with `adapter` its adapters.

    `like` defaults to the Hugging Face folder that the run started from, if any. Without `like`, `dtype` defaults to
    bfloat16 and the length of texts is limited to `longest_text`. Raises RecordError, CheckpointError or ValueError.
    """
    from rl_llm.commands.model_card import CARD, model_card
    from rl_llm.evaluation.subject import named_step
    from rl_llm.export import save, save_adapter
    from rl_llm.learner.state import policy_of
    from rl_llm.model.huggingface import is_multimodal, read_config
    from rl_llm.model.huggingface.adapters import model_folder
    from rl_llm.parallel.mesh import make_meshes
    from rl_llm.runs.load import newest_state, recorded_experiment

    experiment, record = recorded_experiment(run)
    if like is not None:
        read_config(like)  # refuses anything that is no Hugging Face folder, with the way to one
    start = start_of(experiment.start, record)
    placed = replace(experiment, start=start)
    base, given = first_base(start, record), like
    if base is None and from_huggingface(record):
        if like is None:
            raise ValueError(
                f"start={experiment.start} of the run is gone: {start} is no Hugging Face folder now. Put it back, or "
                "name a copy of it with --like FOLDER"
            )
        base = given
    if like is None and model_folder(start) is not None and base is not None and (adapter or not is_multimodal(base)):
        like = base
    if adapter:
        _check_adapter(placed, run, like)
    elif like and dtype:
        raise ValueError(f"dtype={dtype} cannot act: the weights are written in the dtypes of {like}")
    restored = newest_state(experiment, run, make_meshes(experiment.mesh, None).learner, step)
    card = {CARD: model_card(run, experiment, record, restored.step, like if adapter else base, adapter).encode()}
    beside = files_beside(experiment, like, chosen=given is not None)
    ends, changed = end_tokens(beside, like), list(experiment.tokenizer.stop_ids)
    model, params, notes = experiment.model, policy_of(restored.state), []
    if adapter and like:
        save_adapter(model, params, out, like, dtype or "float32", card)
        if set(ends) != set(changed):
            notes.append(f"the run stopped at the tokens {changed}, and {like} names {ends}: give servers the former")
        return Exported(named_step(experiment, restored.step), tuple(notes))
    if set(ends) != set(changed):
        beside[GENERATION] = generation_config(beside, like, changed)
        notes.append(f"{GENERATION}: eos_token_id is {changed}, where the run stopped, instead of {ends}")
    if like:
        notes += [*other_tokenizer(experiment, beside, like), *left_out(like)]
    longest = None if like else longest_text(placed)
    save(model, params, out, dtype or "bfloat16", like, longest, beside | card)
    return Exported(named_step(experiment, restored.step), tuple(notes))


def start_of(start: str | None, record: Mapping[str, Any]) -> str | None:
    """The start of a run for this process: a relative path counts from the folder where the run was made.

    If it is not there, it counts from the current folder, as in a project that was moved.
    """
    if start is None or "://" in start or Path.cwd() == Path(record["folder"]):
        return start
    there = Path(record["folder"]) / start
    return start if not there.exists() and Path(start).exists() else str(there)


def from_huggingface(record: Mapping[str, Any]) -> bool:
    """Whether a run started from a Hugging Face folder and not from another run, as its record says."""
    return any(origin.startswith("start") and ", seed " not in origin for origin in record["sources"])


def first_base(start: str | None, record: Mapping[str, Any]) -> str | None:
    """The Hugging Face folder where training began: `start`, or that of the run at `start`; None for none."""
    from rl_llm.model.huggingface.adapters import model_folder
    from rl_llm.runs.record import read_experiment_record

    if (folder := model_folder(start)) is not None or start is None or not (Path(start) / "experiment.json").is_file():
        return folder
    record = read_experiment_record(Path(start))
    return first_base(start_of(record["experiment"]["start"], record), record)


def _check_adapter(experiment: "Experiment", run: Path, base: str | None) -> None:
    """Raise ValueError unless a run has adapters over a folder that PEFT can load."""
    if experiment.model.lora is None:
        raise ValueError(f"--adapter cannot act: the run {run} has no adapters (model.lora); leave it out")
    if base is None:
        raise ValueError(
            f"--adapter: start={experiment.start} is no Hugging Face folder, so others have no base for the adapters: "
            "name one with --like FOLDER, or leave out --adapter to merge them into the weights"
        )


def files_beside(experiment: "Experiment", like: str | None, chosen: bool) -> dict[str, bytes]:
    """The files beside the weights: those of `like`, but the run's own tokenizer unless the user has chosen `like`."""
    from rl_llm.export.writing import TOKENIZER, files_beside_weights
    from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer

    files = files_beside_weights(like) if like else {}
    if chosen or not isinstance(experiment.tokenizer, HuggingFaceTokenizer):
        return files
    own = files_beside_weights(experiment.tokenizer.folder)
    return own | {name: content for name, content in files.items() if name not in TOKENIZER}


def other_tokenizer(experiment: "Experiment", beside: Mapping[str, bytes], like: str) -> list[str]:
    """A remark that names tokenizer files of `like` that are not the run's, if any."""
    own = files_beside(experiment, None, chosen=False)
    names = [name for name in own if name != GENERATION and name in beside and own[name] != beside[name]]
    return [f"{like} has other tokenizer files than the run: {', '.join(names)}"] if names else []


def end_tokens(beside: Mapping[str, bytes], like: str | None) -> list[int]:
    """The ids that end a text for transformers: those in generation_config.json, or else in config.json."""
    values = json.loads(beside[GENERATION]) if GENERATION in beside else _config(like)
    named = values.get("eos_token_id")
    return named if isinstance(named, list) else [] if named is None else [named]


def generation_config(beside: Mapping[str, bytes], like: str | None, stop_ids: list[int]) -> bytes:
    """generation_config.json with other end tokens; without one, config.json has its other special tokens."""
    others = {name: value for name, value in _config(like).items() if name in ("bos_token_id", "pad_token_id")}
    values = json.loads(beside[GENERATION]) if GENERATION in beside else others
    values["eos_token_id"] = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    return json.dumps(values, indent=2).encode() + b"\n"


def _config(folder: str | None) -> dict[str, Any]:
    from etils import epath

    return dict(json.loads((epath.Path(folder) / "config.json").read_text())) if folder else {}


def left_out(like: str) -> list[str]:
    """A remark that names what an export does not copy from a folder, if anything."""
    from etils import epath

    from rl_llm.commands.model_card import CARD
    from rl_llm.export.writing import files_beside_weights
    from rl_llm.model.huggingface.tensor_files import INDEX, first_few, weight_files

    written = {"config.json", CARD, INDEX, *weight_files(epath.Path(like)), *files_beside_weights(like)}
    others = sorted(file.name for file in epath.Path(like).iterdir() if file.name not in written)
    others = [name for name in others if not name.startswith(".")]
    return [f"not copied from {like}: {first_few(others, 12)}"] if others else []


def longest_text(experiment: "Experiment") -> int | None:
    """The longest text, in tokens, that a policy is meant for; servers enforce it.

    The limit in the folder that the run started from (None if that has none); otherwise the longest text of training: a
    prompt with a response of RL or of the warm start, or a row of conversations. Positions are rotary, so the policy
    can read longer texts, untrained.
    """
    from rl_llm.model.huggingface import max_positions
    from rl_llm.model.huggingface.adapters import model_folder

    if folder := model_folder(experiment.start):
        return max_positions(folder)
    warm_start = experiment.warm_start
    responses = experiment.sampling.max_tokens, (warm_start and warm_start.max_tokens) or 0
    rows = warm_start.demonstrations.row_tokens if warm_start and warm_start.demonstrations else 0
    return max(experiment.max_prompt_tokens + max(responses), rows)
