"""The reference policy that a KL divergence is measured from."""

from dataclasses import dataclass, field

import jax


@dataclass(frozen=True)
class Reference:
    """The policy that RL began with, kept as it is; or replaced by the policy every `reset_every` steps (ProRL, arXiv
    2505.24864, section 3.2, which begins anew with the optimizer's state as well: here it goes on); or following it as
    an average, reference' = decay * reference + (1 - decay) * policy after every step (WARP, 2406.16768, section 3.1).

    With `top_tokens` k its k likeliest tokens at each place are batch.teacher_tokens and teacher_logp: the regularizer
    Distillation(GeneralizedJSD(beta=1.0)) is then the full KL(pi || ref), exact for k = V, where estimators look at the
    sampled token alone.

    With `offload` its parameters lie in the memory of the host, and on the devices only while it is asked.
    """

    reset_every: int = 0
    decay: float = 1.0
    top_tokens: int = 0
    offload: bool = field(default=False, metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        if self.reset_every < 0 or not 0 <= self.decay <= 1 or self.top_tokens < 0:
            raise ValueError(
                "Reference needs reset_every >= 0 (0 is never), 0 <= decay <= 1 (1 is frozen) and top_tokens >= 0, not "
                f"{self}"
            )
        if self.reset_every and self.decay < 1:
            raise ValueError(
                f"Reference.reset_every={self.reset_every} with decay={self.decay}: let it jump or follow, not both"
            )

    def moves(self, step: int) -> bool:
        """Whether the `step`-th step, counted from 1, changes it."""
        return self.decay < 1 or (self.reset_every > 0 and step % self.reset_every == 0)

    def after_step(self, reference: dict, params: dict, step: int) -> dict:
        """The reference after the `step`-th step; new buffers where it moves."""
        if not self.moves(step):
            return reference
        if self.reset_every:
            return jax.tree.map(jax.numpy.copy, params)
        return jax.tree.map(lambda old, new: self.decay * old + (1.0 - self.decay) * new, reference, params)
