"""No dead knobs around the algorithm: every field of an experiment's other components changes a run or is refused.

Fields are found by reflection over the catalogue, so a new field needs an entry here with a value that shows.
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

from rl_llm.experiment import Experiment, Suite
from rl_llm.model import Lora
from rl_llm.model.config import RopeScaling
from tests.data import tiny

# For each component: an experiment that has it and, for each field, `--set` options that change it.
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
# "" above: these fields only name a place or reserve room. Unusable values are refused with these words.
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
# These say where something is stored (tests/learner/test_state.py checks that), so the numbers stay the same.
SAME_NUMBERS = {("Reference", "offload"), ("Conversations", "data_dir")}
CASES = [(kind, name) for kind, (_, changes) in KNOBS.items() for name in changes]


def test_every_field_is_tried():
    assert {kind.__name__: {field.name for field in fields(kind)} for kind in AROUND} == {
        kind: set(changes) for kind, (_, changes) in KNOBS.items()
    }
    assert set(REFUSED) == {(kind, name) for kind, name in CASES if not KNOBS[kind][1][name]}


CHOOSING = replace(
    tiny.base,
    model=replace(tiny.base.model, rope_scaling=RopeScaling("linear", 2.0), lora=Lora(2, 2.0)),
    evaluation=replace(tiny.base.evaluation, suites=(Suite("others", tiny.TASK, problems=4),)),
)


def kinds(annotation: Any) -> set[type]:
    """Dataclasses named in an annotation, and those named by their fields."""
    if is_dataclass(annotation) and isinstance(annotation, type):
        return {annotation}.union(*map(kinds, get_type_hints(annotation).values()))
    return set().union(*map(kinds, get_args(annotation)))


def places(component: Any) -> Iterator[tuple[Any, str]]:
    """Yield each field of a component and its parts whose type is a Literal, with its owner."""
    if isinstance(component, tuple):
        for part in component:
            yield from places(part)
    hints = get_type_hints(type(component))
    for name in [field.name for field in fields(component)] if is_dataclass(component) else ():
        if get_origin(hints[name]) is Literal:
            yield component, name
        yield from places(getattr(component, name))


def test_an_unknown_literal_is_refused_in_every_field():
    """For components around the algorithm; test_knobs.py covers its own."""
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
    """The `--set` option that gives each experiment of the table its source of data."""
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
    """Metrics of the unchanged experiments, filled on demand."""
    return {}


FIRST = {(kind, next(iter(changes))) for kind, (_, changes) in KNOBS.items()}
RARELY = pytest.mark.nightly("the first field of each component runs, and every refusal")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*case, marks=() if case in FIRST or case in REFUSED else RARELY) for case in CASES],
    ids=[f"{kind}.{name}" for kind, name in CASES],
)
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
