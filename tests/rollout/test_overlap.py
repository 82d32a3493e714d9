"""A rollout is sampled and graded during an update, shown with a sampler that waits until it is released."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_llm.algorithms import ImportanceWeight, Normalize, ReMax, ZeroVariance
from rl_llm.experiment import DynamicSampling, Experiment
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import Draw, init_state, policy_of
from rl_llm.parallel.mesh import Meshes, make_mesh, replicated
from rl_llm.rollout.collect import Collector
from rl_llm.rollout.engine import RolloutEngine, open_engine
from rl_llm.runs.folder import IDENTITY, RunFolder
from rl_llm.runs.load import SourceModels
from rl_llm.runs.run import Run, open_run
from rl_llm.runs.state import state_spec
from rl_llm.sampler import Sampler, generate
from rl_llm.types import Rollout, TrainState
from rl_llm.update.step import compile_learning, push_past_params, sampler_params
from tests.data.tiny import cold

PATIENCE = 20_000_000  # looks at a closed door after which a sampler goes on in any case: minutes
MESH = make_mesh(devices=jax.devices()[:1])
STALE = replace(cold, staleness=1, algorithm=replace(cold.algorithm, corrections=(ImportanceWeight(),)))
PROBLEMS = STALE.task.problems("train", STALE.train_problems, 0)


class Door:
    """Gate that blocks a CPU program until it is opened.

    The program polls host memory, because a program with a callback would not be dispatched asynchronously.
    """

    def __init__(self) -> None:
        memory = np.zeros(32, np.int32)  # the CPU takes memory over as an array only where it is aligned to 64 bytes
        start = -memory.ctypes.data % 64 // memory.itemsize
        self._memory = memory[start : start + 1]
        on_device = jax.dlpack.from_dlpack(self._memory)
        assert on_device.unsafe_buffer_pointer() == self._memory.ctypes.data
        # Placed where the other arguments lie: else the program would be given a copy.
        self.array = jax.make_array_from_single_device_arrays((1,), replicated(MESH), [on_device])

    def open(self) -> None:
        self._memory[0] = 1


def held(door: Door) -> Sampler:
    """The sampler's program, which cannot finish before the door is opened."""

    @jax.jit
    def sample_then_wait(door: jax.Array, *arguments: Any) -> Rollout:
        sizes = {"responses_per_prompt": STALE.responses_per_prompt, "max_tokens": STALE.sampling.max_tokens}
        rollout = generate(STALE.model, *arguments, **sizes)
        # The product keeps the loop from being compiled into one that looks only once.
        looks, product = jax.lax.while_loop(
            lambda loop: (door[0] == 0) & (loop[0] < PATIENCE),
            lambda loop: (loop[0] + 1, loop[1] @ loop[1]),
            (jnp.int32(0), jnp.eye(64)),
        )
        waited = jnp.minimum(looks, 0) + jnp.minimum(product[0, 0].astype(jnp.int32), 0)  # 0, but no compiler knows
        return replace(rollout, tokens=rollout.tokens + waited)

    return partial(sample_then_wait, door.array)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    folder = RunFolder.create(tmp_path / "run", dict.fromkeys(IDENTITY, 0))
    with folder, open_run(STALE, 0, folder, 0.0, MESH) as (run, _):
        yield run


@pytest.fixture
def engine() -> Iterator[RolloutEngine]:
    with open_engine(STALE, Meshes(MESH, MESH)) as engine:
        yield engine


def first_state(experiment: Experiment) -> TrainState:
    return init_state(
        experiment.model, experiment.policy_optimizer, MESH, Draw(jax.random.key(0)), state_spec(experiment)
    )


@pytest.mark.slow
def test_the_next_step_is_sampled_during_the_update(run: Run, engine: RolloutEngine):
    learning = compile_learning(STALE, 0, MESH, SourceModels(), PROBLEMS)
    state = push_past_params(first_state(STALE))
    first = Collector(run, engine, PROBLEMS)
    graded = first.wait(0, first.start(0, sampler_params(state)))

    door = Door()
    collector = replace(first, engine=replace(engine, sample=held(door)))
    pending = collector.start(1, sampler_params(state))
    state, _ = jax.block_until_ready(learning.update(state, graded.learned, 0))
    assert int(state.step) == STALE.updates_per_rollout
    assert pending.read is not None
    assert not pending.read.done(), "the update waited for the sampler, or the sampler for nobody"
    door.open()
    found = collector.wait(1, pending)
    assert len(found.grades) == len(found.responses) == STALE.prompts_per_step * STALE.responses_per_prompt
    again = first.wait(1, first.start(1, pending.params))  # the parameters are still those that sampled
    assert again.problems != graded.problems
    assert pending.params is state.past[0]


def test_an_error_in_the_thread_is_raised_where_the_result_is_requested(engine: RolloutEngine):
    class Mute:
        def __getattr__(self, name: str) -> Any:
            return getattr(STALE.tokenizer, name)

        def decode(self, ids: Any) -> str:
            raise RuntimeError("no words")

    broken = replace(engine, experiment=replace(STALE))
    object.__setattr__(broken.experiment, "tokenizer", Mute())
    problems = PROBLEMS[: STALE.prompts_per_step]
    pending = broken.submit(first_state(STALE).params, problems, jax.random.key(0), STALE.sampling)
    with pytest.raises(RuntimeError, match="no words"):
        pending.result()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dynamic sampling", "greedy baseline"])
def test_resampling_after_the_update_uses_the_parameters_that_sampled(kind: str, run: Run, engine: RolloutEngine):
    """Their buffers have not been donated."""
    changes: dict[str, Any] = {"algorithm": replace(STALE.algorithm, advantage=ReMax())}
    if kind == "dynamic sampling":
        algorithm = replace(STALE.algorithm, advantage=Normalize(), filters=(ZeroVariance(),))
        changes = {"algorithm": algorithm, "dynamic_sampling": DynamicSampling(max_rollouts=2)}
    experiment = replace(STALE, optimizer=AdamW(0.1), **changes)
    run.experiment = experiment
    learning = compile_learning(experiment, 0, MESH, SourceModels(), PROBLEMS)
    taken: list[np.ndarray] = []

    def sample(*arguments: Any) -> Rollout:
        rollout = engine.sample(*arguments)
        taken.append(np.asarray(rollout.tokens))
        return rollout

    collector = Collector(run, replace(engine, experiment=experiment, sample=sample), PROBLEMS)
    state = push_past_params(first_state(experiment))
    graded = collector.wait(0, collector.start(0, sampler_params(state)))
    first, pending, other = (collector.start(1, sampler_params(state)) for _ in range(3))
    collector.wait(1, first)
    rewards = jnp.arange(graded.learned.reward.shape[0]) % 2.0  # of this model's own answers too few are right
    state, _ = jax.block_until_ready(learning.update(state, replace(graded.learned, reward=rewards), 0))
    values = collector.wait(1, pending).values
    assert values.get("sampling/rollouts") == 2 or values["tokens/greedy"] > 0
    collector.wait(1, replace(other, params=policy_of(state)))
    *_, before, after, moved = taken  # what was asked for when a rollout was there
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(after, moved)
