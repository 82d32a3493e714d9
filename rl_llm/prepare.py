"""What a run needs before it starts, and everything that can be found wrong before anything is written."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from rl_llm import mesh as meshes
from rl_llm.experiment import Experiment
from rl_llm.model import weight_table
from rl_llm.noise import Purpose, generator
from rl_llm.problem import Problem, Split
from rl_llm.text import encode_prompts, encode_responses

Problems = Mapping[Split, Sequence[Problem]]


def prepare(experiment: Experiment, seed: int) -> tuple[Mesh, Problems]:
    """The mesh and the problems of a run. Raises ValueError for what cannot work on this machine or with this task."""
    mesh = meshes.make_mesh(experiment.mesh)
    meshes.weight_shardings(mesh, weight_table(experiment.model))
    _check_shares(experiment, meshes.data_parallel_size(mesh))
    problems = {split: experiment.task.problems(split, count, seed) for split, count in counts(experiment).items()}
    for split, found in problems.items():
        if len(found) < (experiment.prompts_per_step if split == "train" else 1):
            raise ValueError(f"task {experiment.task.name} has {len(found)} {split} problems: too few for a step")
    _check_widths(experiment, problems, seed)
    return mesh, problems


def counts(experiment: Experiment) -> dict[Split, int]:
    """How many problems of each split a run asks for."""
    return {
        "train": experiment.train_problems,
        "validation": experiment.prompts_per_step,
        "held_out": experiment.evaluation.problems,
    }


def problems_of_split(experiment: Experiment, split: Split, count: int, seed: int) -> Sequence[Problem]:
    """`count` problems of a split for an evaluation apart from the run: the run's own ones as far as they reach.

    Raises ValueError where more training problems are asked for than the run trained on.
    """
    own = counts(experiment)[split]
    if split == "train" and count > own:
        raise ValueError(f"{count} train problems asked for, but the run trained on {own}")
    return experiment.task.problems(split, max(count, own), seed)[:count]


def fingerprint_of(problems: Problems) -> str:
    """SHA-256 over the problems of every split: a run that is resumed must meet the ones it was begun with."""
    content = {split: [[p.id, p.prompt, p.answer] for p in found] for split, found in problems.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_shares(experiment: Experiment, ways: int) -> None:
    share = experiment.prompts_per_step // (experiment.updates_per_rollout * experiment.micro_batches)
    if share % ways:
        raise ValueError(
            f"an update's micro-batch of {share} prompts (prompts_per_step / updates_per_rollout / micro_batches) does "
            f"not divide over {ways} data-parallel devices"
        )
    demonstrations = experiment.warm_start.demonstrations_per_step if experiment.warm_start else 0
    if demonstrations % ways:
        raise ValueError(
            f"warm_start.demonstrations_per_step={demonstrations} does not divide over {ways} data-parallel devices"
        )


def _check_widths(experiment: Experiment, problems: Problems, seed: int) -> None:
    """Every prompt fits, with the gate's prefix where it is put, and so does a demonstration of every problem."""
    tokenizer, width, warm_start = experiment.tokenizer, experiment.max_prompt_tokens, experiment.warm_start
    for found in problems.values():
        encode_prompts(tokenizer, found, width)
    if warm_start and warm_start.gate:
        encode_prompts(tokenizer, problems["validation"], width, warm_start.gate.prefix)
    if warm_start:
        draw = generator(seed, Purpose.DEMONSTRATIONS)
        responses = [experiment.task.demonstrate(problem, draw) for problem in problems["train"]]  # type: ignore[attr-defined]
        encode_responses(tokenizer, responses, warm_start.max_tokens)
