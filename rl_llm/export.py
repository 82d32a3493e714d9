"""The policy of a run as a Hugging Face folder, which transformers and the servers built on it load."""

from pathlib import Path

from rl_llm.mesh import make_meshes
from rl_llm.model.huggingface import Dtype, is_huggingface, save
from rl_llm.recorded import newest_state, recorded_experiment


def export(run: Path, out: str, like: str | None = None, dtype: Dtype | None = None) -> int:
    """Write the newest good policy of a run to the new folder `out`, and return its step.

    `dtype` is bfloat16 by default. Without `like`, a run that began with a Hugging Face folder is written like that
    one: the same files, tokenizer included. Raises RecordError, CheckpointError or ValueError saying what is wrong.
    """
    experiment, _ = recorded_experiment(run)
    restored = newest_state(experiment, run, make_meshes(experiment.mesh, None).learner)
    if like is None and experiment.start and is_huggingface(experiment.start):
        like = experiment.start
    if like and dtype:
        raise ValueError(f"dtype={dtype} cannot act: the weights are written in the dtypes of {like}")
    save(experiment.model, restored.state.params, out, dtype or "bfloat16", like)
    return restored.step
