"""What a component must know of the run to tell whether its knobs can act in it."""

from dataclasses import dataclass, fields
from typing import Any

from rl_llm.types import Batch


@dataclass(frozen=True)
class RunShape:
    """The sizes of a run: prompts and responses per step, optimizer updates made on each rollout, parts in which the
    batch of an update is computed; and whether the sampler's distribution is another than the policy's when the updates
    begin (weights some steps behind, or top-k and top-p truncation); the optional fields of a batch that are made; and
    the longest response in tokens and the number of components of the reward (0: not known).
    """

    prompts_per_step: int
    responses_per_prompt: int
    updates_per_rollout: int
    micro_batches: int = 1
    sampler_differs: bool = False
    made: frozenset[str] = frozenset()
    max_tokens: int = 0
    components: int = 0

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


def refuse_on_policy(component: Any, names: tuple[str, ...], setting: RunShape) -> None:
    """Raise ValueError if one of these fields was set where pi is still pi_old: at the only update of a rollout."""
    if setting.updates_per_rollout == 1:
        refuse(component, names, "with one on-policy update per rollout (no ratio leaves 1): set updates_per_rollout")


def refuse_without_drift(component: Any, names: tuple[str, ...], setting: RunShape) -> None:
    """Raise ValueError if one of these fields was set where pi is the sampler's distribution at every update."""
    if setting.updates_per_rollout == 1 and not setting.sampler_differs:
        refuse(
            component,
            names,
            "with one update per rollout of the very policy that is trained (no ratio to the sampler leaves 1): set "
            "updates_per_rollout, or let the sampler be some steps behind",
        )


def require(batch: Batch, component: Any, name: str) -> Any:
    """An optional field of a batch; ValueError if it is not there."""
    value = getattr(batch, name)
    if value is None:
        raise ValueError(f"{type(component).__name__} needs batch.{name}, which this run does not make")
    return value
