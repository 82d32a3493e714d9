"""The plan of a separate sampler: memory of its chips, and advice if it does not fit."""

from dataclasses import replace

import jax
import pytest
from test_plan_search import ADAPTED, PLAIN
from test_plan_warm_start import V6E

from rl_llm.experiment import Experiment
from rl_llm.model import parameter_count
from rl_llm.parallel.mesh import MeshShape, make_meshes
from rl_llm.plan.cost import Efficiency
from rl_llm.plan.estimates import sampler_param_bytes
from rl_llm.plan.planning import Need, Plan, advice_on_cache, advice_on_state, make_plan
from rl_llm.plan.programs import GIB, trace_programs
from rl_llm.plan.topology import Topology

APART = {"mesh": MeshShape(2), "sampler_mesh": MeshShape(2), "staleness": 1}
PARAMETERS = 4 * parameter_count(PLAIN.model)  # bytes


def with_memory(gib: float) -> Topology:
    """A slice with `gib` GiB per chip for programs."""
    return replace(V6E, chip=replace(V6E.chip, hbm_gib=V6E.chip.hbm_gib - V6E.usable_gib + gib))


def planned(experiment: Experiment, gib: float) -> Plan:
    return make_plan(replace(experiment, **APART), with_memory(gib), jax.devices()[:4], Efficiency())


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [PLAIN, ADAPTED], ids=["all", "adapters"])
@pytest.mark.parametrize("every", [0, 2])
def test_a_sampler_holds_trained_parameters_twice_if_it_evaluates_while_sampling_ahead(
    experiment: Experiment, every: int
):
    evaluation, saved = replace(experiment.evaluation, every=every), replace(experiment.checkpointing, keep_best=False)
    changed = replace(experiment, evaluation=evaluation, checkpointing=saved)
    need = planned(changed, 1.0).needs["sample"]
    once = 4 * parameter_count(experiment.model)
    trained = once - (PARAMETERS if experiment.model.lora else 0)
    assert need.parameters * GIB == once
    assert need.state * GIB == need.beside * GIB == (trained if every else 0)
    assert sampler_param_bytes(replace(changed, **APART), MeshShape(2)) == once + (trained if every else 0)


def test_advice_for_a_small_sampler_is_about_its_own_mesh():
    """The learner's mesh would not help, nor does it determine the prompts per chip of the sampler."""
    meshes = make_meshes(MeshShape(1, 2), MeshShape(4), jax.devices()[:6])
    traced = trace_programs(replace(PLAIN, **APART, updates_per_rollout=1), meshes)
    need = Need(parameters=1, state=1, beside=1, batch=0, cache=2, copied=0, temporaries=2, peak=4)
    state_advice = (
        "parameters take 2.0 GiB of every chip: shard them over more chips, --set sampler_mesh.data=1 --set samp"
    )
    assert advice_on_state(traced, "sample", need).startswith(state_advice)
    assert "although sharded over all: use a larger slice" in advice_on_state(traced, "update", need)
    assert advice_on_cache(traced, with_memory(3.9), need, False).endswith("--set sampling_batches=2")
    cut = trace_programs(replace(PLAIN, **APART, updates_per_rollout=1, sampling_batches=2), meshes)
    assert "sampler_mesh.tensor=2" in advice_on_cache(cut, with_memory(3.9), need, False)
