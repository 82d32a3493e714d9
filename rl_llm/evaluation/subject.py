"""The policy that is evaluated: a checkpoint of a run, or the model of a Hugging Face folder."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rl_llm.algorithms import LITE_PPO
from rl_llm.config.hub import download_command
from rl_llm.experiment import Experiment
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import policy_of
from rl_llm.model import from_folder, weight_table
from rl_llm.model.huggingface.adapters import model_folder
from rl_llm.parallel.mesh import Meshes, MeshShape
from rl_llm.problem import Task
from rl_llm.runs.load import load_source_models, newest_state, recorded_experiment
from rl_llm.sampler import Sampling
from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from rl_llm.tasks.tokenizer_files import read_files

PUBLISHED = Sampling(max_tokens=2048, temperature=0.6, top_p=0.95)  # temperature and top_p of arXiv 2501.12948
ROWS = 64  # responses at once
REPLICATED_BYTES = 2**32  # larger models are split over the devices


@dataclass(frozen=True)
class Subject:
    """A policy and the experiment that says how it is asked and graded.

    `record` is the experiment.json of a run, None for a Hugging Face folder. `step` is that of the checkpoint; None is
    the newest.
    """

    folder: str
    experiment: Experiment
    record: dict[str, Any] | None = None
    step: int | None = None

    @property
    def seed(self) -> int:
        """Seed of an evaluation unless another is given."""
        return int(self.record["seed"]) if self.record else 0

    def load(self, meshes: Meshes) -> tuple[dict, dict[str, Any]]:
        """Read the parameters onto the learner's mesh; returns them with a description of the model.

        Raises CheckpointError, RecordError or ValueError.
        """
        described = {"folder": self.folder, "compute_dtype": self.experiment.model.compute_dtype}
        if self.record is None:
            start = load_source_models(self.experiment, meshes.learner).start
            assert start is not None
            return start, {"kind": "huggingface", **described}
        restored = newest_state(self.experiment, self.folder, meshes.learner, self.step)
        named = {"experiment": self.record["fingerprint"], "training_seed": self.seed, "step": restored.step}
        named |= {"rl_step": max(0, restored.step - self.experiment.warm_steps)}
        return policy_of(restored.state), {"kind": "run", **described, **named}


def named_step(experiment: Experiment, step: int) -> str:
    """A checkpoint's step as `--step` counts it, with the step of RL if steps of a warm start came before."""
    warm = experiment.warm_steps
    return f"step {step}" + (f" (RL step {step - warm})" if warm and step > warm else "")


def open_subject(
    folder: str, step: int | None, task: Task | None, chat: bool = True, verb: str = "evaluate"
) -> Subject:
    """Open a run folder, or a Hugging Face folder to be asked the problems of `task`.

    `chat` shows prompts by the folder's chat template if it has one. Raises RecordError, ValueError or
    FileNotFoundError naming the folder and the way out, which ends with `verb`.
    """
    if (Path(folder) / "experiment.json").is_file():
        if not chat:
            raise ValueError("--no-chat cannot act on a run: its tokenizer decides how prompts are shown")
        return Subject(folder, *recorded_experiment(folder), step)
    try:
        base = model_folder(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).removeprefix("start=")) from error
    if base is None:
        hub = download_command(folder)
        remedy = f": {hub.command}, then {verb} {hub.folder}" if hub else ": give the folder of one"
        raise FileNotFoundError(
            f"{folder} is not a run folder (no experiment.json) and not a Hugging Face folder (no config.json){remedy}"
        )
    if step is not None:
        raise ValueError(f"{folder} is a Hugging Face folder, without --step: it holds one model; leave --step out")
    if task is None:
        raise ValueError(
            f"{folder} is a Hugging Face folder, without a split of its own problems; give --suite NAME=FILE"
        )
    return Subject(folder, _asked_only(folder, base, chat, task))


def _asked_only(folder: str, base: str, chat: bool, task: Task) -> Experiment:
    """An experiment around a folder's model. It is asked and graded, and never trained."""
    template = read_files(base).template is not None
    if not chat and not template:
        raise ValueError(f"--no-chat cannot act: {base} has no chat template")
    model = from_folder(base)
    tokenizer = HuggingFaceTokenizer(base, chat=chat and template)
    tokenizer.check_vocabulary(model.vocabulary)
    size = sum(4 * prod(weight.shape) for weight in weight_table(model).values())
    return Experiment(
        task=task,
        tokenizer=tokenizer,
        model=model,
        start=folder,
        algorithm=LITE_PPO,
        optimizer=AdamW(1e-6),
        sampling=PUBLISHED,
        steps=1,
        prompts_per_step=ROWS // 2,
        responses_per_prompt=2,
        mesh=MeshShape() if size <= REPLICATED_BYTES else MeshShape(data=1, fsdp=-1),
    )
