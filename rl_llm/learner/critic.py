"""The critic: expected reward of a response at each of its tokens.

It is a network of its own, or a linear head on the policy's hidden states.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rl_llm.config.fields import Checked, NonNegativeInt, PositiveFloat
from rl_llm.learner.gradient import in_parts
from rl_llm.learner.logprobs import response_hidden
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import ModelConfig, Weight, merge_adapters, weight_table
from rl_llm.parallel.numbers import partition
from rl_llm.parallel.programs import ROWS, compile_program, laid_out
from rl_llm.types import Prompts, Rollout

HEAD = "value_head"


@dataclass(frozen=True)
class Critic(Checked):
    """A critic and how it learns; its loss is the algorithm's `value_loss`.

    By default it is a network of the policy's shape, initialized from the policy that RL starts with. `shared` makes it
    a linear head on the policy's hidden states; the policy's parameters then also minimise `coefficient` times its
    loss. In the first `pretraining_steps` steps of RL the critic learns alone, from responses of a fixed policy (value
    pre-training, VC-PPO, arXiv 2503.01491). The head starts at zero, so V = 0.
    """

    optimizer: AdamW
    shared: bool = False
    coefficient: PositiveFloat = 1.0
    pretraining_steps: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coefficient != 1.0 and not self.shared:
            raise ValueError(
                f"Critic.coefficient={self.coefficient} cannot act on a network of the critic's own: its learning rate "
                "decides; set shared=True, or leave it at 1.0"
            )

    def table(self, config: ModelConfig) -> dict[str, Weight]:
        """Weight table of the critic, as `weight_table` is the policy's."""
        body = {} if self.shared else weight_table(config.base)
        body.pop("head", None)
        return body | {HEAD: Weight((config.width,), (None,))}

    def first_params(self, config: ModelConfig, params: dict) -> dict:
        """First parameters beside a policy with `params`.

        A network of its own trains all its weights, so it starts with the policy's adapters merged in.
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
        """Values f32[B, T] of the state before each token, or after it.

        Only a shared critic reads `policy_hidden` f32[B, T, D].
        """
        hidden = policy_hidden if self.shared else response_hidden(config.base, params, prompts, tokens, after_token)
        return jnp.einsum("btd,d->bt", hidden, params[HEAD], precision=jax.lax.Precision.HIGHEST)


def compile_values(
    config: ModelConfig, critic: Critic | None, after_token: bool, mesh: Mesh, parts: int = 1
) -> Callable[[dict | None, dict, Rollout], jax.Array]:
    """Compile (params, critic params, rollout) -> values f32[B, T], 0 at padding, one of `parts` at a time in memory.

    Only a shared critic reads the policy's parameters.
    """
    structure = partition(critic)[1]
    shared = structure is not None and structure.shared
    policy = laid_out(weight_table(config)) if shared else None
    own = laid_out(structure.table(config)) if structure is not None else None
    static = (config, structure, after_token, parts)
    program = compile_program(_values, mesh, static, inputs=(policy, own, ROWS), outputs=ROWS)
    return lambda params, critic_params, rollout: program(params if shared else None, critic_params, rollout)


def _values(
    config: ModelConfig,
    critic: Critic,
    after_token: bool,
    parts: int,
    params: dict | None,
    critic_params: dict,
    rollout: Rollout,
) -> jax.Array:
    def values(part: Rollout) -> jax.Array:
        hidden = None if params is None else response_hidden(config, params, part.prompts, part.tokens)
        return critic.values(config, critic_params, part.prompts, part.tokens, hidden, after_token) * part.mask

    return in_parts(values, rollout, rollout.prompts.lengths.shape[0], parts)
