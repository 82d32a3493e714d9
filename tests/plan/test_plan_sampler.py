"""The plan of a sampler on chips of its own: what they have, and what to change where that is too much."""

from dataclasses import replace

import jax
import pytest
from test_plan_search import ADAPTED, PLAIN
from test_plan_warm_start import V6E

from rl_llm.experiment import Experiment
from rl_llm.model import parameter_count
from rl_llm.parallel.mesh import MeshShape, make_meshes
from rl_llm.plan.cost import Efficiency
from rl_llm.plan.estimates import of_sampler
from rl_llm.plan.planning import Need, Plan, advice_on_cache, advice_on_state, make_plan
from rl_llm.plan.programs import GIB, abstract
from rl_llm.plan.topology import Topology

APART = {"mesh": MeshShape(2), "sampler_mesh": MeshShape(2), "staleness": 1}
PARAMETERS = 4 * parameter_count(PLAIN.model)  # bytes


def with_memory(gib: float) -> Topology:
    """A slice of chips with so much for programs."""
    return replace(V6E, chip=replace(V6E.chip, hbm_gib=V6E.chip.hbm_gib - V6E.usable_gib + gib))


def planned(experiment: Experiment, gib: float) -> Plan:
    return make_plan(replace(experiment, **APART), with_memory(gib), jax.devices()[:4], Efficiency())


@pytest.mark.parametrize("experiment", [PLAIN, ADAPTED], ids=["all", "adapters"])
@pytest.mark.parametrize("every", [0, 2])
def test_a_sampler_has_once_more_what_is_trained_and_evaluated_as_it_answers(experiment: Experiment, every: int):
    changed = replace(experiment, evaluation=replace(experiment.evaluation, every=every))
    need = planned(changed, 1.0).needs["sample"]
    once = 4 * parameter_count(experiment.model)
    trained = once - (PARAMETERS if experiment.model.lora else 0)
    assert need.parameters * GIB == once
    assert need.state * GIB == need.beside * GIB == (trained if every else 0)
    assert of_sampler(replace(changed, **APART), MeshShape(2)) == once + (trained if every else 0)


def test_a_sampler_that_is_too_small_is_told_of_its_own_mesh():
    """The learner's would not help, nor say how many prompts a chip of the sampler has."""
    meshes = make_meshes(MeshShape(1, 2), MeshShape(4), jax.devices()[:6])
    made = abstract(replace(PLAIN, **APART, updates_per_rollout=1), meshes)
    need = Need(parameters=1, state=1, beside=1, batch=0, cache=2, copied=0, temporaries=2, peak=4)
    of_state = (
        "parameters take 2.0 GiB of every chip: spread them over more chips, --set sampler_mesh.data=1 --set samp"
    )
    assert advice_on_state(made, "sample", need).startswith(of_state)
    assert "although spread over all: a larger slice" in advice_on_state(made, "update", need)
    assert advice_on_cache(made, with_memory(3.9), need, False).endswith("--set sampling_batches=2")
    cut = abstract(replace(PLAIN, **APART, updates_per_rollout=1, sampling_batches=2), meshes)
    assert "sampler_mesh.tensor=2" in advice_on_cache(cut, with_memory(3.9), need, False)
