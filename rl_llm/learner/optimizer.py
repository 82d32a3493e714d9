"""The optimizer: AdamW with warm-up, a schedule and global-norm clipping, as one optax chain."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from rl_llm.config.fields import Checked, Decay, NonNegativeFloat, NonNegativeInt, PositiveFloat, UnitFloat

LARGEST_BFLOAT16_BETA = 0.99  # bfloat16 numbers lie 0.4 to 0.8 % apart


@dataclass(frozen=True)
class AdamW(Checked):
    """AdamW (arXiv 1711.05101) with warm-up and a schedule.

    The rate rises over `warmup_updates`, then falls towards `final_fraction` of itself, which it would reach one update
    after the last. `max_gradient_norm` clips the global norm of the gradient before Adam. `weight_decay` shrinks
    matrices (embedding, projections, adapters) and the value head, but no norms and no biases: zero is no neutral value
    of a norm's scale. The moments are computed in float32 and stored in `moments_dtype` between updates; bfloat16
    halves their memory.
    """

    learning_rate: NonNegativeFloat
    warmup_updates: NonNegativeInt = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_fraction: UnitFloat = 0.0
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    max_gradient_norm: PositiveFloat = 1.0
    moments_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moments_dtype == "bfloat16" and max(self.beta1, self.beta2) > LARGEST_BFLOAT16_BETA:
            raise ValueError(
                f"AdamW.moments_dtype='bfloat16' with beta1={self.beta1}, beta2={self.beta2}: updates that change a "
                f"moment by less than 1 % would be rounded away; set both to {LARGEST_BFLOAT16_BETA} at most, or use "
                "float32"
            )
        if self.schedule == "constant" and self.final_fraction != 0.0:
            raise ValueError(f"AdamW.final_fraction={self.final_fraction} cannot act with schedule='constant'")

    def check(self, updates: int) -> None:
        """Raises ValueError for a warm-up that never ends."""
        if self.warmup_updates and self.warmup_updates >= updates:
            raise ValueError(
                f"AdamW.warmup_updates={self.warmup_updates} is out of range; expected fewer than the run's {updates} "
                f"updates, or learning_rate={self.learning_rate} is never reached: warm up for less or train longer"
            )

    def rate(self, updates: int) -> optax.Schedule:
        """Schedule from update index to learning rate over `updates` updates; the first update has a non-zero rate."""
        peak, decay = self.learning_rate, max(updates - self.warmup_updates, 1)
        after = {
            "constant": optax.constant_schedule(peak),
            "linear": optax.linear_schedule(peak, peak * self.final_fraction, decay),
            "cosine": optax.cosine_decay_schedule(peak, decay, self.final_fraction),
        }[self.schedule]
        if not self.warmup_updates:
            return after
        step = peak / self.warmup_updates
        warmup = optax.linear_schedule(step, peak, max(self.warmup_updates - 1, 1))
        return optax.join_schedules([warmup, after], [self.warmup_updates])

    def build(self, updates: int) -> "Optimizer":
        """Build the optimizer of a run of `updates` updates."""
        return Optimizer(self, updates)


@dataclass(frozen=True)
class Optimizer:
    """An `AdamW` over a number of updates: a hashable value with the functions of an optax transformation.

    The optax chain is built at each call, so the numbers may be tracers. State shapes do not depend on the numbers.
    """

    settings: AdamW
    updates: int

    def chain(self) -> optax.GradientTransformation:
        """Build the optax chain; an update that is not finite is skipped and counted in its state."""
        settings = self.settings
        adam = optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps)
        adamw = optax.chain(
            adam if settings.moments_dtype == "float32" else stored_in_bfloat16(adam),
            optax.add_decayed_weights(settings.weight_decay, is_decayed),
            optax.scale_by_learning_rate(settings.rate(self.updates)),
        )
        chain = optax.chain(optax.clip_by_global_norm(settings.max_gradient_norm), adamw)
        return optax.apply_if_finite(chain, max_consecutive_errors=jnp.iinfo(jnp.int32).max)

    def init(self, params: optax.Params) -> Any:
        """State before the first update."""
        return self.chain().init(params)

    def update(
        self, gradient: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        """Return the parameter updates to add, and the next state."""
        return self.chain().update(gradient, state, params)


def is_decayed(params: optax.Params) -> Any:
    """Whether each weight decays: norms and biases do not.

    The last part of a weight's path tells its kind: stacked over layers, a norm has two axes like a matrix.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith(("norm", "bias")), params)


def stored_in_bfloat16(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Store Adam's moments in bfloat16 between updates; each update computes in float32."""

    def cast(state: optax.ScaleByAdamState, dtype: type) -> optax.ScaleByAdamState:
        mu, nu = (jax.tree.map(lambda x: x.astype(dtype), moments) for moments in (state.mu, state.nu))
        return state._replace(mu=mu, nu=nu)

    def init(params: optax.Params) -> Any:
        return cast(adam.init(params), jnp.bfloat16)

    def update(gradient: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        direction, after = adam.update(gradient, cast(state, jnp.float32), params)
        return direction, cast(after, jnp.bfloat16)

    return optax.GradientTransformation(init, update)
