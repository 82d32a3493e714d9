"""A sampler on its own devices, or sampling a rollout in parts: the run is the same up to rounding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_techniques import WARM_STEPS, train

from rl_llm.config import fingerprint, load_experiment
from rl_llm.model import Lora, init, join_params, split_params, weight_table
from rl_llm.parallel.mesh import MeshShape, make_meshes, weight_shardings
from rl_llm.plan.programs import bytes_at_once
from rl_llm.rollout.engine import compile_policy_sampler, open_engine
from rl_llm.rollout.text import encode_prompts
from rl_llm.runs.load import SourceModels
from rl_llm.train import open_collector
from tests.data.tiny import base

EXACT = ("tokens/generated", "reward/mean", "response/length", "response/truncated", "flops/generate")


@pytest.mark.slow
@pytest.mark.parametrize(
    "staleness", ["1", pytest.param("0", marks=pytest.mark.nightly("staleness 1 moves the same arrays"))]
)
def test_a_sampler_on_its_own_mesh_samples_the_same(staleness: str, tmp_path: Path):
    """With staleness 1, sampler and learner overlap; otherwise they take turns. Parameters and rollouts move."""
    behind = ("--set", f"staleness={staleness}")
    shared = train(tmp_path / "shared", "together", *behind, JAX_NUM_CPU_DEVICES="4")
    apart = train(tmp_path / "apart", "apart", *behind, JAX_NUM_CPU_DEVICES="8")
    for one, other in zip(shared.metrics[WARM_STEPS:], apart.metrics[WARM_STEPS:], strict=True):
        assert {name: one[name] for name in EXACT} == {name: other[name] for name in EXACT}
        for name in ("loss", "policy/entropy", "update/gradient_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_prompts_sampled_in_parts_get_the_same_responses():
    meshes = make_meshes(MeshShape(2), None, jax.devices()[:2])
    params = init(base.model, jax.random.key(0))
    problems = base.task.problems("train", base.prompts_per_step, 0)
    prompts = encode_prompts(base.tokenizer, problems, base.max_prompt_tokens)
    values = base.sampling.values((base.tokenizer.end_id,))
    whole, parts = (
        compile_policy_sampler(base.model, replace(base, sampling_batches=n), meshes)[0](
            params, prompts, jax.random.key(1), values
        )
        for n in (1, 4)
    )
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_allclose(whole.logp, parts.logp, rtol=1e-5, atol=1e-6)
    assert parts.tokens.sharding == whole.tokens.sharding


@pytest.mark.parametrize(
    ("batches", "message"),
    [(0, "sampling_batches=0 is out of range; expected >= 1"), (3, "must be a multiple of sampling_batches=3")],
)
def test_parts_that_do_not_divide_are_refused(batches: int, message: str):
    with pytest.raises(ValueError, match=message):
        replace(base, sampling_batches=batches)


def test_hardware_is_not_part_of_the_fingerprint():
    apart = load_experiment("tests/data/techniques.py:apart")[1]
    assert fingerprint(apart) == fingerprint(replace(apart, mesh=MeshShape(), sampler_mesh=None))


def test_frozen_weights_are_sent_to_a_sampler_once():
    model = replace(base.model, lora=Lora(rank=2, alpha=4.0))
    experiment = replace(base, model=model)
    meshes = make_meshes(MeshShape(4), MeshShape(2, fsdp=2))
    params = jax.device_put(init(model, jax.random.key(0)), weight_shardings(meshes.learner, weight_table(model)))
    trained, frozen = split_params(model, params)
    with open_engine(experiment, meshes) as engine:
        first = engine.place(params)
        second = engine.place(join_params(jax.tree.map(lambda x: x + 1, trained), frozen))
        other = engine.place(jax.tree.map(lambda x: x + 1, params))
    assert jax.tree.map(lambda x: x.sharding, first) == weight_shardings(meshes.sampler, weight_table(model))
    (now, still), (before, sent) = split_params(model, second), split_params(model, first)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, still, sent)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), now, before)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), other, first)


def test_a_teacher_is_sent_in_addition_to_the_policy():
    model = replace(base.model, lora=Lora(rank=2, alpha=4.0))
    meshes = make_meshes(MeshShape(4), MeshShape(2, fsdp=2))
    params = init(model, jax.random.key(0))
    others: Any = None, SourceModels(teacher=(base, init(base.model, jax.random.key(1)))), {"train": ()}
    with open_engine(replace(base, model=model), meshes) as engine:
        before = split_params(model, engine.place(params))[1]
        teacher = open_collector(others[0], engine, *others[1:]).teacher
        after = split_params(model, engine.place(params))[1]
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, before, after)))
    np.testing.assert_array_equal(teacher[1]["embedding"], others[1].teacher[1]["embedding"])


def test_transfers_replicate_a_few_layers_or_an_array_split_along_its_first_axis():
    meshes = make_meshes(MeshShape(2, 2), MeshShape(2, tensor=2))
    MiB = 2**20

    def at_once(shape: tuple[int, ...], before: tuple, after: tuple) -> int:
        here, there = NamedSharding(meshes.learner, P(*before)), NamedSharding(meshes.sampler, P(*after))
        return bytes_at_once(jax.ShapeDtypeStruct(shape, np.float32, sharding=here), there) // MiB

    assert at_once((8, 2**11, 2**13), (None, "fsdp"), (None, "tensor")) == 256 + 128  # 64 MiB a layer
    assert at_once((8, 2**14, 2**13), (None, "fsdp"), (None, None)) == 512 + 512  # at least a layer
    assert at_once((2**14, 2**14), (None, "fsdp"), ("tensor", None)) == 1024 + 512
    assert at_once((2**14,), (), ()) == 0
