"""RL on one page: it fits, and its loss and gradient are those of the whole program."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import one_page
from rl_llm.algorithms import LITE_PPO
from rl_llm.learner.state import init_state
from rl_llm.learner.train_step import Learner, compile_make_batch, compile_train_step
from rl_llm.model import init
from rl_llm.parallel.mesh import make_mesh
from rl_llm.prng import Purpose, key
from rl_llm.rollout.text import encode_prompts
from rl_llm.sampler import Sampling, compile_sampler

MESH = make_mesh(devices=jax.devices()[:1])
PROBLEMS = one_page.TASK.problems("train", 4, 0)
NOISE = key(0, Purpose.ROLLOUT)


def test_it_fits_on_a_page():
    assert len(Path(one_page.__file__).read_text().splitlines()) <= 80


@pytest.mark.slow
def test_its_loss_and_gradient_are_those_of_the_whole_program():
    """The same prompts, noise and rewards: the program samples the same tokens and makes the same update."""
    params = init(one_page.MODEL, key(0, Purpose.PARAMETERS))
    rollout = one_page.rollout_of(params, PROBLEMS, NOISE)
    rewards = np.arange(len(rollout.reward), dtype=np.float32) % 3 / 2  # an untrained policy earns nothing
    found, opt_state, loss = one_page.update(
        LITE_PPO, one_page.RL, params, one_page.RL.init(params), rollout.replace(reward=rewards)
    )

    prompts = encode_prompts(one_page.TOKENIZER, PROBLEMS, one_page.P)
    values = Sampling(one_page.T).values(one_page.TOKENIZER.stop_ids)
    sampled = compile_sampler(one_page.MODEL, MESH, one_page.K, one_page.T)(params, prompts, NOISE, values)
    np.testing.assert_array_equal(sampled.tokens, rollout.tokens)
    batch, _ = compile_make_batch(LITE_PPO, MESH)(sampled.replace(reward=rewards), {}, None, None)
    step = compile_train_step(Learner(one_page.MODEL, LITE_PPO, one_page.RL, micro_batches=2), MESH)
    state = init_state(one_page.MODEL, one_page.RL, MESH, params)
    state, metrics = step(state, batch, jnp.int32(0), jnp.float32(1.0), None)

    assert float(loss) == pytest.approx(float(metrics["loss"].result()), abs=1e-6)
    for one, other in (
        (optax.tree_utils.tree_get(opt_state, "mu"), optax.tree_utils.tree_get(state.opt_state, "mu")),
        (found, state.params),
    ):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6), one, other)
