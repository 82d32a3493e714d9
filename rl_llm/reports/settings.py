"""Settings of runs, as experiment.json records them: in brief, and where several runs differ."""

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = (  # of an experiment; the whole configuration is on the page, too
    *("task", "model", "start", "optimizer", "sampling", "steps", "token_budget", "prompts_per_step"),
    *("responses_per_prompt", "updates_per_rollout", "staleness", "max_prompt_tokens", "train_problems", "reward"),
    *("curriculum", "warm_start", "critic", "reference", "teacher", "reward_model", "mixture", "responses"),
)
ABSENT = "absent"


def hyperparameters(experiment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the settings that matter most; those that are off are left out."""
    values = {name: experiment.get(name) for name in SHOWN[:3]}
    algorithm = experiment.get("algorithm")
    if isinstance(algorithm, Mapping):
        values |= {f"algorithm.{name}": value for name, value in algorithm.items() if name != "class"}
    values |= {name: experiment.get(name) for name in SHOWN[3:]}
    return [(name, brief(value)) for name, value in values.items() if not _is_off(value)]


def brief(value: Any) -> str:
    """A recorded value like Python, without the fields that are off: `Clip(low=0.2, high=0.28)`."""
    if isinstance(value, Mapping):
        fields = [f"{key}={brief(item)}" for key, item in value.items() if key != "class" and not _is_off(item)]
        return f"{str(value.get('class', '')).rpartition('.')[2]}({', '.join(fields)})"
    return f"[{', '.join(map(brief, value))}]" if isinstance(value, list | tuple) else str(value)


def _is_off(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, Mapping) and brief(value) in ("()", "Curriculum()"))


def varying(values: Sequence[Any], place: str = "") -> dict[str, list[Any]]:
    """Places where recorded values differ, each with the value of every one.

    Classes that differ are compared as a whole, and so are lists of different lengths.
    """
    if all(repr(value) == repr(values[0]) for value in values):
        return {}
    names: list[Any] = []
    if all(isinstance(value, Mapping) and value.get("class") == values[0].get("class") for value in values):
        names = list(dict.fromkeys(name for value in values for name in value))
        inside = [[value.get(name, ABSENT) for value in values] for name in names]
    elif all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        names = list(range(len(values[0])))
        inside = [[value[index] for value in values] for index in names]
    if not names:
        return {place: list(values)}
    prefix = f"{place}." if place else ""
    found = (varying(parts, f"{prefix}{name}") for name, parts in zip(names, inside, strict=True))
    return {where: parts for one in found for where, parts in one.items()}
