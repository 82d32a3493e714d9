"""The warm start: supervised learning on demonstrations, as updates of the same learner.

A demonstration is a rollout that somebody else made, with reward 1: maximum likelihood is the policy gradient with
advantage 1, so the batch, the update and the metrics are those of RL.
"""

import time
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_llm.algorithms import Algorithm, Normalize, PolicyGradient, TokenMean
from rl_llm.experiment import Experiment, WarmStart
from rl_llm.learner import compile_train_step
from rl_llm.mesh import put_on_batch
from rl_llm.noise import Purpose, generator, key
from rl_llm.problem import Problem
from rl_llm.run import Run
from rl_llm.state import init_state
from rl_llm.text import encode_prompts, encode_responses
from rl_llm.types import Batch, TrainState

MAXIMUM_LIKELIHOOD = Algorithm(
    advantage=Normalize(mean="none", std="none"), objective=PolicyGradient(), aggregate=TokenMean()
)


def warm_start(run: Run, state: TrainState | None, problems: Sequence[Problem], mesh: Mesh) -> TrainState:
    """The warm-start steps that are still to be done; without a `state` to go on from, the first one is made.

    Without a warm start in the experiment that is all: the state of random parameters.
    """
    experiment, settings = run.experiment, run.experiment.warm_start
    optimizer = (settings.optimizer if settings else experiment.optimizer).build(experiment.warm_steps)
    if state is None:
        state = init_state(experiment.model, optimizer, mesh, key(run.seed, Purpose.PARAMETERS))
    if settings is None or run.step >= settings.steps:
        return state
    update = compile_train_step(
        experiment.model, MAXIMUM_LIKELIHOOD, optimizer, mesh, updates_per_rollout=1, micro_batches=1
    )
    rate = settings.optimizer.rate(settings.steps)
    with run.display.phase("warm start", settings.steps, run.step) as phase:
        for step in range(run.step, settings.steps):
            begun = time.perf_counter()
            batch, tokens = demonstrations_of_step(experiment, settings, problems, run.seed, step)
            state, metrics = update(state, put_on_batch(mesh, batch), jnp.int32(0), jnp.float32(1.0))
            values = {"update/learning_rate": float(rate(step)), "tokens/demonstrated": tokens}
            kept = {name: metric for name, metric in metrics.items() if not name.startswith("agreement/")}
            line = run.record("warm_start", values, kept, {"time/step": time.perf_counter() - begun})
            if run.step < settings.steps:  # the last state is saved once it has been evaluated
                run.checkpoint_if_due(state)
            phase.update(step + 1, tokens=tokens, loss=line["loss"], entropy=line["policy/entropy"])
    return state


def demonstrations_of_step(
    experiment: Experiment, settings: WarmStart, problems: Sequence[Problem], seed: int, step: int
) -> tuple[Batch, int]:
    """The batch of a step (a function of the seed and the step alone) and its number of response tokens."""
    draw = generator(seed, Purpose.DEMONSTRATIONS, step)
    chosen = [problems[index] for index in draw.integers(len(problems), size=settings.demonstrations_per_step)]
    responses = [experiment.task.demonstrate(problem, draw) for problem in chosen]  # type: ignore[attr-defined]
    prompts = encode_prompts(experiment.tokenizer, chosen, experiment.max_prompt_tokens)
    tokens, mask = encode_responses(experiment.tokenizer, responses, settings.max_tokens)
    nothing, ones = np.zeros_like(mask), np.ones(len(chosen), np.float32)
    batch = Batch(
        prompts=prompts,
        tokens=tokens,
        mask=mask,
        truncated=ones < 0,
        old_logp=nothing,
        sampler_logp=nothing,
        reward=ones,
        kept=ones > 0,
        advantage=mask,
        weight=mask / mask.sum(),
    )
    return batch, int(mask.sum())
