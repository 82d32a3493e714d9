"""Losses of preferences between whole responses. Pair losses take log-probabilities of whole responses (sums over their
tokens), f32[pairs] each, and return f32[pairs]; `KTO` takes single responses, `bradley_terry` takes scores.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class DPO:
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), h the margin of log(pi / ref) between chosen and rejected
    (DPO, arXiv 2305.18290, eq. 7); `label_smoothing` e is the share of labels taken to be wrong (cDPO, Mitchell 2023).
    """

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _positive(self, "beta", self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"DPO.label_smoothing must lie in [0, 0.5), not {self.label_smoothing}: at 0.5 the labels say nothing"
            )

    def __call__(
        self, chosen: jax.Array, rejected: jax.Array, ref_chosen: jax.Array, ref_rejected: jax.Array
    ) -> jax.Array:
        margin = self.beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
        right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
        return -(1.0 - self.label_smoothing) * right - self.label_smoothing * wrong


@dataclass(frozen=True)
class IPO:
    """(h - 1 / (2 beta))^2, h as in DPO (arXiv 2310.12036, eq. 17): the margin is drawn to a value, not to infinity."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        _positive(self, "beta", self.beta)

    def __call__(
        self, chosen: jax.Array, rejected: jax.Array, ref_chosen: jax.Array, ref_rejected: jax.Array
    ) -> jax.Array:
        return jnp.square((chosen - ref_chosen) - (rejected - ref_rejected) - 0.5 / self.beta)


@dataclass(frozen=True)
class KTO:
    """w (1 - sigmoid(+-beta (h - z))) of single responses, + for desirable ones, h = log(pi / ref), w the weight of the
    kind (arXiv 2402.01306). z >= 0 estimates KL(pi || ref), without gradient: the mean of log(pi / ref) over
    responses paired with other prompts.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            _positive(self, name, getattr(self, name))

    def __call__(self, logp: jax.Array, ref_logp: jax.Array, desirable: jax.Array, mismatched: jax.Array) -> jax.Array:
        """logp, ref_logp f32[rows], desirable bool[rows], mismatched f32[M] (log(pi / ref) of the other pairings)."""
        baseline = jax.lax.stop_gradient(jnp.maximum(jnp.mean(mismatched), 0.0))
        gain = self.beta * (logp - ref_logp - baseline)
        liked = self.desirable_weight * (1.0 - jax.nn.sigmoid(gain))
        disliked = self.undesirable_weight * (1.0 - jax.nn.sigmoid(-gain))
        return jnp.where(desirable, liked, disliked)


def implicit_reward(beta: float, logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """beta log(pi / ref): the reward whose optimal policy pi is (arXiv 2305.18290, eq. 5, up to a constant)."""
    return beta * (logp - ref_logp)


def bradley_terry(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """-log sigmoid(s_chosen - s_rejected), f32[pairs] of scores f32[pairs]: the loss of a reward model (arXiv
    2203.02155, eq. 1).
    """
    return -jax.nn.log_sigmoid(chosen - rejected)


def _positive(component: object, name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{type(component).__name__}.{name} must be greater than 0, not {value}")
