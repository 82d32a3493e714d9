"""Numbers apart from structure: nothing is lost, every component computes with numbers that are arguments, and runs
that differ in numbers share their programs.
"""

import logging
import time
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import jaxpr_as_fun
from test_knobs import KNOBS, REFUSED, effect, of, outcome

from rl_llm import algorithms as a
from rl_llm.experiment import Experiment
from rl_llm.learner.critic import Critic
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.train_step import compile_make_batch
from rl_llm.parallel.mesh import Meshes, make_mesh
from rl_llm.parallel.numbers import combine, partition
from rl_llm.prepare import counts
from rl_llm.runs.folder import IDENTITY, RunFolder
from rl_llm.runs.load import SourceModels
from rl_llm.train import train
from rl_llm.update.step import compile_learning
from tests.data import tiny

MESH = make_mesh(devices=jax.devices()[:1])


@dataclass(frozen=True)
class Part:
    """A component with anything in its fields. The number of `fixed` is structure."""

    first: Any
    second: Any = None
    fixed: float = field(default=0.0, metadata={"static": True})

    def __post_init__(self) -> None:
        assert not any(isinstance(value, jax.core.Tracer) for value in (self.first, self.second))


numbers = st.floats(allow_nan=False, width=32)
others = st.none() | st.booleans() | st.integers() | st.sampled_from(["k1", "k3"]) | st.just(jnp.tanh)
values = st.recursive(
    numbers | others,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.builds(Part, inner, inner, numbers),
    max_leaves=12,
)


@given(values)
def test_a_value_is_its_numbers_and_its_structure(value: Any):
    """Down to field types: 1, 1.0 and True are equal, but three different values."""
    floats, structure = partition(value)
    assert all(type(number) is float for number in floats)
    assert repr(combine(floats, structure)) == repr(value)
    kept: list[str] = []
    jax.make_jaxpr(lambda traced: kept.append(repr(partition(structure)[1])))(floats)
    assert kept == [repr(structure)]


@given(values, st.data())
def test_a_structure_is_that_of_all_values_with_other_numbers(value: Any, data: st.DataObject):
    floats, structure = partition(value)
    changed = combine(tuple(data.draw(numbers) for _ in floats), structure)
    again = partition(changed)
    assert again[1] == structure
    assert hash(again[1]) == hash(structure)
    assert combine(*again) == changed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Part(1.0), Part(1)),
        (Part(0.5), Part(None)),
        (Part((0.5, 0.5)), Part((0.5,))),
        (Part(0.5, fixed=0.1), Part(0.5, fixed=0.2)),
        (a.Clip(), a.Clip(cap=3.0)),
        (a.GPPO(), a.Clip()),
        (a.GeneralizedJSD(0.5), a.GeneralizedJSD(1.0)),
        (AdamW(0.1), AdamW(0.1, warmup_updates=1)),
        (AdamW(0.1), AdamW(0.1, beta2=0.9, moments_dtype="bfloat16")),
    ],
)
def test_values_that_are_no_numbers_are_structure(one: Any, other: Any):
    assert partition(one)[1] != partition(other)[1]


def test_traced_numbers_are_weakly_typed_like_constants():
    """Multiplying by them leaves the other operand's type unchanged."""
    floats, structure = partition(Part(0.1))
    kept = jax.make_jaxpr(lambda floats: combine(floats, structure).first * jnp.ones(2, jnp.bfloat16))(floats)
    assert kept.out_avals[0].dtype == jnp.bfloat16


def test_a_component_without_a_hash_is_refused():
    with pytest.raises(ValueError, match=r"GDPO\(weights=\[0.1, 1.0\].* cannot be told from others .*'list'"):
        compile_make_batch(replace(a.LITE_PPO, advantage=a.GDPO([0.1, 1.0])), MESH)  # type: ignore[arg-type]


@cache
def program(structure: a.Algorithm) -> Any:
    """The computation of algorithms with one structure, traced once with their numbers as arguments."""
    effect(a.LITE_PPO)  # the fixture is drawn
    floats, structure = partition(structure)
    return jaxpr_as_fun(jax.make_jaxpr(lambda floats: outcome(combine(floats, structure)))(floats))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KNOBS), ids=lambda kind: kind.__name__)
def test_a_component_gives_the_same_with_traced_numbers(kind: type):
    """For its default numbers, and for another value of each field."""
    component, knobs = KNOBS[kind]
    changed = [replace(component, **{x: knobs[x]}) for x in knobs if (kind.__name__, x) not in REFUSED]
    for each in (component, *(x for x in changed if partition(x)[0] != partition(component)[0])):
        floats, structure = partition(of(each))
        (found,) = program(structure)(*map(jnp.float32, floats))
        np.testing.assert_allclose(found, effect(of(each)), rtol=2e-5, atol=1e-6)


