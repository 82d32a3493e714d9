"""An algorithm on one, two and four devices: batch and update are the same up to rounding."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_learner import CONFIG, OPTIMIZER, PARAMS, PROMPTS, REWARD, TEMPERATURE, K, N, T, V, distance, results

from rl_llm import algorithms as a
from rl_llm.learner.critic import Critic
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import PARAMS_ONLY, StateSpec, init_state
from rl_llm.learner.train_step import Learner, compile_make_batch, compile_train_step
from rl_llm.parallel.mesh import make_mesh, put_on_batch
from rl_llm.types import Rollout

# Between them: statistics of tokens, rows, groups and the batch; both ratios; parts that look at the sign.
ALGORITHMS = {
    "GRPO_KL": a.GRPO_KL,
    "REINFORCE_PLUS_PLUS": a.REINFORCE_PLUS_PLUS,
    "DAPO": a.DAPO,
    "GSPO_SEQUENCE": a.GSPO_SEQUENCE,
    "CISPO_SCALE_RL": a.CISPO_SCALE_RL,
    "a critic, balanced, masked, weighed": replace(
        a.PPO,
        aggregate=a.Balanced(),
        corrections=(a.OffPolicyMask(0.05), a.ImportanceWeight("sequence", batch_normalize=True)),
        regularizers=(
            a.EntropyBonus(0.1, a.EntropyTarget(1.0)),
            a.DriftPenalty(0.1),
            a.PositiveLikelihood(0.1),
        ),
    ),
    "PPO": a.PPO,
    "DIRECT_PREFERENCE": a.DIRECT_PREFERENCE,
    "covariance": replace(a.LITE_PPO, objective=a.ClipCov(share=0.1, floor=-1e3, ceiling=1e3), aggregate=a.VLNorm(T)),
}


ADAM = AdamW(1e-3, beta1=0.5, max_gradient_norm=1e6)
# A head on the policy, which learns from both losses; PPO has a network of its own.
SHARED, OWN = (StateSpec(critic=x, critic_optimizer=ADAM.build(10)) for x in (Critic(ADAM, True, 0.5), Critic(ADAM)))


def rollout_and_fields() -> tuple[Rollout, dict[str, np.ndarray]]:
    """Ragged responses, sampled by another policy."""
    draw = np.random.default_rng(4)
    mask = (np.arange(T) < draw.integers(1, T + 1, N * K)[:, None]).astype(np.float32)
    logp, old, ref = (-mask * draw.exponential(size=mask.shape).astype(np.float32) for _ in range(3))
    logp = old + mask * 0.2 * draw.normal(size=mask.shape).astype(np.float32)
    tokens = draw.integers(0, V, mask.shape, dtype=np.int32)
    value = mask * draw.normal(size=mask.shape).astype(np.float32)
    return Rollout(PROMPTS, tokens, mask, mask[:, -1] > 0, logp, old, old), {"ref_logp": ref, "value": value}


def updated(algorithm: a.Algorithm, devices: int) -> tuple[Any, Any, dict[str, float]]:
    """First update in one part: its batch, gradients of policy and critic (twice Adam's first moment), and metrics."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    coefficients = tuple((name, 0.2) for name in algorithm.adaptive)
    carries = PARAMS_ONLY if algorithm.value_loss is None else OWN if algorithm == a.PPO else SHARED
    spec = replace(carries, coefficients=coefficients)
    state = init_state(CONFIG, OPTIMIZER, mesh, PARAMS, spec)
    rollout, fields = rollout_and_fields()
    made = {name: fields[name] for name in algorithm.needs & set(fields)}
    rows = put_on_batch(mesh, (replace(rollout, reward=(REWARD > 0).astype(np.float32)), made))
    batch, _ = compile_make_batch(algorithm, mesh)(*rows, None, state.coefficients)
    learner = Learner(CONFIG, algorithm, OPTIMIZER, critic=spec.critic, critic_optimizer=spec.critic_optimizer)
    step = compile_train_step(learner, mesh, spec)
    state, metrics = step(state, batch, jnp.int32(0), jnp.float32(TEMPERATURE), None)
    states = [state.opt_state] + ([] if state.critic is None else [state.critic.opt_state])
    gradient = [jax.tree.map(lambda x: 2 * np.asarray(x), optax.tree_utils.tree_get(x, "mu")) for x in states]
    return jax.device_get(batch), gradient, results(jax.device_get(metrics))


QUICK = ("a critic, balanced, masked, weighed",)  # and that on one and four only


OFTEN = ("PPO", "GRPO_KL", "DIRECT_PREFERENCE", "covariance")
MARKS = {name: [pytest.mark.slow] for name in OFTEN} | {QUICK[0]: []}
RARELY = [pytest.mark.nightly("an algorithm of each kind of batch runs")]


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, RARELY)) for name in ALGORITHMS])
def test_batch_and_update_do_not_depend_on_the_number_of_devices(name: str):
    batch, gradient, metrics = updated(ALGORITHMS[name], 1)
    assert all(sum(np.abs(x).sum() for x in jax.tree.leaves(one)) > 0 for one in gradient)
    for devices in (4,) if name in QUICK else (2, 4):
        other, found, told = updated(ALGORITHMS[name], devices)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), other, batch)
        for ours, theirs in zip(found, gradient, strict=True):
            assert distance(ours, theirs) < 2e-6
        assert told == pytest.approx(metrics, rel=1e-4, abs=2e-6)
