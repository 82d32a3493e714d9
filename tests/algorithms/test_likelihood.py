"""The likelihood of right answers as a regularizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers.case import batch

from rl_llm.algorithms import REJECTION_SAMPLING, PositiveLikelihood, TokenMean
from rl_llm.learner.train_step import make_batch
from rl_llm.types import Rollout

MASK = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], np.float32)
LOGP = jnp.array([[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0], [-4.0, -5.0, -6.0]])
REWARD = jnp.array([1.0, 0.9, 1.0])


def test_only_tokens_of_right_answers_gain():
    made = batch(MASK, 1, reward=REWARD)
    losses, metrics = PositiveLikelihood(0.5)(LOGP, 0 * LOGP, made)
    np.testing.assert_allclose(losses, -0.5 * LOGP * jnp.array([[1.0], [0.0], [1.0]]))
    assert metrics == {}
    np.testing.assert_allclose(PositiveLikelihood()(LOGP, 0 * LOGP, made, 0.5)[0], losses)


def test_likelihood_is_rejection_sampling_up_to_the_share_of_right_tokens():
    """The mean over all tokens, 5 of 6 right, against the mean over right ones."""
    made = batch(MASK, 1, reward=REWARD)
    rollout = Rollout(made.prompts, made.tokens, made.mask, made.truncated, LOGP, LOGP, LOGP, REWARD)
    accepted, _ = make_batch(REJECTION_SAMPLING, rollout)
    weight = TokenMean()(made.mask, made)
    ours = jax.grad(lambda x: jnp.sum(weight * PositiveLikelihood(1.0)(x, 0 * x, made)[0]))(LOGP)
    theirs = jax.grad(lambda x: jnp.sum(accepted.weight * REJECTION_SAMPLING.objective(x, accepted)[0]))(LOGP)
    np.testing.assert_allclose(ours, theirs * 5 / 6, rtol=1e-6)


def test_a_coefficient_of_0_is_refused():
    with pytest.raises(ValueError, match=r"PositiveLikelihood.coefficient=0.0 is out of range; expected > 0"):
        PositiveLikelihood(0.0)
