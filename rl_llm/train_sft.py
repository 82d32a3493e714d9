"""The warm start: supervised learning on demonstrations, as updates of the same learner.

A demonstration is a rollout that somebody else made, with reward 1: maximum likelihood is the policy gradient with
advantage 1, so the batch, the update and the metrics are those of RL.
"""

import time
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_llm.experiment import Experiment
from rl_llm.learner import MAXIMUM_LIKELIHOOD, Learner, compile_train_step
from rl_llm.mesh import put_on_batch
from rl_llm.noise import Purpose, generator, key
from rl_llm.problem import Problem
from rl_llm.run import Run
from rl_llm.state import init_state
from rl_llm.text import encode_prompts, encode_responses
from rl_llm.types import Batch, TrainState


def warm_start(
    run: Run, state: TrainState | None, problems: Sequence[Problem], mesh: Mesh, start: dict | None
) -> TrainState:
    """The warm-start steps that are still to be done; without a `state` to go on from, the first one is made: of the
    parameters `start`, or of random ones.

    Without a warm start in the experiment that is all.
    """
    experiment, settings = run.experiment, run.experiment.warm_start
    optimizer = (settings.optimizer if settings else experiment.optimizer).build(experiment.warm_steps)
    if state is None:
        first = key(run.seed, Purpose.PARAMETERS) if start is None else start
        state = init_state(experiment.model, optimizer, mesh, first)
    if settings is None or run.step >= settings.steps:
        return state
    update = compile_train_step(Learner(experiment.model, MAXIMUM_LIKELIHOOD, optimizer), mesh)
    rate = settings.optimizer.rate(settings.steps)
    with run.display.phase("warm start", settings.steps, run.step) as phase:
        for step in range(run.step, settings.steps):
            begun = time.perf_counter()
            draw = generator(run.seed, Purpose.DEMONSTRATIONS, step)
            batch, tokens = demonstrations(
                experiment, problems, draw, settings.demonstrations_per_step, settings.max_tokens
            )
            state, metrics = update(state, put_on_batch(mesh, batch), jnp.int32(0), jnp.float32(1.0), None)
            values = {"update/learning_rate": float(rate(step)), "tokens/demonstrated": tokens}
            kept = {name: metric for name, metric in metrics.items() if not name.startswith("agreement/")}
            line = run.record("warm_start", values, kept, {"time/step": time.perf_counter() - begun})
            if run.step < settings.steps:  # the last state is saved once it has been evaluated
                run.checkpoint_if_due(state)
            phase.update(step + 1, tokens=tokens, loss=line["loss"], entropy=line["policy/entropy"])
    return state


def demonstrations(
    experiment: Experiment, problems: Sequence[Problem], draw: np.random.Generator, count: int, max_tokens: int
) -> tuple[Batch, int]:
    """A batch of the task's demonstrations for `count` problems drawn by a generator, and its number of response
    tokens. Its weights sum to 1.
    """
    chosen = [problems[index] for index in draw.integers(len(problems), size=count)]
    responses = [experiment.task.demonstrate(problem, draw) for problem in chosen]  # type: ignore[attr-defined]
    prompts = encode_prompts(experiment.tokenizer, chosen, experiment.max_prompt_tokens)
    tokens, mask = encode_responses(experiment.tokenizer, responses, max_tokens, "max_tokens of the demonstrations")
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
