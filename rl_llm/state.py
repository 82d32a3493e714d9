"""The train state: made, placed on a mesh, and described for a checkpoint to be restored to."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rl_llm import mesh as meshes
from rl_llm.algorithms import no_moments
from rl_llm.model import ModelConfig, init, weight_table
from rl_llm.types import TrainState


@dataclass(frozen=True)
class Carried:
    """What a train state carries besides parameters and optimizer: a reference policy, the parameters of `past` steps,
    the moments of rewards.
    """

    reference: bool = False
    past: int = 0
    moments: bool = False


NOTHING = Carried()


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    params_or_key: Any,
    carried: Carried = NOTHING,
) -> TrainState:
    """A state of step 0 on the mesh, from parameters or from the key to draw them with. The reference and the past
    parameters are these parameters.
    """

    def copy(params: dict) -> dict:
        """Another buffer: a state is donated at every update, and one buffer cannot be given away twice."""
        return jax.tree.map(jnp.copy, params)

    def build(params_or_key: Any) -> TrainState:
        params = params_or_key if isinstance(params_or_key, dict) else init(config, params_or_key)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=optimizer.init(params),
            reference=copy(params) if carried.reference else None,
            past=tuple(copy(params) for _ in range(carried.past)) or None,
            moments=no_moments() if carried.moments else None,
        )

    return jax.jit(build, out_shardings=state_shardings(config, optimizer, mesh, carried))(params_or_key)


def state_shardings(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, carried: Carried = NOTHING
) -> TrainState:
    """The shardings of a train state: all parameters and optimizer moments lie where their weights lie, scalars
    everywhere.
    """
    weights = meshes.weight_shardings(mesh, weight_table(config))
    same = meshes.replicated(mesh)
    shape = jax.eval_shape(lambda: optimizer.init(init(config, jax.random.key(0))))
    opt_state = optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, shape, weights, transform_non_params=lambda _: same
    )
    return TrainState(
        step=same,
        params=weights,
        opt_state=opt_state,
        reference=weights if carried.reference else None,
        past=(weights,) * carried.past or None,
        moments=jax.tree.map(lambda _: same, no_moments()) if carried.moments else None,
    )


def abstract_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, carried: Carried = NOTHING
) -> TrainState:
    """Shapes, types and shardings of a state, without making it: what a checkpoint is restored to."""
    shape = jax.eval_shape(lambda: init_state(config, optimizer, mesh, jax.random.key(0), carried))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shape,
        state_shardings(config, optimizer, mesh, carried),
    )
