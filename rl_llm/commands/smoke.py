"""`train --smoke`: the `--set` values that make an experiment a run of seconds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_llm.experiment import Experiment

FOLDER = Path("runs/smoke")
STEPS, RESPONSES, TOKENS, PROBLEMS = (2, 3, 4, 8), (2, 4), (16, 32, 64, 128, 256), (16, 64, 256)  # the first that works
MODEL = {
    **{"model.width": 32, "model.layers": 2, "model.heads": 2, "model.kv_heads": 1},
    **{"model.head_width": 16, "model.feed_forward": 64},
}


def make_small(
    experiment: "Experiment", chosen: Sequence[str], devices: int
) -> tuple["Experiment", list[str], dict[str, Any]]:
    """Reduce an experiment to a run of seconds.

    Each value is lowered as far as the experiment's own checks allow. Places that the user has `chosen` with `--set`
    stay, and so does the model of a `start`. The mesh becomes that of this machine's devices. Returns the experiment,
    the assignments that made it, and the values that they replaced, by place.
    """
    from rl_llm.config import OverrideError, override
    from rl_llm.parallel.mesh import MeshShape

    evaluation = replace(experiment.evaluation, suites=())
    small = replace(experiment, mesh=MeshShape(), sampler_mesh=None, evaluation=evaluation)  # not in the fingerprint
    kept = {one.partition("=")[0].strip() for one in chosen}
    assignments, replaced = list[str](), dict[str, Any]()
    for choices in _changes(experiment, devices):
        for choice in choices:
            lower = {place: value for place, value in choice.items() if _lowers(small, place, value)}
            texts = [f"{place}={value}" for place, value in lower.items() if place not in kept]
            try:
                small = override(small, texts)
            except OverrideError:
                continue
            assignments += texts
            replaced |= {place: value_at(experiment, place) for place in lower if place not in kept}
            break
    return small, assignments, replaced


def _changes(experiment: "Experiment", devices: int) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yield changes as lists of choices; the first choice that the experiment's checks allow is taken.

    What happens in certain steps comes before their number, what is divided before the number that divides it.
    """
    for optimizer in ("optimizer", "critic.optimizer", "warm_start.optimizer"):
        yield [{f"{optimizer}.warmup_updates": 0}]
    for place in ("evaluation.every", "critic.pretraining_steps", "staleness", "grading.workers"):
        yield [{place: 1}]
    yield [{"curriculum.difficulty.steps": 1}]
    yield [{"curriculum.length.steps": 1, "curriculum.length.first": 4}]
    yield [{"reference.reset_every": 1}, {"reference.reset_every": 2}]
    yield [{"replay.max_age": 1, "replay.rollouts": 1}]
    yield [{"steps": steps} for steps in STEPS]
    yield [{"micro_batches": 1, "sampling_batches": 1, "warm_start.demonstrations.micro_batches": 1}]
    yield [{"micro_batches": 1}]
    yield [{"prompts_per_step": experiment.updates_per_rollout * max(2, devices) * devices}]
    yield [{"responses_per_prompt": responses} for responses in RESPONSES if experiment.responses is None]
    yield [{"mixture.per_update": 2 * devices}]
    yield [{"train_problems": problems} for problems in PROBLEMS]
    yield [{"evaluation.problems": 4}]
    for index in range(len(experiment.algorithm.shaping)):  # SoftOverlong
        yield [{f"algorithm.shaping.{index}.buffer": 4, f"algorithm.shaping.{index}.max_length": 16}]
    yield [{"sampling.max_tokens": tokens} for tokens in TOKENS]
    yield [{"warm_start.steps": 2}]
    yield [{"warm_start.demonstrations_per_step": 4 * devices}]
    yield [{"warm_start.demonstrations.rows_per_step": 2 * devices}]
    yield [{"warm_start.gate.minimum": 0.0}]
    if experiment.start is None:
        yield [MODEL]


def _lowers(experiment: "Experiment", place: str, value: float) -> bool:
    now = value_at(experiment, place)
    return isinstance(now, int | float) and not isinstance(now, bool) and now > value


def value_at(experiment: "Experiment", place: str) -> Any:
    """The value at a place such as `sampling.max_tokens`; None if a part of the way is None."""

    def inside(value: Any, name: str) -> Any:
        return value[int(name)] if name.isdecimal() else getattr(value, name, None)

    whole: Any = experiment
    return reduce(inside, place.split("."), whole)


def free_folder(default: Path, resume: bool) -> Path:
    """The folder of a smoke run: the first in runs/smoke that holds no run, or on a resume the one without a number."""
    first = FOLDER / default.name
    names = (first if number == 1 else first.with_name(f"{first.name}-{number}") for number in count(1))
    return first if resume else next(folder for folder in names if not folder.exists())