def test_fields_with_a_number_that_is_structure_are_few():
    static = {f"{kind.__name__}.{x.name}" for kind in (*KNOBS, AdamW, Critic) for x in fields(kind) if x.metadata}
    assert static == {"GeneralizedJSD.beta"}


# A critic of its own with pre-training, what controllers adapt, a reference, an older sampler, demonstrations before.
FIRST = replace(
    tiny.base,
    algorithm=replace(
        a.PPO,
        objective=a.Clip(0.2, 0.2, 3.0),
        corrections=(a.ImportanceWeight(),),
        regularizers=(a.KLPenalty(0.1, controller=a.AdaptiveKL(0.1)),),
    ),
    critic=Critic(AdamW(1e-2), pretraining_steps=1),
    reference=a.Reference(),
    staleness=1,
    steps=3,
    evaluation=replace(tiny.base.evaluation, every=0),
    checkpointing=replace(tiny.base.checkpointing, keep_best=False),
)
# Other numbers everywhere.
SECOND = replace(
    FIRST,
    algorithm=replace(
        a.PPO,
        advantage=replace(a.PPO.advantage, advantage=a.GAE(0.9, 0.8), eps=1e-4),
        objective=a.Clip(0.1, 0.3, 2.0),
        corrections=(a.ImportanceWeight(upper=3.0),),
        regularizers=(a.KLPenalty(0.05, controller=a.AdaptiveKL(0.2, 500.0)),),
    ),
    optimizer=replace(FIRST.optimizer, learning_rate=2e-2, beta1=0.8, weight_decay=0.1, max_gradient_norm=0.5),
    critic=Critic(AdamW(3e-2), pretraining_steps=1),
    sampling=replace(FIRST.sampling, temperature=0.9, top_p=0.95),
    warm_start=replace(FIRST.warm_start, optimizer=replace(FIRST.warm_start.optimizer, learning_rate=1e-2)),
)
OTHER = replace(SECOND, algorithm=replace(SECOND.algorithm, objective=a.GPPO(0.1, 0.3)))


def compiled_by(experiment: Experiment, seed: int, folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Names of all programs that a run compiled or read from the disk."""
    problems = {split: experiment.task.problems(split, count, seed) for split, count in counts(experiment).items()}
    caplog.clear()
    opened = RunFolder.create(folder, dict.fromkeys(IDENTITY, 0))
    jax.config.update("jax_log_compiles", True)  # in all threads: the sampler is called from one
    try:
        with opened, caplog.at_level(logging.WARNING):
            train(experiment, seed, Meshes(MESH, MESH), problems, SourceModels(), opened, time.monotonic())
    finally:
        jax.config.update("jax_log_compiles", False)
    messages = [record.getMessage() for record in caplog.records]
    return [message.split()[1] for message in messages if message.startswith("Compiling ")]


@pytest.mark.slow
def test_runs_that_differ_in_numbers_and_seed_share_all_programs(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    jax.clear_caches()  # tests before this one may have compiled some of them
    first = compiled_by(FIRST, 0, tmp_path / "first", caplog)
    assert {"jit(_generate)", "jit(_make_batch)", "jit(train_step)", "jit(critic_step)", "jit(adapted)"} <= set(first)
    assert compiled_by(SECOND, 1, tmp_path / "second", caplog) == []


def programs(experiment: Experiment) -> list[Any]:
    """Jitted functions of an experiment's steps."""
    made = compile_learning(experiment, 0, MESH, SourceModels(), ())
    bound = [made.make_batch, made.make_replayed_batch, made.adapt, made.fields.logps]
    return [each.program for each in [*bound, made.train_step.program, made.critic_step.program]]


def test_experiments_share_a_program_if_and_only_if_they_differ_in_numbers():
    assert all(one is other for one, other in zip(programs(FIRST), programs(SECOND), strict=True))
    same = [one is other for one, other in zip(programs(FIRST), programs(OTHER), strict=True)]
    assert same == [False, False, False, True, False, False]  # log-probabilities do not depend on the algorithm
    longer = replace(FIRST, steps=4)  # and what the schedules are laid out for
    same = [one is other for one, other in zip(programs(FIRST), programs(longer), strict=True)]
    assert same == [True, True, True, True, False, False]
