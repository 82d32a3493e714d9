"""The search's estimates: exact where shapes decide, and near what compilers said of real models."""

from dataclasses import replace

import jax
import pytest
from test_train import EXPERIMENT, ROOT

from experiments.plans import ABLATION
from rl_llm.experiment import Experiment
from rl_llm.loading import load_experiment
from rl_llm.mesh import MeshShape, make_mesh
from rl_llm.model import Lora, parameter_count
from rl_llm.plan.programs import bytes_per_chip
from rl_llm.plan.search import GIB, candidates, state_bytes, update_bytes
from rl_llm.plan.topology import topology
from rl_llm.saved import carried
from rl_llm.state import abstract_state

ONE, SPREAD = MeshShape(1, 1, 1), MeshShape(2, 2, 1)
PLAIN: Experiment = replace(EXPERIMENT, warm_start=None)
ADAPTED = replace(PLAIN, model=replace(PLAIN.model, lora=Lora(4, 8.0)))
ADAPTERS = parameter_count(ADAPTED.model) - parameter_count(PLAIN.model)


@pytest.mark.parametrize("mesh", [ONE, SPREAD])
@pytest.mark.parametrize("name", ["base", "everything", "lora", "small", "critic", "shared_critic"])
def test_a_state_takes_what_its_arrays_take(name: str, mesh: MeshShape):
    experiment = replace(load_experiment(f"{ROOT}/tests/data/techniques.py:{name}", Experiment)[1], replay=None)
    devices = make_mesh(mesh, jax.devices()[: mesh.fixed])
    optimizer = experiment.optimizer.build(experiment.policy_updates())
    state = abstract_state(experiment.model, optimizer, devices, carried(experiment))
    scalars = 200  # bytes: counters and moments of rewards
    assert 0 <= bytes_per_chip(state) - state_bytes(experiment, mesh) < scalars


def test_adapters_alone_have_moments_and_gradients():
    parameters = parameter_count(PLAIN.model)
    assert state_bytes(PLAIN, ONE) == 12 * parameters
    assert state_bytes(ADAPTED, ONE) == 4 * parameters + 12 * ADAPTERS
    for cut, copies in ((1, 1), (2, 2)):
        less = update_bytes(PLAIN, ONE, cut, 64.0) - update_bytes(ADAPTED, ONE, cut, 64.0)
        assert less == 4 * copies * (parameters - ADAPTERS)


@pytest.mark.parametrize(
    ("name", "layers", "mesh", "cut", "compiled"),
    [
        ("qwen3_4b", 12, MeshShape(1, 8, 2), 8, 18.92),
        ("qwen3_4b", 36, MeshShape(1, 8, 2), 8, 28.47),
        ("qwen3_8b", 36, MeshShape(1, 4, 4), 16, 27.18),
    ],
)
def test_an_update_takes_about_what_the_compiler_said(
    name: str, layers: int, mesh: MeshShape, cut: int, compiled: float
):
    """For v6e:4x4, with the state that the update gets."""
    whole = ABLATION[name]
    experiment = replace(whole, staleness=0, model=replace(whole.model, layers=layers))
    tokens = (1024 * 8192 + 128 * 1024) / (2 * cut * mesh.data * mesh.fsdp)
    found = (state_bytes(experiment, mesh) + update_bytes(experiment, mesh, cut, tokens)) / GIB
    assert found == pytest.approx(compiled, rel=0.06)


def test_what_is_kept_for_the_backward_pass_is_what_remat_says():
    whole = ABLATION["qwen3_8b"]

    def of(remat: str) -> float:
        experiment = replace(whole, model=replace(whole.model, remat=remat))
        return update_bytes(experiment, MeshShape(1, 4, 4), 16, 66_560.0)

    assert of("layers") < of("all but products") < of("nothing")
    config = whole.model
    per_layer = (update_bytes(whole, ONE, 1, 2e6) - update_bytes(whole, ONE, 1, 1e6)) / 1e6 / 4
    widest = 6 * config.width + 4 * (config.heads + config.kv_heads) * config.head_width + 6 * config.feed_forward
    assert per_layer == pytest.approx(config.layers * config.width + widest)


def test_adapters_make_more_meshes_possible():
    """A full update of 8B does not fit where one of adapters does, and sends more."""
    whole, slice_ = ABLATION["qwen3_8b"], topology("v6e:4x4")
    adapted = replace(whole, model=replace(whole.model, lora=Lora(16, 32.0)))
    of_all = {(one.mesh, one.micro_batches): one for one in candidates(whole, slice_)}
    for one in candidates(adapted, slice_):
        other = of_all[one.mesh, one.micro_batches]
        assert one.sent <= other.sent
        assert one.gib <= other.gib or one.sampling_batches < other.sampling_batches
    fitting = [sum(one.gib <= slice_.usable_gib for one in candidates(e, slice_)) for e in (adapted, whole)]
    assert fitting[0] > fitting[1]
