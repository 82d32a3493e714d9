"""The reference policy that a KL divergence is measured from."""

from dataclasses import dataclass, field

import jax

from rl_llm.config import Checked
from rl_llm.config.fields import NonNegativeInt, UnitFloat


@dataclass(frozen=True)
class Reference(Checked):
    """The initial policy of RL, frozen by default.

    `reset_every` n: replaced by the policy every n steps (ProRL, arXiv 2505.24864, section 3.2, which also resets the
    optimizer's state; here it continues). `decay`: follows as an average, reference' = decay * reference +
    (1 - decay) * policy after every step (WARP, 2406.16768, section 3.1).

    `top_tokens` k: its k likeliest tokens at each position become batch.teacher_tokens and teacher_logp. The
    regularizer Distillation(GeneralizedJSD(beta=1.0)) is then the full KL(pi || ref), exact for k = V; estimators see
    the sampled token alone. `offload`: parameters stay in host memory while they are not used.
    """

    reset_every: NonNegativeInt = 0  # 0: never
    decay: UnitFloat = 1.0  # 1: frozen
    top_tokens: NonNegativeInt = 0
    offload: bool = field(default=False, metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reset_every and self.decay < 1:
            raise ValueError(f"Reference.reset_every={self.reset_every} excludes decay={self.decay}; set one of them")

    def moves(self, step: int) -> bool:
        """Whether the `step`-th step, counted from 1, changes it."""
        return self.decay < 1 or (self.reset_every > 0 and step % self.reset_every == 0)

    def after_step(self, reference: dict, params: dict, step: int) -> dict:
        """Reference after the `step`-th step; new buffers if it moves."""
        if not self.moves(step):
            return reference
        if self.reset_every:
            return jax.tree.map(jax.numpy.copy, params)
        return jax.tree.map(lambda old, new: self.decay * old + (1.0 - self.decay) * new, reference, params)
