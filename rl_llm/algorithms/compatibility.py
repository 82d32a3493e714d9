"""Checks that components of an algorithm go together: one that cannot act beside the others is refused."""

import math
from typing import TYPE_CHECKING, Any

from rl_llm.algorithms.advantage import Normalize
from rl_llm.algorithms.aggregate import Balanced, SequenceMean, SequenceSum, TokenMean
from rl_llm.algorithms.correction import ImportanceWeight, OffPolicyMask, RatioMask
from rl_llm.algorithms.objective import Nothing
from rl_llm.algorithms.returns import RewardToGo
from rl_llm.config.fields import children

if TYPE_CHECKING:
    from rl_llm.algorithms.algorithm import Algorithm

THE_REWARD = Normalize(mean="none", std="none")  # the advantage that does nothing
BOUNDS = ("low", "high", "cap", "upper", "lower", "bound", "limit", "floor", "ceiling")  # these may be infinite


def check_together(algorithm: "Algorithm") -> None:
    """Raises ValueError naming a component that cannot act beside the others."""
    for component in algorithm.components:
        check_numbers(component, type(component).__name__)
    check_losses(algorithm)
    check_shaping(algorithm)
    check_filters(algorithm)
    check_empty_rows(algorithm)
    check_corrections(algorithm)
    names = [type(c).__name__ for c in algorithm.components if c.controller is not None]
    if len(set(names)) < len(names):
        raise ValueError(f"{' and '.join(names)} have controllers, which are kept by class name: leave one per class")


def check_numbers(component: Any, place: str) -> None:
    """Raises ValueError for NaN, and for an infinite number that is no bound, in a component or its parts."""
    for name, (value, _) in children(component, Any).items():
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and name not in BOUNDS)):
            raise ValueError(f"{place}.{name}={value}: it must be a finite number")
        check_numbers(value, f"{place}.{name}")


def check_losses(algorithm: "Algorithm") -> None:
    """Raises ValueError for losses that would not add up or have no effect."""
    objective, value_loss, advantage = algorithm.objective, algorithm.value_loss, algorithm.advantage
    for loss, aggregate in ((objective, algorithm.aggregate), (value_loss, algorithm.value_aggregate)):
        if loss is not None and loss.aggregates and not isinstance(aggregate, loss.aggregates):
            raise ValueError(
                f"{type(loss).__name__} with {type(aggregate).__name__}: the loss of a response is spread over its "
                f"tokens, and only {' or '.join(kind.__name__ for kind in loss.aggregates)} adds it up again"
            )
    if value_loss is None and algorithm.value_aggregate != TokenMean():
        raise ValueError(f"value_aggregate={algorithm.value_aggregate} cannot act without a value_loss")
    reads_value = "value" in advantage.needs
    if value_loss is not None and "value" in value_loss.needs and not reads_value:
        raise ValueError(
            f"{type(value_loss).__name__} beside {type(advantage).__name__}: nothing reads the critic's values or "
            "makes returns for it to learn; take GAE, or leave the critic out"
        )
    if value_loss is not None and reads_value and "returns" not in value_loss.needs:
        raise ValueError(
            f"{type(value_loss).__name__} beside {type(advantage).__name__}: the advantage needs values that predict "
            "returns, which this loss does not teach; take ValueLoss"
        )
    if isinstance(objective, Nothing) and not algorithm.regularizers and value_loss is None:
        raise ValueError("Nothing without regularizers: there is no loss; add one, such as Distillation")
    if objective.reads_advantage or "value" in algorithm.needs:
        return
    name = type(objective).__name__
    if advantage != THE_REWARD:
        raise ValueError(f"{name} reads no advantage, so {advantage} cannot act: take {THE_REWARD}")
    for part in (algorithm.aggregate, *algorithm.corrections):
        if isinstance(part, Balanced | OffPolicyMask):
            raise ValueError(f"{type(part).__name__} reads the sign of the advantage, which {name} does not have")


def check_shaping(algorithm: "Algorithm") -> None:
    """Raises ValueError for a shaping of rewards that the advantage or the losses do not see."""
    advantage = algorithm.advantage
    for shape in algorithm.shaping:
        name, reader = type(shape).__name__, type(advantage).__name__
        if shape.gives_token_reward and not advantage.reads_token_reward:
            raise ValueError(
                f"{name} rewards single tokens, and {reader} sees rewards of whole responses only: take RewardToGo or "
                "GAE, or level='response'"
            )
        if shape.replaces_rewards and isinstance(advantage, RewardToGo) and advantage.outcome is not None:
            raise ValueError(
                f"{name} changes the reward at the last token, which {reader}.outcome replaces by an advantage: leave "
                "one of them out"
            )
        if "rewards" in advantage.needs:
            raise ValueError(
                f"{name} shapes the total reward, and {reader} reads its components: make the penalty a component of "
                "the reward instead"
            )
        if not algorithm.reads_reward:
            raise ValueError(f"{name} shapes a reward that {type(algorithm.objective).__name__} does not read")


def check_filters(algorithm: "Algorithm") -> None:
    """Raises ValueError for counts=False if no statistic contains a reward that it would leave out."""
    for keep in algorithm.filters:
        reach = algorithm.advantage.statistics - ({"group"} if keep.drops_groups else set())
        if not keep.counts and not reach:
            raise ValueError(
                f"{type(keep).__name__}.counts=False cannot act: {algorithm.advantage} compares a response with no "
                "reward that it would leave out"
            )


def check_empty_rows(algorithm: "Algorithm") -> None:
    """Raises ValueError for an aggregate that counts rows without a token if no filter empties one."""
    filtered, critic = bool(algorithm.filters), algorithm.value_loss
    critic_filtered = filtered and not (critic is not None and critic.learns_from_dropped)
    for name, empties in (("aggregate", filtered), ("value_aggregate", critic_filtered)):
        aggregate = getattr(algorithm, name)
        if isinstance(aggregate, SequenceMean | SequenceSum) and aggregate.empty == "counted" and not empties:
            raise ValueError(f"{name}={aggregate} cannot act: no filter empties a row here; set empty='ignored'")


def check_corrections(algorithm: "Algorithm") -> None:
    """Refuse an importance weight that the objective already applies, or a bound that a mask makes unreachable.

    Masks may accompany either. Raises ValueError.
    """
    name = type(algorithm.objective).__name__
    masks = [mask for mask in algorithm.corrections if isinstance(mask, RatioMask)]
    for weight in algorithm.corrections:
        if not isinstance(weight, ImportanceWeight):
            continue
        if algorithm.objective.from_sampler:
            raise ValueError(
                f"{weight} beside {name}: the ratio of {name} is already to the sampler's distribution, so the "
                "difference would be weighed twice; leave the correction out"
            )
        for mask in masks:
            if mask.level == weight.level and not weight.batch_normalize:
                check_reach(weight, mask)


def check_reach(weight: ImportanceWeight, mask: RatioMask) -> None:
    """Raises ValueError for a bound of the weight beyond which the mask leaves no ratio."""
    above = weight.upper is not None and mask.upper is not None and weight.upper >= mask.upper
    below = weight.lower is not None and mask.lower is not None and weight.lower <= mask.lower
    for name, dead in (("upper", above), ("lower", below)):
        if dead:
            raise ValueError(
                f"ImportanceWeight.{name}={getattr(weight, name)} cannot act beside {mask}: no ratio is left beyond "
                f"{getattr(mask, name)}; set {name}=None"
            )
