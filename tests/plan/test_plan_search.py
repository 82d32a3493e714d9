"""The estimates of a search: exact if shapes decide, and close to compiled plans of real models."""

import json
from dataclasses import replace
from itertools import pairwise
from math import exp
from pathlib import Path

import jax
import pytest
from program import EXPERIMENT, ROOT

from experiments.plans import ABLATION, DOCS
from rl_llm.config import load_experiment
from rl_llm.experiment import Conversations, Experiment, Mixture, WarmStart
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import abstract_state
from rl_llm.model import Experts, Lora, parameter_count
from rl_llm.parallel.mesh import MeshShape, make_mesh
from rl_llm.plan import PlanError
from rl_llm.plan.cost import Efficiency, step_cost
from rl_llm.plan.estimates import sent_by_hand, state_bytes, update_bytes
from rl_llm.plan.programs import GIB, bytes_per_chip
from rl_llm.plan.search import TIE, candidates
from rl_llm.plan.topology import parse_topology
from rl_llm.runs.state import state_spec

ONE, SPREAD = MeshShape(1, 1, 1), MeshShape(2, 2, 1)
PLAIN: Experiment = replace(EXPERIMENT, warm_start=None)
ADAPTED = replace(PLAIN, model=replace(PLAIN.model, lora=Lora(4, 8.0)))
ADAPTERS = parameter_count(ADAPTED.model) - parameter_count(PLAIN.model)


@pytest.mark.parametrize("mesh", [ONE, SPREAD])
@pytest.mark.parametrize("name", ["base", "everything", "lora", "small", "critic", "shared_critic"])
def test_state_bytes_are_those_of_its_arrays(name: str, mesh: MeshShape):
    experiment = replace(load_experiment(f"{ROOT}/tests/data/techniques.py:{name}", Experiment)[1], replay=None)
    devices = make_mesh(mesh, jax.devices()[: mesh.fixed])
    optimizer = experiment.policy_optimizer
    state = abstract_state(experiment.model, optimizer, devices, state_spec(experiment))
    scalars = 200  # bytes: counters and moments of rewards
    assert 0 <= bytes_per_chip(state) - state_bytes(experiment, mesh) < scalars


def test_only_adapters_have_moments_and_gradients():
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
def test_update_bytes_are_close_to_compiled_updates(name: str, layers: int, mesh: MeshShape, cut: int, compiled: float):
    """Compiled for v6e:4x4, with the state that the update takes."""
    whole = ABLATION[name]
    experiment = replace(whole, staleness=0, model=replace(whole.model, layers=layers))
    tokens = (1024 * 8192 + 128 * 1024) / (2 * cut * mesh.data * mesh.fsdp)
    found = (state_bytes(experiment, mesh) + update_bytes(experiment, mesh, cut, tokens)) / GIB
    assert found == pytest.approx(compiled, rel=0.06)


def test_remat_decides_the_activations_kept_for_the_backward_pass():
    whole = ABLATION["qwen3_8b"]

    def bytes_with(remat: str) -> float:
        experiment = replace(whole, model=replace(whole.model, remat=remat))
        return update_bytes(experiment, MeshShape(1, 4, 4), 16, 66_560.0)

    assert bytes_with("layers") < bytes_with("all but products") < bytes_with("nothing")
    config = whole.model
    per_layer = (update_bytes(whole, ONE, 1, 2e6) - update_bytes(whole, ONE, 1, 1e6)) / 1e6 / 4
    widest = 6 * config.width + 4 * (config.heads + config.kv_heads) * config.head_width + 6 * config.feed_forward
    assert per_layer == pytest.approx(config.layers * config.width + widest)


def test_adapters_fit_on_more_meshes():
    """A full update of 8B fits on fewer meshes than one of adapters, and sends more."""
    whole, slice_ = ABLATION["qwen3_8b"], parse_topology("v6e:4x4")
    adapted = replace(whole, model=replace(whole.model, lora=Lora(16, 32.0)))
    full = {one.mesh: one for one in candidates(whole, slice_, Efficiency())}
    with_adapters = candidates(adapted, slice_, Efficiency())
    for one in with_adapters:
        other = full[one.mesh]
        assert one.fits >= other.fits
        assert one.seconds < other.seconds or one.sampling_batches > other.sampling_batches
        sizes = {name: getattr(one, name) for name in ("mesh", "micro_batches", "sampling_batches")}
        same = [replace(experiment, **sizes) for experiment in (adapted, whole)]
        less, more = (sent_by_hand(experiment, one.mesh, Efficiency()).update for experiment in same)
        assert less < more
    assert sum(one.fits for one in with_adapters) > sum(one.fits for one in full.values())


