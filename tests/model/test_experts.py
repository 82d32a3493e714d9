"""Mixtures of experts: each token is read by its own experts only, on one device or several."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_learner import CONFIG, ONE_DEVICE, OPTIMIZER, PROMPTS, K, N, T, distance, results
from test_model import OTHERS, random_params

from rl_llm import prng
from rl_llm.algorithms import LITE_PPO
from rl_llm.learner.logprobs import expert_load
from rl_llm.learner.state import init_state
from rl_llm.learner.train_step import Learner, compile_make_batch, compile_train_step
from rl_llm.model import Experts, ModelConfig
from rl_llm.model.experts import apply_experts
from rl_llm.parallel.mesh import MeshShape, make_mesh, over_batch, replicated
from rl_llm.parallel.programs import compile_program
from rl_llm.sampler import Sampling, compile_sampler

D, F, E = 6, 5, 4
DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.normal(size=(4, 3, D)), jnp.float32)
WEIGHTS = {
    name: jnp.asarray(DRAW.normal(size=shape), jnp.float32)
    for name, shape in {"router": (D, E), "gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}.items()
}


def config(per_token: int, normalized: bool) -> ModelConfig:
    return ModelConfig(vocabulary=8, width=D, feed_forward=F, experts=Experts(E, per_token, normalized))


def one_by_one(per_token: int, normalized: bool) -> np.ndarray:
    """The definition: each token's expert outputs, weighted by the router."""
    out = np.zeros(X.shape)
    for place in np.ndindex(*X.shape[:2]):
        x = np.asarray(X[place])
        shares = np.asarray(jax.nn.softmax(x @ WEIGHTS["router"]))
        best = np.argsort(-shares)[:per_token]
        weights = shares[best] / (shares[best].sum() if normalized else 1.0)
        for expert, weight in zip(best, weights, strict=True):
            inner = jax.nn.silu(x @ WEIGHTS["gate"][expert]) * (x @ WEIGHTS["up"][expert])
            out[place] += weight * np.asarray(inner @ WEIGHTS["down"][expert])
    return out


@pytest.mark.parametrize(("per_token", "normalized"), [(1, False), (2, True), (E, True)])
def test_the_router_chooses_the_experts_of_each_token(per_token: int, normalized: bool) -> None:
    found, chosen = apply_experts(config(per_token, normalized), WEIGHTS, X)
    np.testing.assert_allclose(found, one_by_one(per_token, normalized), atol=1e-5)
    assert chosen.shape == (4, 3, per_token)


def test_sharded_experts_compute_the_same_values_and_gradients() -> None:
    def loss(weights: dict, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(apply_experts(config(2, True), weights, x)[0]))

    single, spread = make_mesh(MeshShape(), jax.devices()[:1]), make_mesh(MeshShape(2, 2, 2))
    wanted, found = (
        compile_program(jax.value_and_grad(loss, argnums=(0, 1)), mesh)(*jax.device_put((WEIGHTS, X), replicated(mesh)))
        for mesh in (single, spread)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


def test_load_counts_only_unmasked_tokens() -> None:
    chosen = jnp.array([[[[0, 1], [0, 2], [3, 3]]]])  # one layer, one row, three tokens, two experts each
    load = expert_load(chosen, jnp.array([[1.0, 1.0, 0.0]]), experts=4)
    assert float(load["experts/max_load"].result()) == pytest.approx(2 * 4 / 4)  # two of four readings, times experts
    assert float(load["experts/idle"].result()) == pytest.approx(1 / 4)


@pytest.mark.slow
def test_an_update_with_every_family_feature_is_the_same_on_eight_devices():
    config = replace(
        OTHERS, vocabulary=CONFIG.vocabulary, experts=Experts(count=4, per_token=2), width=16, tied_embeddings=False
    )
    rollouts, gradients, metrics = [], [], []
    for mesh in (ONE_DEVICE, make_mesh(MeshShape(2, 2, 2))):
        sample = compile_sampler(config, mesh, K, T)
        state = init_state(config, OPTIMIZER, mesh, random_params(config))
        prompts = jax.device_put(PROMPTS, over_batch(mesh))
        rollout = sample(state.params, prompts, prng.key(0, prng.Purpose.ROLLOUT), Sampling().values((3,)))
        reward = jax.device_put(np.tile([1.0, 0.0], N * K // 2).astype(np.float32), over_batch(mesh))
        batch, _ = compile_make_batch(LITE_PPO, mesh)(replace(rollout, reward=reward), {}, None, None)
        step = compile_train_step(Learner(config, LITE_PPO, OPTIMIZER, micro_batches=2), mesh)
        state, updated = step(state, batch, jnp.int32(0), jnp.float32(1.0), None)
        rollouts.append(np.asarray(rollout.tokens))
        gradients.append(optax.tree_utils.tree_get(state.opt_state, "mu"))
        metrics.append(results(updated))
    np.testing.assert_array_equal(*rollouts)
    assert distance(*gradients) < 1e-5
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4, abs=2e-5)
    assert metrics[0]["agreement/max"] < 1e-4, "sampler and learner send tokens to the same experts"
    assert metrics[0]["experts/max_load"] >= 1.0
