"""Members of a population share one program, and each gets the results it would get alone."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sampler import KEY, PARAMS, PROMPTS, SHALLOW, K, T, random_params
from test_sampler import sampler as sampler

from rl_llm import prng
from rl_llm.model import Experts, forward
from rl_llm.parallel.mesh import make_mesh
from rl_llm.parallel.population import PopulationError, any_member, is_member, others_run, program, run_together, shared
from rl_llm.parallel.programs import compile_program
from rl_llm.runs.preemption import StopSignal
from rl_llm.sampler import Sampler, Sampling
from rl_llm.studies.folder import Member
from rl_llm.studies.runner import StudySchedule

SIZE = 3


def everyone(run: Callable[[int], Any]) -> list[Any]:
    return run_together([partial(run, member) for member in range(SIZE)])


def test_members_call_one_program_and_get_their_own_results():
    traced = []

    def scaled(tree: dict, number: jax.Array) -> dict:
        traced.append(number)
        return {"x": tree["x"] * number, "none": None}

    scale = program(scaled)
    results = everyone(lambda member: scale({"x": jnp.arange(4.0) + member}, 2.0 + member))
    for member, result in enumerate(results):
        np.testing.assert_array_equal(result["x"], (np.arange(4.0) + member) * (2 + member))
    assert len(traced) == 1


@pytest.mark.parametrize("steps", [(2, 5, 3), (0, 1, 4), (3, 3, 3)])
def test_members_with_different_calls_do_not_wait_for_each_other(steps: tuple[int, ...]):
    """One finishes early, and each sometimes makes another call between its steps. States are donated."""
    traced = []

    def add(state: dict, number: jax.Array) -> dict:
        traced.append(number)
        return {name: x + number for name, x in state.items()}

    step = program(add, donate_argnums=0)
    between = program(lambda x: -x)

    def run(member: int) -> float:
        state = {"a": jnp.float32(member), "b": jnp.zeros(3)}
        for number in range(steps[member]):
            before = state
            state = step(state, 1.0)
            assert before["b"].is_deleted()
            if number % 2 == member % 2:
                state = {**state, "a": between(between(state["a"]))}
        return float(state["a"] + state["b"].sum())

    assert everyone(run) == [member + 4 * steps[member] for member in range(SIZE)]
    assert len(traced) == 1


def test_other_shapes_make_another_call():
    double = program(lambda x: 2 * x)
    results = everyone(lambda member: double(jnp.ones(2 + member % 2)).shape)
    assert results == [(2,), (3,), (2,)]


def test_a_member_that_fails_leaves_the_others_running():
    double = program(lambda x: 2 * x)

    def run(member: int) -> float:
        x = double(jnp.float32(member))
        if member == 1:
            raise ValueError("its gate")
        return float(double(x))

    survived: list[float] = []
    with pytest.raises(ValueError, match="its gate"):
        everyone(lambda member: survived.append(run(member)))
    assert sorted(survived) == [0.0, 8.0]


def test_python_numbers_stay_weak():
    """As in a program for one member, a float argument does not turn bfloat16 arithmetic into float32."""
    scale = program(lambda x, number: x * number)
    assert {x.dtype.name for x in everyone(lambda member: scale(jnp.ones(2, jnp.bfloat16), 0.5))} == {"bfloat16"}


def test_an_operation_that_cannot_be_mapped_is_refused_with_a_remedy():
    @program
    def asks_the_host(x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), jnp.float32), x)

    with pytest.raises(PopulationError, match=r"asks_the_host cannot be mapped .*--population 1"):
        everyone(lambda member: asks_the_host(jnp.float32(member)))


def test_members_take_turns_except_while_they_wait():
    inside: list[int] = []

    def alone(member: int) -> None:
        assert is_member()
        assert not inside
        inside.append(member)
        time.sleep(0.02)
        inside.remove(member)

    def run(member: int) -> float:
        alone(member)
        start = time.monotonic()
        with others_run():
            time.sleep(0.3)
        alone(member)
        return time.monotonic() - start

    start = time.monotonic()
    everyone(run)
    assert time.monotonic() - start < 0.3 * SIZE
    assert not is_member()


def test_a_shared_resource_is_entered_once_and_left_at_the_end():
    events: list[str] = []

    @contextmanager
    def resource(name: str) -> Any:
        events.append(f"open {name}")
        yield name
        events.append(f"close {name}")

    def run(member: int) -> str:
        with shared(resource(f"of {member}"), member // 2) as found:
            events.append("used")
            return found

    first, second, third = everyone(run)
    assert first == second != third
    assert (events.count("used"), len(events)) == (SIZE, SIZE + 4)
    assert all(event.startswith("close") for event in events[-2:])
    with shared(resource("alone"), 0):
        assert events[-1] == "open alone"
    assert events[-1] == "close alone"


def test_a_shared_loop_runs_until_the_last_member_has_ended():
    """The counter is shared and a branch stays a branch: nothing selects between old and new carried values."""

    def count(limit: jax.Array) -> tuple[jax.Array, jax.Array]:
        def body(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            step, own = carry
            return step + 1, own + (step < limit)

        return jax.lax.while_loop(lambda carry: any_member(carry[0] < limit), body, (jnp.int32(0), jnp.int32(0)))

    counted = program(count)
    assert everyone(lambda member: [int(x) for x in counted(jnp.int32(3 * member))]) == [[6, 0], [6, 3], [6, 6]]
    assert [int(x) for x in counted(jnp.int32(4))] == [4, 4]


@pytest.mark.slow
def test_each_member_samples_what_it_samples_alone(sampler: Sampler):
    """Members have their own limits, temperatures, truncations, keys and weights."""
    cases = [
        (Sampling(T), None),
        (Sampling(T, temperature=0.7, top_k=3, top_p=0.9), 3),
        (Sampling(T, temperature=0), 5),
    ]

    def rollout(member: int) -> Any:
        sampling, limit = cases[member]
        params = jax.tree.map(lambda x: x * (1 + 0.1 * member), PARAMS)
        key = prng.key(KEY[0] + member, *KEY[1:])
        return sampler(params, PROMPTS, key, sampling.values((1,), limit))

    assert PROMPTS.tokens.shape[0] * K > 0
    for member, found in enumerate(everyone(rollout)):
        alone = rollout(member)
        for name in ("tokens", "mask", "truncated"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name), err_msg=f"{member} {name}")
        np.testing.assert_allclose(found.logp, alone.logp, atol=1e-5)


def test_groups_have_one_shape_and_even_sizes():
    def member(name: str, seed: int) -> Member:
        return Member(name, seed, Path(f"{name}-seed{seed}"))

    ready = [member(name, seed) for seed in range(5) for name in ("a", "b", "other")]
    structures = {"a": 1, "b": 1, "other": 2}
    plan = StudySchedule(Path(), "", ready, lambda *_: [], [None], Path(), population=4, structures=structures)
    found = []
    while ready:
        found.append(plan.first_group(ready))
        ready = [one for one in ready if one not in found[-1]]
    assert [len(group) for group in found] == [4, 3, 3, 3, 2]
    assert all(len({structures[one.name] for one in group}) == 1 for group in found)


@pytest.mark.slow
def test_experts_and_their_gradient_can_be_mapped():
    config = replace(SHALLOW, experts=Experts(count=4, per_token=2))
    params = random_params(config)

    def loss(params: dict) -> jax.Array:
        return jnp.mean(jnp.tanh(forward(config, params, PROMPTS.tokens)))

    gradient = compile_program(jax.value_and_grad(loss), make_mesh(devices=jax.devices()[:1]))
    inputs = [jax.tree.map(lambda x, i=i: x * (1 + 0.1 * i), params) for i in range(SIZE)]
    for member, found in enumerate(everyone(lambda member: gradient(inputs[member]))):
        alone = gradient(inputs[member])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, alone)


def test_members_see_the_signal_received_by_the_main_thread():
    def run(member: int) -> bool:
        with StopSignal() as stop:
            before = stop.received
            if member == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            with others_run():
                deadline = time.monotonic() + 10
                while not stop.received and time.monotonic() < deadline:
                    time.sleep(0.01)
            return stop.received == signal.SIGTERM and (member > 0 or not before)

    with StopSignal() as stop:
        assert everyone(run) == [True] * SIZE
        assert stop.received
    with pytest.raises(RuntimeError, match="needs one in the main thread"):
        everyone(run)
