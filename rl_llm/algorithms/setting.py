"""What a component must know of the run to tell whether its knobs can act in it."""

from dataclasses import dataclass, fields
from typing import Any


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
