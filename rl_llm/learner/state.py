"""The train state: made, placed on a mesh, and described for a checkpoint to be restored to."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rl_llm.algorithms import no_moments
from rl_llm.learner.critic import Critic
from rl_llm.learner.optimizer import Optimizer
from rl_llm.model import Initialization, ModelConfig, init, join_params, split_flat, split_params, weight_table
from rl_llm.model.weights import AS_DECLARED
from rl_llm.parallel import mesh as meshes
from rl_llm.parallel.numbers import PROGRAMS, Numbers
from rl_llm.types import CriticState, Experience, Metrics, TrainState


@dataclass(frozen=True)
class StateSpec:
    """What a train state carries besides parameters and optimizer: a critic with its optimizer, a reference policy (in
    the memory of the host, to `offload` it), the parameters of `past` steps, the moments of rewards, coefficients that
    are adapted (with the values they begin with), and `replay` experiences of a shape.
    """

    critic: Critic | None = None
    critic_optimizer: Optimizer | None = None
    reference: bool = False
    offload: bool = False
    past: int = 0
    moments: bool = False
    coefficients: tuple[tuple[str, float], ...] = ()
    replay: int = 0
    experience: Experience | None = None


PARAMS_ONLY = StateSpec()


@dataclass(frozen=True)
class Draw:
    """Parameters that are still to be drawn."""

    key: jax.Array
    initialization: Initialization = AS_DECLARED


def init_state(
    config: ModelConfig,
    optimizer: Optimizer,
    mesh: Mesh,
    first: dict | Draw,
    spec: StateSpec = PARAMS_ONLY,
) -> TrainState:
    """A state of step 0 on the mesh, from parameters that are there or to be drawn. The reference and the past
    parameters are those of these that are trained, and there is nothing to replay. What is not trained is not copied.
    """
    structures = Numbers.of((optimizer, replace(spec, experience=None))).structure
    leaves, tree = jax.tree.flatten(spec.experience)
    drawn = isinstance(first, Draw)
    build, shardings = _compile_init(config, mesh, *structures, tuple(leaves), tree, drawn)
    coefficients = dict(spec.coefficients)
    if isinstance(first, Draw):
        state: TrainState = build((first.key, Numbers.of(first.initialization)), coefficients)
    else:
        given = split_params(config, first)
        state = replace(build(given, coefficients), frozen=jax.device_put(given[1], shardings.frozen))
    if spec.offload:
        state = replace(state, reference=jax.device_put(state.reference, meshes.on_host(shardings.reference)))
    return state


@lru_cache(maxsize=PROGRAMS)
def _compile_init(
    config: ModelConfig, mesh: Mesh, optimizer: Optimizer, spec: StateSpec, leaves: tuple, tree: Any, drawn: bool
) -> tuple[Callable[[Any, dict[str, float]], TrainState], TrainState]:
    """(parameters, or a key and how to draw with it; the first coefficients) -> a state with what is trained on the
    devices; and its shardings. Only structures are looked at. `leaves` and `tree` are the shape of what is
    replayed.
    """
    spec = replace(spec, experience=jax.tree.unflatten(tree, leaves))

    def copy(params: dict) -> dict:
        """Another buffer: a state is donated at every update, and one buffer cannot be given away twice."""
        return jax.tree.map(jnp.copy, params)

    def first_critic(params: dict) -> CriticState | None:
        if spec.critic is None or spec.critic_optimizer is None:
            return None
        own = spec.critic.first_params(config, params)
        return CriticState(own, spec.critic_optimizer.init(own))

    def nothing(experience: Experience | None) -> Experience:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), experience)

    def build(given: Any, coefficients: dict[str, float]) -> TrainState:
        params, frozen = split_params(config, init(config, given[0], given[1].value)) if drawn else given
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=optimizer.init(params),
            frozen=frozen if drawn else None,
            critic=first_critic(join_params(params, frozen)),
            reference=copy(params) if spec.reference else None,
            past=tuple(copy(params) for _ in range(spec.past)) or None,
            moments=no_moments() if spec.moments else None,
            coefficients={name: jnp.float32(value) for name, value in coefficients.items()} or None,
            replay=tuple(nothing(spec.experience) for _ in range(spec.replay)) or None,
        )

    shardings = state_shardings(config, optimizer, mesh, replace(spec, offload=False))
    return jax.jit(build, out_shardings=shardings if drawn else replace(shardings, frozen=None)), shardings


def policy_of(state: TrainState, trained: dict | None = None) -> dict:
    """All parameters of a state's policy: those that are trained, or others in their place, and the frozen ones."""
    return join_params(state.params if trained is None else trained, state.frozen)