@pytest.mark.parametrize("name", ABLATION)
def test_a_search_begins_with_the_fastest_meshes_that_fit(name: str):
    experiment, slice_ = ABLATION[name], parse_topology("v6e:4x4")
    found = candidates(experiment, slice_, Efficiency())
    fitting = [one for one in found if one.fits]
    assert found[: len(fitting)] == fitting
    assert all(one.gib <= slice_.usable_gib for one in fitting)
    for first, second in pairwise(fitting):
        assert first.seconds <= exp(TIE) * second.seconds
    assert len({one.mesh for one in found}) == len(found)
    assert all(one.mesh.data * one.mesh.fsdp * one.mesh.tensor == 16 for one in found)
    assert all(experiment.model.kv_heads % one.mesh.tensor == 0 for one in found)


def test_fewer_weight_bytes_per_token_win_unless_the_network_is_slow():
    slice_ = parse_topology("v6e:4x4")
    assert candidates(ABLATION["qwen3_4b"], slice_, Efficiency())[0].mesh == MeshShape(1, 2, 8)
    assert candidates(ABLATION["qwen3_4b"], slice_, Efficiency(network=0.02))[0].mesh.tensor < 8


@pytest.mark.parametrize("path", sorted((DOCS / "plans").glob("*.json")), ids=lambda path: path.stem)
def test_estimates_are_close_to_compiled_plans(path: Path):
    plan = json.loads(path.read_text())
    name, slice_, mesh = path.stem.split("-")[0], parse_topology(plan["topology"]), MeshShape(**plan["mesh"])
    sizes = {name: plan[name] for name in ("micro_batches", "sampling_batches")}
    experiment = replace(ABLATION[name], mesh=mesh, **sizes)
    e, passes = Efficiency(**plan["efficiency"]), 4
    found = step_cost(experiment, slice_, mesh, sent_by_hand(experiment, mesh, e), passes, e)
    assert found.seconds == pytest.approx(plan["step_seconds"], rel=0.005)
    if plan["fits"]:
        assert found.phases["update"].network == pytest.approx(plan["seconds"]["update"]["network"], rel=0.25)


LINES = WarmStart(4, AdamW(1e-3), demonstrations=Conversations("chats.jsonl", rows_per_step=4, row_tokens=64))
FEW = WarmStart(4, AdamW(1e-3), demonstrations_per_step=4, max_tokens=64)


@pytest.mark.parametrize("change", [{"warm_start": LINES}, {"warm_start": FEW}, {"mixture": Mixture(4, 64)}])
def test_all_training_rows_divide_over_a_mesh(change: dict):
    """`train` refuses eight data-parallel chips for four rows, so the search must not propose them."""
    experiment = replace(PLAIN, model=replace(PLAIN.model, kv_heads=2, vocabulary=32), prompts_per_step=32)
    assert len(candidates(experiment, parse_topology("v6e:2x4"), Efficiency())) > 5
    found = candidates(replace(experiment, **change), parse_topology("v6e:2x4"), Efficiency())
    assert {one.mesh.data * one.mesh.fsdp for one in found} == {4}


@pytest.mark.parametrize(("count", "tensor"), [(3, {1}), (6, {1, 2}), (4, {1, 2, 4})])
def test_experts_divide_over_tensor_but_their_widths_need_not(count: int, tensor: set[int]):
    model = replace(PLAIN.model, heads=4, kv_heads=4, vocabulary=32, feed_forward=33, experts=Experts(count, 2))
    found = candidates(replace(PLAIN, model=model, prompts_per_step=32), parse_topology("v6e:2x4"), Efficiency())
    assert {one.mesh.tensor for one in found} == tensor


def test_a_search_leaves_the_chips_of_the_sampler():
    """12 of 16 chips learn. The sampler's memory excludes the optimizer and is independent of the learner's mesh."""
    whole, slice_ = replace(ABLATION["qwen3_0_6b"], prompts_per_step=96), parse_topology("v6e:4x4")
    experiment = replace(whole, sampler_mesh=MeshShape(2, 1, 2), updates_per_rollout=1, micro_batches=1)
    found = candidates(experiment, slice_, Efficiency())
    assert {one.mesh.data * one.mesh.fsdp * one.mesh.tensor for one in found} == {12}
    assert len({one.sampling_batches for one in found}) == 1
    seconds = [one.seconds for one in candidates(experiment, slice_, Efficiency(memory=0.35)) if one.fits]
    assert seconds[0] > 1.5 * found[0].seconds  # the sampler decides: its four chips read the cache


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (MeshShape(-1, 1, 2), r"sampler_mesh=MeshShape\(data=-1.*fix its sizes"),
        (MeshShape(16), "leaves none of 16 chips"),
        (MeshShape(9), r"no mesh of 7 chips .*\(prompts_per_step=128 .*: 64\).*another sampler_mesh"),
    ],
)
def test_a_sampler_that_leaves_no_known_chips_is_refused(sampler: MeshShape, said: str):
    experiment = replace(ABLATION["qwen3_0_6b"], sampler_mesh=sampler)
    with pytest.raises(PlanError, match=said):
        candidates(experiment, parse_topology("v6e:4x4"), Efficiency())
