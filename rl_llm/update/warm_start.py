"""The warm start: supervised learning on demonstrations, as updates of the same parameters.

A demonstration is somebody else's rollout with reward 1. Maximum likelihood is the policy gradient with advantage 1, so
demonstrations of the task use the batch, update and metrics of RL. Conversations of a file are longer and vary more in
length, so they are packed (`rl_llm.learner.packing`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_llm.experiment import Conversations, Experiment, WarmStart
from rl_llm.learner.packing import compile_packed_step, pack, rows_from
from rl_llm.learner.state import Draw, init_state
from rl_llm.learner.train_step import MAXIMUM_LIKELIHOOD, Learner, compile_train_step
from rl_llm.model import add_adapters
from rl_llm.parallel.mesh import put_on_batch
from rl_llm.prng import Purpose, generator, key
from rl_llm.problem import Problem
from rl_llm.rollout.text import encode_prompts, encode_responses
from rl_llm.runs.divergence import stop_if_diverged
from rl_llm.runs.run import Run
from rl_llm.types import Batch, Metrics, Packed, TrainState


class Lessons(NamedTuple):
    """Batches of a warm start's steps on the host, each with its metrics, and the update that learns one."""

    batches: Iterator[tuple[Any, dict[str, float]]]
    update: Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def warm_start(
    run: Run, state: TrainState | None, problems: Mapping[str, Sequence[Problem]], mesh: Mesh, start: dict | None
) -> TrainState:
    """Make the remaining warm-start steps, if the experiment has any.

    Without a `state` to continue, build the first one from the parameters `start`, or from random ones.
    """
    experiment, settings = run.experiment, run.experiment.warm_start
    if state is None:
        seed = key(run.seed, Purpose.PARAMETERS)
        drawn = Draw(seed, experiment.initialization)
        first = drawn if start is None else add_adapters(experiment.model, start, seed)
        state = init_state(experiment.model, experiment.warm_optimizer, mesh, first)
    if settings is None or run.step >= settings.steps:
        return state
    if settings.demonstrations is None:
        lessons = task_lessons(run, settings, problems["train"], mesh)
    else:
        lessons = file_lessons(run, settings.demonstrations, problems["conversations"], mesh)
    rate = settings.optimizer.rate(settings.steps)
    with run.display.phase("warm start", settings.steps, run.step, compiles="the update") as phase:
        for step in range(run.step, settings.steps):
            start_time = time.perf_counter()
            batch, values = next(lessons.batches)
            state, metrics = lessons.update(state, put_on_batch(mesh, batch))
            values = {"update/learning_rate": float(rate(step)), **values}
            kept = {name: metric for name, metric in metrics.items() if not name.startswith("agreement/")}
            line = run.record("warm_start", values, kept, {"time/step": time.perf_counter() - start_time})
            stop_if_diverged(run, state, line)
            if run.step < settings.steps:  # the last state is saved once it has been evaluated
                run.checkpoint_if_due(state)
            tokens = int(values["tokens/demonstrated"])
            phase.update(step + 1, tokens=tokens, loss=line["loss"], entropy=line["policy/entropy"])
    return state


def task_lessons(run: Run, settings: WarmStart, problems: Sequence[Problem], mesh: Mesh) -> Lessons:
    """Lessons from the task's demonstrations for training problems, from the run's next step on."""
    size, max_tokens = settings.demonstrations_per_step, settings.max_tokens
    assert size is not None
    assert max_tokens is not None
    learner = Learner(run.experiment.model, MAXIMUM_LIKELIHOOD, run.experiment.warm_optimizer)
    update = compile_train_step(learner, mesh)

    def step_batch(step: int) -> tuple[Batch, dict[str, float]]:
        draw = generator(run.seed, Purpose.DEMONSTRATIONS, step)
        batch, tokens = demonstrations(run.experiment, problems, draw, size, max_tokens)
        return batch, {"tokens/demonstrated": tokens}

    def learn(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return update(state, batch, jnp.int32(0), jnp.float32(1.0), None)

    return Lessons(map(step_batch, count(run.step)), learn)


def file_lessons(run: Run, settings: Conversations, conversations: Sequence[Problem], mesh: Mesh) -> Lessons:
    """Lessons from the packed conversations of a file, from the run's next step on."""
    size = settings.rows_per_step
    lengths = [len(conversation.metadata["tokens"]) for conversation in conversations]
    rows = rows_from(run.step * size, lengths, settings.row_tokens, run.seed)

    def batches() -> Iterator[tuple[Packed, dict[str, float]]]:
        while True:
            batch = pack(conversations, list(islice(rows, size)), settings.row_tokens)
            learned, filled = int((batch.weight > 0).sum()), float((batch.segments > 0).mean())
            yield batch, {"tokens/demonstrated": learned, "packing/filled": filled}

    model, optimizer = run.experiment.model, run.experiment.warm_optimizer
    return Lessons(batches(), compile_packed_step(model, optimizer, mesh, settings.micro_batches))


def demonstrations(
    experiment: Experiment, problems: Sequence[Problem], draw: np.random.Generator, count: int, max_tokens: int
) -> tuple[Batch, int]:
    """Batch of demonstrations for `count` problems drawn by a generator (weights sum to 1), and its response tokens."""
    chosen = [problems[index] for index in draw.integers(len(problems), size=count)]
    responses = [experiment.task.demonstrate(problem, draw) for problem in chosen]  # type: ignore[attr-defined]
    tokenizer, vocabulary, limit = experiment.tokenizer, experiment.model.vocabulary, "max_tokens of the demonstrations"
    prompts = encode_prompts(tokenizer, chosen, experiment.max_prompt_tokens, vocabulary=vocabulary)
    tokens, mask = encode_responses(tokenizer, responses, max_tokens, limit, vocabulary)
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