def state_shardings(config: ModelConfig, optimizer: Optimizer, mesh: Mesh, spec: StateSpec = PARAMS_ONLY) -> TrainState:
    """The shardings of a train state: all parameters and optimizer moments lie where their weights lie, experiences
    over the batch, scalars everywhere.
    """
    trained, frozen = split_flat(config, weight_table(config))
    weights, same = meshes.weight_shardings(mesh, trained), meshes.replicated(mesh)

    def optimizer_state(optimizer: Optimizer, params: Callable[[], dict], weights: dict) -> Any:
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
    if spec.critic is not None and spec.critic_optimizer is not None:
        own = meshes.weight_shardings(mesh, spec.critic.table(config))
        first = spec.critic.first_params
        critic = CriticState(own, optimizer_state(spec.critic_optimizer, lambda: first(config, random()), own))
    rows = jax.tree.map(lambda _: meshes.over_batch(mesh), spec.experience)
    return TrainState(
        step=same,
        params=weights,
        opt_state=optimizer_state(optimizer, lambda: split_params(config, random())[0], weights),
        frozen=meshes.weight_shardings(mesh, frozen) or None,
        critic=critic,
        reference=(meshes.on_host(weights) if spec.offload else weights) if spec.reference else None,
        past=(weights,) * spec.past or None,
        moments=jax.tree.map(lambda _: same, no_moments()) if spec.moments else None,
        coefficients={name: same for name, _ in spec.coefficients} or None,
        replay=(rows,) * spec.replay or None,
    )


def abstract_state(config: ModelConfig, optimizer: Optimizer, mesh: Mesh, spec: StateSpec = PARAMS_ONLY) -> TrainState:
    """Shapes, types and shardings of a state, without making it: what a checkpoint is restored to."""
    shape = jax.eval_shape(lambda: init_state(config, optimizer, mesh, Draw(jax.random.key(0)), spec))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shape,
        state_shardings(config, optimizer, mesh, spec),
    )


def compile_update(
    step: Callable[..., tuple[TrainState, Metrics]],
    config: ModelConfig,
    optimizer: Optimizer,
    mesh: Mesh,
    spec: StateSpec,
    arguments: tuple,
) -> Any:
    """(numbers, state, others) -> (state, metrics) of `step` jitted for a mesh, with the shardings of its other
    `arguments`: the program of an `Update`. The state is donated, so it is updated in place; but what is frozen is not,
    for a sampler may be reading it: `step` gets it as its last argument, where there is some.
    """
    states, same = state_shardings(config, optimizer, mesh, spec), meshes.replicated(mesh)
    frozen, states = states.frozen, replace(states, frozen=None)
    return meshes.compile(
        step,
        mesh,
        in_shardings=(same, states, *arguments, *([] if frozen is None else [frozen])),
        out_shardings=(states, same),
        donate_argnums=1,
    )


@dataclass(frozen=True)
class Update:
    """(state, others) -> (state, metrics): a jitted update with the numbers that it takes. Its caller keeps what is
    frozen.
    """

    program: Any
    numbers: Numbers[Any]

    def __call__(self, state: TrainState, *others: Any) -> tuple[TrainState, Metrics]:
        after, metrics = self.program(*self._arguments(state, others))
        return replace(after, frozen=state.frozen), metrics

    def lower(self, state: TrainState, *others: Any) -> Any:
        """As of a jitted function."""
        return self.program.lower(*self._arguments(state, others))

    def _arguments(self, state: TrainState, others: tuple) -> tuple:
        frozen = () if state.frozen is None else (state.frozen,)
        return (self.numbers, replace(state, frozen=None), *others, *frozen)
