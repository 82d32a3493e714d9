"""A critic: what a response is going to earn, at each of its tokens. A network of its own, or a head on the policy's
hidden states.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rl_llm.learner.logprobs import response_hidden
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import ModelConfig, Weight, merge_adapters, weight_table
from rl_llm.types import Prompts

HEAD = "value_head"


@dataclass(frozen=True)
class Critic:
    """A critic and how it learns; what it learns is the algorithm's `value_loss`.

    By itself it is a network of the policy's shape that begins as the policy which RL begins with. `shared` makes it a
    linear head on the policy's own hidden states: the policy's parameters then learn `coefficient` times its loss as
    well. In the first `pretraining_steps` steps of RL the critic learns alone, from responses of a policy that stays as
    it is (value pre-training, VC-PPO, arXiv 2503.01491). The head begins with zeros, so V = 0.
    """

    optimizer: AdamW
    shared: bool = False
    coefficient: float = 1.0
    pretraining_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.coefficient < math.inf:
            raise ValueError(f"Critic.coefficient must be greater than 0, and finite, not {self.coefficient}")
        if self.coefficient != 1.0 and not self.shared:
            raise ValueError(
                f"Critic.coefficient={self.coefficient} cannot act on a network of the critic's own: its learning rate "
                "decides; set shared=True, or leave it at 1.0"
            )
        if self.pretraining_steps < 0:
            raise ValueError(f"Critic.pretraining_steps must be at least 0, not {self.pretraining_steps}")

    def table(self, config: ModelConfig) -> dict[str, Weight]:
        """Its weights, as `weight_table` has the policy's."""
        body = {} if self.shared else weight_table(config.base)
        return {
            **{path: weight for path, weight in body.items() if path != "head"},
            HEAD: Weight((config.width,), (None,)),
        }

    def first_params(self, config: ModelConfig, params: dict) -> dict:
        """Its parameters beside a policy that has these. A network of its own learns with all its weights: it
        begins with the policy's adapters merged in.
        """
        whole = {} if self.shared else merge_adapters(config, params)[1]
        body = {name: weight for name, weight in whole.items() if name != "head"}
        return {**jax.tree.map(jnp.copy, body), HEAD: jnp.zeros(config.width)}

    def values(
        self,
        config: ModelConfig,
        params: dict,
        prompts: Prompts,
        tokens: jax.Array,
        policy_hidden: jax.Array | None,
        after_token: bool = False,
    ) -> jax.Array:
        """V f32[B, T] of the state before each token, or after it; `policy_hidden` f32[B, T, D] is read by a shared one
        only.
        """
        hidden = policy_hidden if self.shared else response_hidden(config.base, params, prompts, tokens, after_token)
        return jnp.einsum("btd,d->bt", hidden, params[HEAD], precision=jax.lax.Precision.HIGHEST)
