"""The train state: built, placed on a mesh, and described for a checkpoint to be restored into."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rl_llm.algorithms import no_moments
from rl_llm.learner.critic import Critic
from rl_llm.learner.optimizer import Optimizer
from rl_llm.model import Initialization, ModelConfig, init, join_params, split_flat, split_params, weight_table
from rl_llm.model.weights import DEFAULT_INITIALIZATION
from rl_llm.parallel import mesh as meshes
from rl_llm.parallel.numbers import combine, partition
from rl_llm.parallel.programs import PROGRAMS, SAME, BoundProgram, compile_program, laid_out
from rl_llm.types import CriticState, Metrics, Rollout, TrainState


@dataclass(frozen=True)
class StateSpec:
    """Optional parts of a train state, besides parameters and optimizer state.

    critic and critic_optimizer; reference, a reference policy (kept in host memory with `offload`); past, the number of
    earlier parameters; moments, of rewards; coefficients, adapted ones with their first values; replay, the number of
    graded rollouts, each with the shapes of `replayed`.
    """

    critic: Critic | None = None
    critic_optimizer: Optimizer | None = None
    reference: bool = False
    offload: bool = False
    past: int = 0
    moments: bool = False
    coefficients: tuple[tuple[str, float], ...] = ()
    replay: int = 0
    replayed: Rollout | None = None


PARAMS_ONLY = StateSpec()


@dataclass(frozen=True)
class Draw:
    """Parameters that are still to be drawn."""

    key: jax.Array
    initialization: Initialization = DEFAULT_INITIALIZATION


def init_state(
    config: ModelConfig, optimizer: Optimizer, mesh: Mesh, first: dict | Draw, spec: StateSpec = PARAMS_ONLY
) -> TrainState:
    """Build the state of step 0 on the mesh, from given parameters or from a draw.

    The reference and the past parameters are copies of the trained ones, and replay is empty. Untrained parameters are
    not copied.
    """
    structures = partition((optimizer, spec))[1]
    build, shardings = _compile_init(config, mesh, *structures, isinstance(first, Draw))
    coefficients = dict(spec.coefficients)
    if isinstance(first, Draw):
        floats, initialization = partition(first.initialization)
        state: TrainState = build((first.key, floats), initialization, coefficients)
    else:
        given = split_params(config, first)
        state = replace(build(given, None, coefficients), frozen=jax.device_put(given[1], shardings.frozen))
    if spec.offload:
        state = replace(state, reference=jax.device_put(state.reference, meshes.on_host(shardings.reference)))
    return state


@lru_cache(maxsize=PROGRAMS)
def _compile_init(
    config: ModelConfig, mesh: Mesh, optimizer: Optimizer, spec: StateSpec, drawn: bool
) -> tuple[Callable[..., TrainState], TrainState]:
    """Compile (parameters, or a key and floats to draw with; initialization; coefficients) -> state, and its shardings.

    Only structures are read from `optimizer` and `spec`.
    """

    def copy(params: dict) -> dict:
        """Another buffer: a state is donated at every update, and a buffer cannot be donated twice."""
        return jax.tree.map(jnp.copy, params)

    def first_critic(params: dict) -> CriticState | None:
        if spec.critic is None or spec.critic_optimizer is None:
            return None
        own = spec.critic.first_params(config, params)
        return CriticState(own, spec.critic_optimizer.init(own))

    def build(given: Any, initialization: Initialization | None, coefficients: dict[str, float]) -> TrainState:
        if initialization is not None:
            params, frozen = split_params(config, init(config, given[0], combine(given[1], initialization)))
        else:
            params, frozen = given
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
            replay=tuple(jax.tree.map(jnp.zeros_like, spec.replayed) for _ in range(spec.replay)) or None,
        )

    shardings = state_shardings(config, optimizer, mesh, replace(spec, offload=False))
    out = shardings if drawn else replace(shardings, frozen=None)
    return jax.jit(build, static_argnums=1, out_shardings=out), shardings


def policy_of(state: TrainState, trained: dict | None = None) -> dict:
    """All parameters of a state's policy: its trained ones (or those given instead) joined with the frozen ones."""
    return join_params(state.params if trained is None else trained, state.frozen)


