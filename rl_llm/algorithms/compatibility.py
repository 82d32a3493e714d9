"""Which components of an algorithm go together: a part that could not act beside the others is refused."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from rl_llm.algorithms.advantage import Normalize
from rl_llm.algorithms.aggregate import Balanced, TokenMean
from rl_llm.algorithms.correction import ImportanceWeight, OffPolicyMask, RatioMask
from rl_llm.algorithms.objective import Nothing

THE_REWARD = Normalize(mean="none", std="none")  # the advantage that does nothing
BOUNDS = ("low", "high", "cap", "upper", "lower", "bound", "limit", "floor", "ceiling")  # these may be infinite


def check_together(algorithm: Any) -> None:
    """Raises ValueError naming a component of an `Algorithm` that cannot act beside the others."""
    for component in algorithm.components:
        check_numbers(component)
    check_losses(algorithm)
    check_shaping(algorithm)
    check_filters(algorithm)
    check_empty_rows(algorithm)
    check_corrections(algorithm)
    names = [type(c).__name__ for c in algorithm.components if getattr(c, "controller", None) is not None]
    if len(set(names)) < len(names):
        raise ValueError(f"{' and '.join(names)} are adapted by name: one of a kind can have a controller")


def check_numbers(component: Any) -> None:
    """Raises ValueError for a number that is none, or that is infinite and no bound."""
    for place, name, value in numbers(component, type(component).__name__):
        if math.isnan(value) or (math.isinf(value) and name not in BOUNDS):
            raise ValueError(f"{place}.{name}={value}: it must be a finite number")


def numbers(component: Any, place: str) -> Iterator[tuple[str, str, float]]:
    """Every float of a component and of what it is made of: where it stands, its name, itself."""
    for field in fields(component) if is_dataclass(component) else ():
        value = getattr(component, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, float):
                yield place, field.name, item
            yield from numbers(item, f"{place}.{field.name}")


def check_losses(algorithm: Any) -> None:
    """Raises ValueError for losses that would not add up, or that nobody reads."""
    objective, value_loss = algorithm.objective, algorithm.value_loss
    for loss, aggregate in ((objective, algorithm.aggregate), (value_loss, algorithm.value_aggregate)):
        exact = getattr(loss, "aggregates", None)
        if exact is not None and not isinstance(aggregate, exact):
            raise ValueError(
                f"{type(loss).__name__} with {type(aggregate).__name__}: what a response loses is spread over its "
                f"tokens, and only {' or '.join(kind.__name__ for kind in exact)} adds it up again"
            )
    if value_loss is None and algorithm.value_aggregate != TokenMean():
        raise ValueError(f"value_aggregate={algorithm.value_aggregate} cannot act without a value_loss")
    if "value" in getattr(value_loss, "needs", ()) and "value" not in algorithm.advantage.needs:
        raise ValueError(
            f"{type(value_loss).__name__} beside {type(algorithm.advantage).__name__}: nobody reads what the critic "
            "says, nor are there returns for it to learn; take GAE, or leave the critic out"
        )
    reads_value = value_loss is not None and "value" in algorithm.advantage.needs
    if reads_value and "returns" not in getattr(value_loss, "needs", ()):
        raise ValueError(
            f"{type(value_loss).__name__} beside {type(algorithm.advantage).__name__}: nobody teaches the critic the "
            "returns that the advantage takes its values for; take ValueLoss"
        )
    if isinstance(objective, Nothing) and not algorithm.regularizers and value_loss is None:
        raise ValueError("Nothing without regularizers: there is no loss; name one, such as Distillation")
    if getattr(objective, "reads_advantage", True) or "value" in algorithm.needs:
        return
    if algorithm.advantage != THE_REWARD:
        raise ValueError(
            f"{type(objective).__name__} reads no advantage, so {algorithm.advantage} cannot act: take {THE_REWARD}"
        )
    for part in (algorithm.aggregate, *algorithm.corrections):
        if isinstance(part, Balanced | OffPolicyMask):
            raise ValueError(
                f"{type(part).__name__} looks at the sign of the advantage, which {type(objective).__name__} does not "
                "have"
            )


def check_shaping(algorithm: Any) -> None:
    """Raises ValueError for a shaping of rewards that the advantage or the losses do not see."""
    advantage = algorithm.advantage
    for shape in algorithm.shaping:
        name, reader = type(shape).__name__, type(advantage).__name__
        if getattr(shape, "gives_token_reward", False) and not getattr(advantage, "reads_token_reward", False):
            raise ValueError(
                f"{name} rewards single tokens, and {reader} sees what whole responses earn: take RewardToGo or GAE, "
                "or level='response'"
            )
        if getattr(shape, "replaces_rewards", False) and getattr(advantage, "outcome", None) is not None:
            raise ValueError(
                f"{name} changes what the last token earned, in the place of which {reader}.outcome puts an advantage: "
                "leave one of them out"
            )
        if "rewards" in getattr(advantage, "needs", ()):
            raise ValueError(
                f"{name} shapes the total reward, and {reader} reads its components: make the fine a component of the "
                "reward instead"
            )
        if not algorithm.reads_reward:
            raise ValueError(f"{name} shapes a reward that {type(algorithm.objective).__name__} does not read")


def check_filters(algorithm: Any) -> None:
    """Raises ValueError for counts=False where no statistic holds a reward that it would leave out."""
    looked_at: frozenset[str] = getattr(algorithm.advantage, "statistics", frozenset())
    for keep in algorithm.filters:
        reach = looked_at - {"group"} if getattr(keep, "of_groups", False) else looked_at
        if not keep.counts and not reach:
            raise ValueError(
                f"{type(keep).__name__}.counts=False cannot act: {algorithm.advantage} compares a response with no "
                "reward that it would leave out"
            )


def check_empty_rows(algorithm: Any) -> None:
    """Raises ValueError for an aggregate that counts rows without a token where no filter empties one."""
    by_critic = bool(algorithm.filters) and not getattr(algorithm.value_loss, "learns_from_dropped", False)
    for name, emptied in (("aggregate", bool(algorithm.filters)), ("value_aggregate", by_critic)):
        aggregate = getattr(algorithm, name)
        if getattr(aggregate, "empty", "ignored") == "counted" and not emptied:
            raise ValueError(
                f"{name}={aggregate} cannot act: no filter leaves a row without a token that counts here, and all "
                "others are counted in any case; set empty='ignored'"
            )


def check_corrections(algorithm: Any) -> None:
    """Raises ValueError for a weight that stands in the objective already, and for a bound of a weight beyond which a
    mask leaves nothing. A mask may be beside either: it drops what they would weigh.
    """
    name = type(algorithm.objective).__name__
    for correction in algorithm.corrections:
        if isinstance(correction, ImportanceWeight) and getattr(algorithm.objective, "from_sampler", False):
            raise ValueError(
                f"{correction} beside {name}: the ratio of {name} is to the sampler's distribution, so what the "
                "sampler is away would be weighed twice; leave the correction out"
            )
        for mask in algorithm.corrections if isinstance(correction, ImportanceWeight) else ():
            if isinstance(mask, RatioMask) and mask.level == correction.level and not correction.batch_normalize:
                check_reach(correction, mask)


def check_reach(weight: ImportanceWeight, mask: RatioMask) -> None:
    """Raises ValueError for a bound of the weight that no ratio reaches which the mask leaves."""
    above = weight.upper is not None and mask.upper is not None and weight.upper >= mask.upper
    below = weight.lower is not None and mask.lower is not None and weight.lower <= mask.lower
    for name, dead in (("upper", above), ("lower", below)):
        if dead:
            raise ValueError(
                f"ImportanceWeight.{name}={getattr(weight, name)} cannot act beside {mask}: no ratio is left beyond "
                f"{getattr(mask, name)}; set {name}=None"
            )
