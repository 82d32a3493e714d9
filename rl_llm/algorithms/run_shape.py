"""Sizes of a run, and refusals of knobs that cannot act in it: no value of them would change the run."""

from dataclasses import dataclass, fields
from typing import Any

from rl_llm.types import Batch


@dataclass(frozen=True)
class RunShape:
    """Facts about a run that decide whether a component's knobs can act in it."""

    prompts_per_step: int
    responses_per_prompt: int
    updates_per_rollout: int
    micro_batches: int = 1
    sampler_differs: bool = False  # from the policy when updates begin: older weights, or top-k and top-p truncation
    extra_fields: frozenset[str] = frozenset()  # optional batch fields that the run makes
    max_tokens: int = 0  # per response; 0: unknown
    components: int = 0  # of the reward; 0: unknown

    @property
    def rows(self) -> int:
        """B: responses per step."""
        return self.prompts_per_step * self.responses_per_prompt


def refuse(component: Any, names: tuple[str, ...], where: str) -> None:
    """Raise ValueError if one of these fields differs from its default: it cannot act, and would mislead a reader."""
    for field in fields(component):
        value = getattr(component, field.name)
        if field.name in names and value != field.default:
            place = f"{type(component).__name__}.{field.name}={value!r}"
            raise ValueError(f"{place} cannot act {where}; leave it at its default {field.default!r}")


def refuse_on_policy(component: Any, names: tuple[str, ...], run: RunShape) -> None:
    """Refuse these fields if a rollout has one update, which starts at pi = pi_old."""
    if run.updates_per_rollout == 1:
        refuse(component, names, "with one on-policy update per rollout (no ratio leaves 1): set updates_per_rollout")


def refuse_without_drift(component: Any, names: tuple[str, ...], run: RunShape) -> None:
    """Refuse these fields if pi equals the sampler's distribution at every update."""
    if run.updates_per_rollout == 1 and not run.sampler_differs:
        where = "with one update per rollout and a sampler equal to the policy (no ratio leaves 1)"
        refuse(component, names, f"{where}: set updates_per_rollout, or let the sampler lag some steps")


def require(batch: Batch, component: Any, name: str) -> Any:
    """Read an optional field of a batch; raises ValueError if it is missing."""
    value = getattr(batch, name)
    if value is None:
        raise ValueError(f"{type(component).__name__} needs batch.{name}, which this run does not make")
    return value