def state_shardings(config: ModelConfig, optimizer: Optimizer, mesh: Mesh, spec: StateSpec = PARAMS_ONLY) -> TrainState:
    """Shardings of a train state.

    Parameters and optimizer moments lie where their weights lie, rollouts over the batch axes, scalars everywhere.
    """
    trained, frozen = split_flat(config, weight_table(config))
    weights, same = meshes.weight_shardings(mesh, trained), meshes.replicated(mesh)

    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))

    def optimizer_state(optimizer: Optimizer, params: dict, weights: dict) -> Any:
        return optax.tree_utils.tree_map_params(
            optimizer,
            lambda _, sharding: sharding,
            jax.eval_shape(optimizer.init, params),
            weights,
            transform_non_params=lambda _: same,
        )

    critic = None
    if spec.critic is not None and spec.critic_optimizer is not None:
        own = meshes.weight_shardings(mesh, spec.critic.table(config))
        first = jax.eval_shape(partial(spec.critic.first_params, config), shapes)
        critic = CriticState(own, optimizer_state(spec.critic_optimizer, first, own))
    rows = jax.tree.map(lambda _: meshes.over_batch(mesh), spec.replayed)
    return TrainState(
        step=same,
        params=weights,
        opt_state=optimizer_state(optimizer, split_params(config, shapes)[0], weights),
        frozen=meshes.weight_shardings(mesh, frozen) or None,
        critic=critic,
        reference=(meshes.on_host(weights) if spec.offload else weights) if spec.reference else None,
        past=(weights,) * spec.past or None,
        moments=jax.tree.map(lambda _: same, no_moments()) if spec.moments else None,
        coefficients={name: same for name, _ in spec.coefficients} or None,
        replay=(rows,) * spec.replay or None,
    )


def abstract_state(config: ModelConfig, optimizer: Optimizer, mesh: Mesh, spec: StateSpec = PARAMS_ONLY) -> TrainState:
    """Shapes, dtypes and shardings of a state, without building it: what a checkpoint is restored into."""
    shape = jax.eval_shape(lambda: init_state(config, optimizer, mesh, Draw(jax.random.key(0)), spec))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shape,
        state_shardings(config, optimizer, mesh, spec),
    )


@dataclass(frozen=True)
class StateLayout:
    """Layout of a train state in an update, without its frozen parameters (see `rl_llm.parallel.programs`)."""

    config: ModelConfig
    optimizer: Optimizer
    spec: StateSpec

    def shardings(self, mesh: Mesh) -> TrainState:
        """Shardings by `state_shardings`."""
        return replace(state_shardings(self.config, self.optimizer, mesh, self.spec), frozen=None)


@dataclass(frozen=True)
class Update:
    """A compiled update: (state, *arguments) -> (state, metrics). The state is donated, its frozen parameters are not.

    A sampler may be reading the frozen parameters, so the program gets them as its last argument, if there are any.
    """

    program: BoundProgram

    def __call__(self, state: TrainState, *arguments: Any) -> tuple[TrainState, Metrics]:
        after, metrics = self.program(*self._with_frozen(state, arguments))
        return replace(after, frozen=state.frozen), metrics

    def lower(self, state: TrainState, *arguments: Any) -> Any:
        """Lower the program, as `jax.jit(...).lower` does."""
        return self.program.lower(*self._with_frozen(state, arguments))

    def _with_frozen(self, state: TrainState, arguments: tuple) -> tuple:
        frozen = () if state.frozen is None else (state.frozen,)
        return (replace(state, frozen=None), *arguments, *frozen)


def compile_update(
    step: Callable[..., tuple[TrainState, Metrics]],
    value: Any,
    config: ModelConfig,
    optimizer: Optimizer,
    mesh: Mesh,
    spec: StateSpec,
    inputs: tuple,
    static: tuple = (),
) -> Update:
    """Compile `step(*static, value, state, *arguments, frozen)` for a mesh; `inputs` are the layouts of `arguments`.

    Values that differ in floats only share the program.
    """
    layout, frozen = StateLayout(config, optimizer, spec), split_flat(config, weight_table(config))[1]
    inputs = (layout, *inputs, *([laid_out(frozen)] if frozen else []))
    return Update(compile_program(step, mesh, static, (value,), inputs=inputs, outputs=(layout, SAME), donate=0))
