"""`rl-llm export`: save a run's policy as a Hugging Face folder, for transformers and servers built on it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rl_llm.commands.common import DONE, UsageError

if TYPE_CHECKING:
    from rl_llm.experiment import Experiment
    from rl_llm.model.huggingface.writing import Dtype

SUMMARY = "save a run's policy as a Hugging Face folder"
EXAMPLES = """examples:
  rl-llm export runs/slower --out exported/slower              the newest policy, for transformers
  rl-llm export runs/slower --out gs://bucket/slower --like Qwen3-4B-Base"""

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    "generation_config.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder, on a disk or in a bucket")
    like = "write the same files as in this folder, tokenizer included (default: the run's start)"
    parser.add_argument("--like", metavar="FOLDER", help=like)
    dtypes = ("bfloat16", "float16", "float32")
    parser.add_argument("--dtype", choices=dtypes, help="dtype of the weights without --like (default: bfloat16)")


def run(arguments: argparse.Namespace) -> int:
    """Save the newest good policy of a run as a folder that Hugging Face transformers loads.

    A run that started from such a folder is saved like it: the same files, names and dtypes, tokenizer included. For
    any other policy, the folder limits texts to the length that the policy was trained on.
    """
    from rl_llm.runs.checkpoint import CheckpointError
    from rl_llm.runs.load import RecordError

    try:
        step = export(arguments.folder, arguments.out, arguments.like, arguments.dtype)
    except (RecordError, CheckpointError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    print(f"the policy of step {step}: {arguments.out}")
    return DONE


def export(run: Path, out: str, like: str | None = None, dtype: "Dtype | None" = None) -> int:
    """Save the newest good policy of a run to the new folder `out`; returns its step.

    `dtype` defaults to bfloat16 and `like` to the Hugging Face folder that the run started from, if any. Without
    `like`, the files of the run's tokenizer are added, and the length of texts is limited to `longest_text`. Raises
    RecordError, CheckpointError or ValueError.
    """
    from etils import epath

    from rl_llm.learner.state import policy_of
    from rl_llm.model.huggingface import is_huggingface, is_multimodal
    from rl_llm.model.huggingface.writing import save
    from rl_llm.parallel.mesh import make_meshes
    from rl_llm.runs.load import newest_state, recorded_experiment
    from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer

    experiment, _ = recorded_experiment(run)
    restored = newest_state(experiment, run, make_meshes(experiment.mesh, None).learner)
    start = experiment.start
    if like is None and start and is_huggingface(start) and not is_multimodal(start):
        like = start
    if like and dtype:
        raise ValueError(f"dtype={dtype} cannot act: the weights are written in the dtypes of {like}")
    longest = None if like else longest_text(experiment)
    save(experiment.model, policy_of(restored.state), out, dtype or "bfloat16", like, longest)
    if like is None and isinstance(experiment.tokenizer, HuggingFaceTokenizer):
        source = epath.Path(experiment.tokenizer.folder)
        for file in (source / name for name in TOKENIZER_FILES):
            if file.exists():
                (epath.Path(out) / file.name).write_bytes(file.read_bytes())
    return restored.step


def longest_text(experiment: "Experiment") -> int | None:
    """The longest text, in tokens, that a policy is meant for; servers enforce it.

    The limit in the folder that the run started from (None if that has none); otherwise the longest text of training: a
    prompt with a response of RL or of the warm start, or a row of conversations. Positions are rotary, so the policy
    can read longer texts, untrained.
    """
    from rl_llm.model.huggingface import is_huggingface, max_positions

    if experiment.start and is_huggingface(experiment.start):
        return max_positions(experiment.start)
    warm_start = experiment.warm_start
    responses = experiment.sampling.max_tokens, (warm_start and warm_start.max_tokens) or 0
    rows = warm_start.demonstrations.row_tokens if warm_start and warm_start.demonstrations else 0
    return max(experiment.max_prompt_tokens + max(responses), rows)
