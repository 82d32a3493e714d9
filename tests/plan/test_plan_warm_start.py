"""The plan of a warm start on conversations: one more program, with its own state, on local devices."""

from dataclasses import replace

import jax
import pytest
from program import EXPERIMENT

from rl_llm.experiment import Conversations, Experiment, WarmStart
from rl_llm.learner.optimizer import AdamW
from rl_llm.parallel.mesh import MeshShape, make_meshes
from rl_llm.plan import PlanError
from rl_llm.plan.cost import Efficiency
from rl_llm.plan.planning import Plan, make_plan
from rl_llm.plan.programs import GIB, WARM_START, compile_and_measure, trace_programs
from rl_llm.plan.topology import parse_topology

ROWS, S = 32, 256
V6E = parse_topology("v6e:1x1")
SMALL = replace(V6E, chip=replace(V6E.chip, hbm_gib=V6E.chip.hbm_gib - V6E.usable_gib + 7e4 / GIB))  # of 70 kB


def learning(micro_batches: int = 1, rows: int = ROWS) -> Experiment:
    """RL after a warm start on a file, which need not exist."""
    file = Conversations("nowhere.jsonl", rows, S, micro_batches)
    warm_start = WarmStart(4, AdamW(1e-3), demonstrations=file)
    model = replace(EXPERIMENT.model, remat="layers")
    return replace(EXPERIMENT, model=model, mesh=MeshShape(2), updates_per_rollout=1, warm_start=warm_start)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(learning(), SMALL, jax.devices()[:2], Efficiency())


@pytest.mark.slow
def test_a_warm_start_on_conversations_is_a_program_of_the_plan(plan: Plan):
    assert list(plan.programs) == ["sample", "update", WARM_START]
    need = plan.needs[WARM_START]
    assert need.peak > need.parameters + need.state > 0
    assert need.beside == 0
    assert need.batch * GIB == pytest.approx(3 * 4 * ROWS // 2 * S, abs=200), "tokens, segments and weights"
    assert any(one.kind == "all-reduce" for one in plan.programs[WARM_START].collectives)


@pytest.mark.slow
def test_smaller_micro_batches_are_advised_and_need_less(plan: Plan):
    assert max(plan.needs, key=lambda name: plan.needs[name].peak) == WARM_START
    assert plan.advice == "warm start: use smaller micro-batches, --set warm_start.demonstrations.micro_batches=2"
    both = make_meshes(MeshShape(2), None, jax.devices()[:2])
    traced = trace_programs(learning(micro_batches=2), both)
    cut = compile_and_measure(WARM_START, traced.lowerings()[WARM_START], both.learner)
    assert cut.temporaries < plan.programs[WARM_START].temporaries


def test_an_experiment_without_conversations_has_no_such_program():
    both = make_meshes(MeshShape(2), None, jax.devices()[:2])
    assert WARM_START not in trace_programs(EXPERIMENT, both).lowerings()


def test_rows_that_do_not_divide_over_the_chips_are_refused():
    with pytest.raises(PlanError, match=r"rows_per_step=6 / micro_batches=2 is 3; expected a multiple of 2 data-"):
        make_plan(learning(micro_batches=2, rows=6), SMALL, jax.devices()[:2], Efficiency())
