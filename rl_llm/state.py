"""The train state: made, placed on a mesh, and described for a checkpoint to be restored to."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rl_llm import mesh as meshes
from rl_llm.algorithms import no_moments
from rl_llm.critic import Critic
from rl_llm.model import ModelConfig, init, joined, separated, trained_and_frozen, weight_table
from rl_llm.types import CriticState, Experience, Metrics, TrainState


@dataclass(frozen=True)
class Carried:
    """What a train state carries besides parameters and optimizer: a critic with its optimizer, a reference policy (in
    the memory of the host, to `offload` it), the parameters of `past` steps, the moments of rewards, coefficients that
    are adapted (with the values they begin with), and `replay` experiences of a shape.
    """

    critic: Critic | None = None
    critic_optimizer: optax.GradientTransformation | None = None
    reference: bool = False
    offload: bool = False
    past: int = 0
    moments: bool = False
    coefficients: tuple[tuple[str, float], ...] = ()
    replay: int = 0
    experience: Experience | None = None


NOTHING = Carried()


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    params_or_key: Any,
    carried: Carried = NOTHING,
) -> TrainState:
    """A state of step 0 on the mesh, from parameters or from the key to draw them with. The reference and the past
    parameters are those of these that are trained, and there is nothing to replay. What is not trained is not copied.
    """

    def copy(params: dict) -> dict:
        """Another buffer: a state is donated at every update, and one buffer cannot be given away twice."""
        return jax.tree.map(jnp.copy, params)

    def first_critic(params: dict) -> CriticState | None:
        if carried.critic is None or carried.critic_optimizer is None:
            return None
        own = carried.critic.first_params(config, params)
        return CriticState(own, carried.critic_optimizer.init(own))

    def nothing(experience: Experience | None) -> Experience:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), experience)

    def build(given: Any) -> TrainState:
        drawn = not isinstance(given, tuple)
        params, frozen = trained_and_frozen(config, init(config, given)) if drawn else given
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=optimizer.init(params),
            frozen=frozen if drawn else None,
            critic=first_critic(joined(params, frozen)),
            reference=copy(params) if carried.reference else None,
            past=tuple(copy(params) for _ in range(carried.past)) or None,
            moments=no_moments() if carried.moments else None,
            coefficients={name: jnp.float32(value) for name, value in carried.coefficients} or None,
            replay=tuple(nothing(carried.experience) for _ in range(carried.replay)) or None,
        )

    shardings = state_shardings(config, optimizer, mesh, replace(carried, offload=False))
    if isinstance(params_or_key, dict):
        given = trained_and_frozen(config, params_or_key)
        state: TrainState = jax.jit(build, out_shardings=replace(shardings, frozen=None))(given)
        state = replace(state, frozen=jax.device_put(given[1], shardings.frozen))
    else:
        state = jax.jit(build, out_shardings=shardings)(params_or_key)
    if carried.offload:
        state = replace(state, reference=jax.device_put(state.reference, meshes.on_host(shardings.reference)))
    return state


def policy_of(state: TrainState, trained: dict | None = None) -> dict:
    """All parameters of a state's policy: those that are trained, or others in their place, and the frozen ones."""
    return joined(state.params if trained is None else trained, state.frozen)


def state_shardings(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, carried: Carried = NOTHING
) -> TrainState:
    """The shardings of a train state: all parameters and optimizer moments lie where their weights lie, experiences
    over the batch, scalars everywhere.
    """
    trained, frozen = separated(config, weight_table(config))
    weights, same = meshes.weight_shardings(mesh, trained), meshes.replicated(mesh)

    def optimizer_state(optimizer: optax.GradientTransformation, params: Callable[[], dict], weights: dict) -> Any:
        return optax.tree_utils.tree_map_params(
            optimizer,
            lambda _, sharding: sharding,
            jax.eval_shape(lambda: optimizer.init(params())),
            weights,
            transform_non_params=lambda _: same,
        )

    def random() -> dict:
        return init(config, jax.random.key(0))

    critic = None
    if carried.critic is not None:
        own = meshes.weight_shardings(mesh, carried.critic.table(config))
        first = carried.critic.first_params
        critic = CriticState(own, optimizer_state(carried.critic_optimizer, lambda: first(config, random()), own))
    rows = jax.tree.map(lambda _: meshes.over_batch(mesh), carried.experience)
    return TrainState(
        step=same,
        params=weights,
        opt_state=optimizer_state(optimizer, lambda: trained_and_frozen(config, random())[0], weights),
        frozen=meshes.weight_shardings(mesh, frozen) or None,
        critic=critic,
        reference=(meshes.on_host(weights) if carried.offload else weights) if carried.reference else None,
        past=(weights,) * carried.past or None,
        moments=jax.tree.map(lambda _: same, no_moments()) if carried.moments else None,
        coefficients={name: same for name, _ in carried.coefficients} or None,
        replay=(rows,) * carried.replay or None,
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


def compile_update(
    step: Callable[..., tuple[TrainState, Metrics]],
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    carried: Carried,
    arguments: tuple,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """(state, others) -> (state, metrics) of `step` jitted for a mesh, with the shardings of its other `arguments`. The
    state is donated, so it is updated in place; but what is frozen is not, for a sampler may be reading it: `step` gets
    it as its last argument, where there is some.
    """
    states = state_shardings(config, optimizer, mesh, carried)
    frozen, states = states.frozen, replace(states, frozen=None)
    compiled = meshes.compile(
        step,
        mesh,
        in_shardings=(states, *arguments, *([] if frozen is None else [frozen])),
        out_shardings=(states, meshes.replicated(mesh)),
        donate_argnums=0,
    )
    update: Callable[..., tuple[TrainState, Metrics]] = compiled if frozen is None else _Keeping(compiled)
    return update


@dataclass(frozen=True)
class _Keeping:
    """A jitted update whose caller keeps what is frozen."""

    update: Any

    def __call__(self, state: TrainState, *others: Any) -> tuple[TrainState, Metrics]:
        after, metrics = self.update(replace(state, frozen=None), *others, state.frozen)
        return replace(after, frozen=state.frozen), metrics

    def lower(self, state: TrainState, *others: Any) -> Any:
        """As of a jitted function."""
        return self.update.lower(replace(state, frozen=None), *others, state.frozen)
