"""Collectives in the compiled programs: nothing is replicated by accident."""

from dataclasses import replace
from math import prod

import pytest

from rl_llm.config import load_experiment
from rl_llm.model import ModelConfig, weight_table
from rl_llm.parallel.mesh import RULES, Meshes, MeshShape, make_mesh
from rl_llm.plan.collectives import Collective, read_collectives
from rl_llm.plan.programs import trace_programs

# Sizes that tell apart what is sent: no product of rows and tokens is the size of a weight.
MODEL = ModelConfig(vocabulary=18, width=48, layers=2, heads=4, kv_heads=2, head_width=8, feed_forward=56)
FLOAT32 = 4


@pytest.fixture(scope="module")
def sent() -> dict[str, list[Collective]]:
    """Collectives of the sampler and the update on a mesh of 2 x 2 x 2 devices."""
    mesh = make_mesh(MeshShape(2, 2, 2))
    _, tiny = load_experiment("tests/data/tiny.py:cold")
    experiment = replace(
        tiny,
        model=replace(MODEL, vocabulary=tiny.model.vocabulary + tiny.model.vocabulary % 2),
        sampling=replace(tiny.sampling, max_tokens=70),
    )
    programs = trace_programs(experiment, Meshes(mesh, mesh)).lowerings()
    return {name: read_collectives(lower().compile().as_text(), mesh.shape) for name, lower in programs.items()}


@pytest.mark.slow
def test_an_update_gathers_weights_and_moves_no_rows(sent: dict[str, list[Collective]]):
    gathers = [one for one in sent["update"] if one.kind == "all-gather"]
    over_data = [one for one in gathers if "data" in one.axes]
    assert all("take" in one.name for one in over_data), "only prompts' tokens may look at the whole embedding"
    per_layer = {  # half of each device's share of a layer's weight comes from the other device of the axis
        prod(weight.shape[1:]) * FLOAT32 // (2 if any(RULES.get(a or "") == "tensor" for a in weight.axes) else 1) // 2
        for path, weight in weight_table(MODEL).items()
        if path.startswith("layers/") and "width" in weight.axes
    }
    of_layers = [one for one in gathers if one.axes == ("fsdp",) and "dot_general" in one.name]
    assert of_layers
    assert {one.bytes for one in of_layers} <= {float(size) for size in per_layer}


@pytest.mark.slow
def test_sampling_sends_no_rows_between_steps(sent: dict[str, list[Collective]]):
    in_loops = [one for one in sent["sample"] if one.depth and "data" in one.axes]
    assert not [one for one in in_loops if one.kind in ("all-gather", "all-to-all")]
