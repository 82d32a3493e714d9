"""No dead knobs around an algorithm: every field of what an experiment puts around it changes a run, or is refused.

The fields are found by reflection over the catalogue, so a new one must be given another value here, one that shows.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from catalogue import AROUND
from program import EXPERIMENT, Finished, rl_llm, without_time
from test_datasets import write
from test_pipelines import judged, other  # noqa: F401 (fixtures)
from test_techniques import FILE, train

from rl_llm.experiment import Experiment
from rl_llm.model import Lora
from rl_llm.model.config import RopeScaling
from tests.data import tiny

# Of every kind: an experiment that has it, and for each field what changes it, as on the command line.
KNOBS: dict[str, tuple[str, dict[str, str]]] = {
    "Reference": (
        "full_kl",
        {
            "reset_every": "reference.reset_every=2",
            "decay": "reference.decay=0.5",
            "top_tokens": "reference.top_tokens=2",
            "offload": "reference.offload=true",
        },
    ),
    "Lora": (
        "lora",
        {"rank": "model.lora.rank=2", "alpha": "model.lora.alpha=4.0", "targets": "model.lora.targets.1=up"},
    ),
    "Critic": (
        "shared_critic",
        {
            "optimizer": "critic.optimizer.learning_rate=0.05",
            "shared": "critic.shared=false critic.coefficient=1.0",
            "coefficient": "critic.coefficient=0.1",
            "pretraining_steps": "critic.pretraining_steps=2",
        },
    ),
    "Curriculum": (
        "selecting",
        {
            "difficulty": "curriculum.difficulty.first_share=0.4",
            "length": "curriculum.length.first=3",
            "drop_solved": "curriculum.drop_solved=0.25",
        },
    ),
    "Difficulty": (
        "selecting",
        {"first_share": "curriculum.difficulty.first_share=0.4", "steps": "curriculum.difficulty.steps=1"},
    ),
    "ResponseLength": ("selecting", {"first": "curriculum.length.first=3", "steps": "curriculum.length.steps=1"}),
    "DynamicSampling": ("selecting", {"max_rollouts": "dynamic_sampling.max_rollouts=2"}),
    "Replay": ("everything", {"max_age": "replay.max_age=1", "rollouts": "replay.rollouts=2"}),
    "WarmStart": (
        "base",
        {
            "steps": "warm_start.steps=8",
            "optimizer": "warm_start.optimizer.learning_rate=1e-3",
            "demonstrations_per_step": "warm_start.demonstrations_per_step=16",
            "max_tokens": "",
            "gate": "",
            "demonstrations": "",
        },
    ),
    "Conversations": (
        "from_file",
        {
            "path": "",
            "rows_per_step": "warm_start.demonstrations.rows_per_step=8",
            "row_tokens": "warm_start.demonstrations.row_tokens=64",
            "micro_batches": "warm_start.demonstrations.micro_batches=2",
            "data_dir": "warm_start.demonstrations.data_dir={tmp_path}",
        },
    ),
    "Mixture": (
        "mixed",
        {"per_update": "mixture.per_update=16", "max_tokens": "", "coefficient": "mixture.coefficient=0.1"},
    ),
    "Teacher": ("gkd", {"run": "", "top_tokens": "teacher.top_tokens=2", "on_policy": "teacher.on_policy=1.0"}),
    "RewardModel": ("rlhf", {"run": "", "weight": "reward_model.weight=-1.0", "added": "reward_model.added=true"}),
    "StoredResponses": ("offline_logits", {"path": "", "top_tokens": "responses.top_tokens=2"}),
}
# "" above: these only say where something is, or how much room it has, and what does not serve is refused.
REFUSED = {
    ("WarmStart", "max_tokens"): ("warm_start.max_tokens=5", "warm_start.max_tokens=5"),
    ("WarmStart", "gate"): ("warm_start.gate.prefix=Think", "starts no symbol"),
    ("WarmStart", "demonstrations"): ("warm_start.demonstrations.rows_per_step=8", "demonstrations"),
    ("Conversations", "path"): ("warm_start.demonstrations.path=nowhere.jsonl", "nowhere.jsonl"),
    ("Mixture", "max_tokens"): ("mixture.max_tokens=4", "mixture.max_tokens=4"),
    ("Teacher", "run"): ("teacher.run=nowhere", "nowhere is not a run folder"),
    ("RewardModel", "run"): ("reward_model.run=nowhere", "nowhere is not a run folder"),
    ("StoredResponses", "path"): ("responses.path=nowhere.jsonl", "nowhere.jsonl"),
}
# They say where something lies (tests/test_state.py looks there), or in how many parts it is read.
SAME_NUMBERS = {("Reference", "offload"), ("Conversations", "data_dir")}
CASES = [(kind, name) for kind, (_, changes) in KNOBS.items() for name in changes]


def test_every_field_is_tried():
    assert {kind.__name__: {field.name for field in fields(kind)} for kind in AROUND} == {
        kind: set(changes) for kind, (_, changes) in KNOBS.items()
    }
    assert set(REFUSED) == {(kind, name) for kind, name in CASES if not KNOBS[kind][1][name]}


CHOOSING = replace(
    tiny.base, model=replace(tiny.base.model, rope_scaling=RopeScaling("linear", 2.0), lora=Lora(2, 2.0))
)


def kinds(annotation: Any) -> set[type]:
    """The dataclasses that an annotation names, and those that their fields name."""
    if is_dataclass(annotation) and isinstance(annotation, type):
        return {annotation}.union(*map(kinds, get_type_hints(annotation).values()))
    return set().union(*map(kinds, get_args(annotation)))


def places(component: Any) -> Iterator[tuple[Any, str]]:
    """Every field of a component, and of what it is made of, that is one of some named values."""
    for name, annotation in get_type_hints(type(component)).items() if is_dataclass(component) else ():
        if get_origin(annotation) is Literal:
            yield component, name
        yield from places(getattr(component, name))


def test_a_value_that_there_is_not_is_refused_wherever_it_stands():
    """Of what stands around the algorithm; `test_knobs` has its components."""
    every = {kind for kind in kinds(Experiment) if Literal in map(get_origin, get_type_hints(kind).values())}
    assert every <= {type(component) for component, _ in places(CHOOSING)}
    for index in range(len(list(places(CHOOSING)))):
        experiment = deepcopy(CHOOSING)
        component, name = list(places(experiment))[index]
        object.__setattr__(component, name, "typo")
        with pytest.raises(ValueError, match=rf"{name}='typo' must be one of"):
            replace(experiment)


@pytest.fixture(scope="module")
def sources(other: Finished, judged: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:  # noqa: F811
    """What says where the experiments of the table find what they learn from."""
    model = tmp_path_factory.mktemp("model") / "run"
    train(model, "reward_model", "--set", f"responses.path={judged}")
    draw, problems = np.random.default_rng(0), EXPERIMENT.task.problems("train", 30, 0)
    shown = [{"prompt": problem.prompt, "response": EXPERIMENT.task.demonstrate(problem, draw)} for problem in problems]
    pairs = write(tmp_path_factory.mktemp("data") / "pairs.jsonl", *shown)
    return {
        "from_file": f"warm_start.demonstrations.path={pairs}",
        "gkd": f"teacher.run={other.folder}",
        "rlhf": f"reward_model.run={model}",
        "offline_logits": f"responses.path={judged}",
    }


@pytest.fixture(scope="module")
def untouched() -> dict[str, list[dict]]:
    """The metrics of the experiments of the table, as they come to be needed."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}.{name}" for kind, name in CASES])
def test_a_field_changes_the_run_or_is_refused(
    kind: str, name: str, sources: dict[str, str], untouched: dict[str, list[dict]], tmp_path: Path
):
    base, changes = KNOBS[kind]
    if (kind, name) in REFUSED:
        change, words = REFUSED[kind, name]
        code, _, stderr = rl_llm("train", f"{FILE}:{base}", "--out", tmp_path / "run", "--set", change)
        assert code == 2
        assert words in stderr
        return

    def lived(folder: str, *more: str) -> list[dict]:
        given = [*([sources[base]] if base in sources else []), *more]
        options = [part for change in given for part in ("--set", change)]
        return without_time(train(tmp_path / folder, base, *options).metrics)

    if base not in untouched:
        untouched[base] = lived("untouched")
    changed = lived("changed", *changes[name].format(tmp_path=tmp_path).split())
    assert (changed == untouched[base]) == ((kind, name) in SAME_NUMBERS)
