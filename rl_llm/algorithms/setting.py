"""What a component must know of the run to tell whether its knobs can act in it."""

from dataclasses import dataclass, fields
from typing import Any

from rl_llm.types import Batch


@dataclass(frozen=True)
class Setting:
    """The sizes of a run: prompts and responses per step, and optimizer updates made on each rollout."""

    prompts_per_step: int
    responses_per_prompt: int
    updates_per_rollout: int

    @property
    def rows(self) -> int:
        return self.prompts_per_step * self.responses_per_prompt


def refuse(component: Any, names: tuple[str, ...], where: str) -> None:
    """Raise ValueError if a field that cannot act was set all the same: a dead knob misleads its reader."""
    for field in fields(component):
        value = getattr(component, field.name)
        if field.name in names and value != field.default:
            place = f"{type(component).__name__}.{field.name}={value!r}"
            raise ValueError(f"{place} cannot act {where}; leave it at its default {field.default!r}")


def require(batch: Batch, component: Any, name: str) -> Any:
    """An optional field of a batch; ValueError if it is not there."""
    value = getattr(batch, name)
    if value is None:
        raise ValueError(f"{type(component).__name__} needs batch.{name}, which this run does not make")
    return value
