"""The warm start is maximum likelihood on demonstrations that are resampled every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import EXPERIMENT

from rl_llm.learner.logprobs import token_logps
from rl_llm.learner.train_step import MAXIMUM_LIKELIHOOD, policy_loss
from rl_llm.model import init
from rl_llm.prng import Purpose, generator
from rl_llm.problem import Problem
from rl_llm.rollout.text import decode_responses
from rl_llm.types import Batch
from rl_llm.update.warm_start import demonstrations

SETTINGS = EXPERIMENT.warm_start
PROBLEMS = EXPERIMENT.task.problems("train", 40, 0)


def of_step(step: int, seed: int = 0) -> tuple[Batch, int]:
    assert SETTINGS is not None
    draw = generator(seed, Purpose.DEMONSTRATIONS, step)
    return demonstrations(EXPERIMENT, PROBLEMS, draw, SETTINGS.demonstrations_per_step, SETTINGS.max_tokens)


def test_a_step_always_has_the_same_demonstrations():
    jax.tree.map(np.testing.assert_array_equal, of_step(3), of_step(3))


@pytest.mark.parametrize("other", [(4, 0), (3, 1)])
def test_another_step_or_seed_has_other_demonstrations(other: tuple[int, int]):
    assert not np.array_equal(of_step(3)[0].tokens, of_step(*other)[0].tokens)


def test_the_demonstrations_answer_their_problems():
    batch, tokens = of_step(0)
    prompts = [
        EXPERIMENT.tokenizer.decode(row[:length].tolist())
        for row, length in zip(batch.prompts.tokens, batch.prompts.lengths, strict=True)
    ]
    assert set(prompts) <= {problem.prompt for problem in PROBLEMS}
    right = [
        EXPERIMENT.task.verify(EXPERIMENT.task.problem(prompt), response)
        for prompt, response in zip(prompts, decode_responses(EXPERIMENT.tokenizer, batch), strict=True)  # type: ignore[arg-type]
    ]
    assert np.mean(right) > 0.8, "a few slips"
    assert tokens == batch.mask.sum()


def test_the_loss_is_the_mean_negative_log_likelihood_of_the_response_tokens():
    batch, tokens = of_step(0)
    params = init(EXPERIMENT.model, jax.random.key(0))
    loss, metrics, _ = policy_loss(EXPERIMENT.model, MAXIMUM_LIKELIHOOD, jnp.float32(1.0), None, params, batch)
    logp, _ = token_logps(EXPERIMENT.model, params, batch.prompts, batch.tokens)
    assert float(loss) == pytest.approx(-float((logp * batch.mask).sum()) / tokens, rel=1e-5)
    assert 0 < metrics["policy/entropy"].result() <= np.log(EXPERIMENT.model.vocabulary)


def test_a_response_that_does_not_fit_is_refused_with_the_setting():
    draw = generator(0, Purpose.DEMONSTRATIONS)
    with pytest.raises(ValueError, match=r"max_tokens of the demonstrations=2"):
        demonstrations(EXPERIMENT, [Problem(id=0, prompt="1+1=", answer="2")], draw, 1, 2)
