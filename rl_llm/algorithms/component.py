"""Contracts of an algorithm's components: a component is a frozen dataclass that inherits the class of its role."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

import jax

from rl_llm.algorithms.controller import AdaptiveKL, EntropyTarget
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.config import Checked
from rl_llm.types import Batch, Metrics

Coefficient = jax.Array | float | None  # f32[] from a controller; None: use the component's own coefficient
Loss = tuple[jax.Array, Metrics]  # f32[B, T] and metrics


class Component(Checked, ABC):
    """Base of every component of an `Algorithm`: its traits, with their defaults.

    A component overrides a trait without an annotation; with one, the trait would become a field. A `__post_init__` of
    its own calls that of `Checked` first.
    """

    # Filters.
    counts: bool = True  # rewards of dropped rows still count in means, spreads and baselines
    drops_groups: bool = False  # drops whole groups only
    # Shaping.
    replaces_rewards: bool = False  # afterwards a response's reward is not found at its last token
    # Losses.
    reads_advantage: bool = True  # of an objective
    reads_reward: bool = False  # reads batch.reward itself, not only through the advantage
    from_sampler: bool = False  # an objective whose ratio is to the sampler's distribution
    aggregates: tuple[type, ...] = ()  # the only aggregates that make it exact; empty: any
    learns_from_dropped: bool = False  # of a critic: filters apply to the policy only
    after_token: bool = False  # of a critic: the value at a token is read after the token, not before
    # Components with a controller.
    coefficient: float  # initial value
    controller: AdaptiveKL | EntropyTarget | None = None  # adapts the coefficient after every step

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        fields = inspect.get_annotations(cls)
        if shadowed := sorted(name for name in fields if isinstance(getattr(Component, name, None), property)):
            raise TypeError(f"{cls.__name__}.{shadowed[0]} is a trait; override it without an annotation")

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the optional batch fields that it reads."""
        return ()

    @property
    def statistics(self) -> frozenset[str]:
        """Rewards that an advantage compares with: of the "group", of the "batch", or the "running" moments."""
        return frozenset()

    @property
    def gives_token_reward(self) -> bool:
        """Whether a shaping rewards single tokens (batch.token_reward)."""
        return False

    @property
    def reads_token_reward(self) -> bool:
        """Whether an advantage sees the rewards of single tokens."""
        return False

    @property
    def measured(self) -> str:
        """Name of the metric that the controller follows."""
        assert self.controller is not None
        return self.controller.measures

    def check(self, run: RunShape) -> None:
        """Acts in every run."""


class Filter(Component):
    """Selects the rows that an update sees, by rewards before shaping: bool[B]."""

    @abstractmethod
    def __call__(self, batch: Batch) -> jax.Array: ...


class Shaping(Component):
    """Changes rewards before advantages are computed; takes `coefficient` if it has a controller."""

    @abstractmethod
    def __call__(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch: ...


class Advantage(Component):
    """Turns rewards into one number per token, f32[B, T]."""

    @abstractmethod
    def __call__(self, batch: Batch) -> jax.Array: ...

    def returns(self, batch: Batch) -> jax.Array:
        """Targets of a critic, f32[B, T]."""
        raise NotImplementedError(f"{type(self).__name__} defines no returns for a critic")


class Aggregate(Component):
    """Weighs the tokens' losses against each other: weights f32[B, T] from mask f32[B, T], 1 at tokens that count."""

    @abstractmethod
    def __call__(self, mask: jax.Array, batch: Batch) -> jax.Array: ...


class Correction(Component):
    """Corrects for a sampler that differs from the policy: constant factors f32[B, T] of the loss."""

    @abstractmethod
    def __call__(self, batch: Batch) -> jax.Array: ...


class Objective(Component):
    """The main loss of the policy at each token, from differentiable logp f32[B, T]; `batch` is constant."""

    @abstractmethod
    def __call__(self, logp: jax.Array, batch: Batch) -> Loss: ...


class Regularizer(Component):
    """A term added to the objective, from differentiable logp and entropy f32[B, T]; `batch` is constant."""

    @abstractmethod
    def __call__(self, logp: jax.Array, entropy: jax.Array, batch: Batch, coefficient: Coefficient = None) -> Loss: ...


class CriticLoss(Component):
    """The loss of a critic at each token, from differentiable values f32[B, T]; `batch` is constant."""

    @abstractmethod
    def __call__(self, value: jax.Array, batch: Batch) -> Loss: ...
