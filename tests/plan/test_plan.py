"""The planner: numbers from compiled programs, costs derived from them, and real programs compiled for TPUs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from program import ROOT

from launch.hardware import hardware_of
from launch.prices import CHIPS
from rl_llm.cli import main
from rl_llm.commands.plan import parse_mesh
from rl_llm.parallel.mesh import MeshShape
from rl_llm.plan import PlanError
from rl_llm.plan.collectives import Collective, by_kind, read_collectives
from rl_llm.plan.cost import PhaseCost, StepCost
from rl_llm.plan.programs import wanted_bytes
from rl_llm.plan.topology import ON_ONE_HOST, SLICES, parse_topology, topology_devices

EXPERIMENT = "tests/data/qwen3_0_6b_short.py"
MESH = {"data": 2, "fsdp": 2, "tensor": 4}
AS_USERS = {**os.environ, "XLA_FLAGS": ""}  # the TPU compiler must not compile cheaply

# A loop of 36 iterations inside a loop that stops on data, with every notation of partition groups.
PROGRAM = """HloModule jit_generate, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%layer (p: (s32[], f32[8,32])) -> (s32[], f32[8,32]) {
  %all-reduce.1 = f32[8,32]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups=[4,4]<=[16], to_apply=%add, metadata={op_name="jit(generate)/while/body/while/body/dot"}
  %all-gather.1 = bf16[64,32]{1,0} all-gather(%y), channel_id=2, replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=4] {'axis_1'}, dimensions={0}
}

%thirty_six (p: (s32[], f32[8,32])) -> pred[] {
  %limit = s32[]{:T(128)} constant(36)
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%token (p: (s32[], f32[8,32])) -> (s32[], f32[8,32]) {
  %while.2 = (s32[], f32[8,32]) while(%t), condition=%thirty_six, body=%layer
}

%not_all_ended (p: (s32[], f32[8,32])) -> pred[] {
  ROOT %and = pred[] and(%a, %b)
}

%all-reduce-scatter.1 (i: f32[64,32]) -> f32[16,32] {
  %all-reduce.9 = f32[64,32]{1,0} all-reduce(%i), channel_id=9, replica_groups=[8,2]<=[2,2,4]T(1,2,0), to_apply=%add
}

ENTRY %main (p: f32[8,32]) -> f32[8,32] {
  %while.1 = (s32[], f32[8,32]) while(%t), condition=%not_all_ended, body=%token
  %fusion.1 = f32[16,32] fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %all-gather-start.1 = (f32[8,4]{1,0}, f32[8,16]{1,0}) all-gather-start(%z), channel_id=5, replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, dimensions={1}
  %all-gather-done.1 = f32[8,16]{1,0} all-gather-done(%all-gather-start.1)
  ROOT %collective-permute.1 = f32[8,32] collective-permute(%w), channel_id=6, source_target_pairs={{0,8},{8,0}}
}
"""  # noqa: E501


def test_collectives_are_counted_with_their_enclosing_loops():
    found = {(one.kind, one.axes): one for one in read_collectives(PROGRAM, MESH)}
    in_layer = found["all-reduce", ("tensor",)]
    assert (in_layer.times, in_layer.depth, in_layer.open_loops) == (36, 2, 1)
    assert in_layer.bytes == 2 * 8 * 32 * 4 * 3 / 4
    assert found["all-gather", ("fsdp",)].total == 36 * 64 * 32 * 2 / 2
    assert found["reduce-scatter", ("data",)].bytes == 64 * 32 * 4 / 2
    assert found["all-gather", ("tensor",)].bytes == 8 * 16 * 4 * 3 / 4
    assert found["collective-permute", ("data",)].bytes == 8 * 32 * 4
    assert len(found) == 5


def test_collectives_add_up_by_kind_largest_first():
    small = Collective("all-reduce", ("tensor",), 10.0, 3, 1, 0, "")
    large = Collective("all-gather", ("data", "fsdp"), 100.0, 1, 0, 0, "")
    assert list(by_kind([small, large, small]).items()) == [
        ("all-gather over data+fsdp", (1, 100.0)),
        ("all-reduce over tensor", (6, 60.0)),
    ]


def test_the_slowest_of_compute_memory_and_network_decides():
    phases = {"decode": PhaseCost(1.0, 4.0, 2.0), "update": PhaseCost(8.0, 1.0, 3.0)}
    cost = StepCost(phases, flops=1e15, tokens=1200.0, steps=300, chips=16)
    assert [phase.bound for phase in phases.values()] == ["memory", "compute"]
    assert cost.seconds == 12.0
    assert replace(cost, side_by_side=True).seconds == 8.0
    assert cost.chip_hours == 12.0 * 300 * 16 / 3600
    assert CHIPS["v6e"].dollars(cost.chip_hours) == pytest.approx(16 * 2.70)
    assert CHIPS["v6e"].dollars(cost.chip_hours, spot=True) < CHIPS["v6e"].dollars(cost.chip_hours)


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("the total memory required for HLO temporaries (76.55G) exceeds available HBM (31.25G).", 76.55),
        ("Ran out of memory in memory space hbm. Used 512.00M of 31.25G hbm.", 0.5),
        ("something else", 0.0),
    ],
)
def test_out_of_memory_messages_name_the_memory_needed(message: str, gib: float):
    assert wanted_bytes(message) == pytest.approx(gib * 2**30)


def test_every_slice_has_memory_and_the_chips_in_its_name():
    for kind, shapes in SLICES.items():
        for shape in shapes:
            found = parse_topology(f"{kind}:{shape}")
            assert 0 < found.usable_gib < found.chip.hbm_gib
    assert parse_topology("v5p:2x2x4").chips == 16


@pytest.mark.parametrize("name", ["v6e", "v6e:5x5", "v7:2x2", "h100:8", ""])
def test_an_unknown_slice_is_refused_with_a_list_of_known_ones(name: str):
    with pytest.raises(PlanError, match=r"v6e: 1x1  2x2  2x4  4x4"):
        parse_topology(name)


def test_a_missing_compiler_is_reported_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rl_llm.plan.topology.find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"pip install 'rl-llm\[tpu\]'"):
        topology_devices(parse_topology("v6e:2x2"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--topology", "v6e:9x9"), "v6e:9x9: unknown"),
        (("--topology", "v6e:2x2", "--search", "--mesh", "fsdp=4"), "leave out --mesh fsdp=4"),
        (("--topology", "v6e:2x2", "--search", "--set", "mesh.fsdp=4"), "chooses mesh: leave out --set mesh.fsdp=4"),
        (("--topology", "v6e:2x2", "--search", "--set", "micro_batches=2"), "leave out --set micro_batches=2"),
        (("--topology", "v6e:2x2", "--mesh", "fsdp=4", "--set", "mesh.data=1"), "--mesh chooses mesh"),
        (("--topology", "v6e:2x2", "--candidates", "2"), "--candidates 2 cannot act without --search"),
        (("--topology", "v6e:2x2", "--json", "nowhere/plan.json"), "there is no folder nowhere"),
    ],
)
def test_wrong_usage_is_refused_at_once(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture):
    assert main(["plan", EXPERIMENT, *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--steps", "--candidates"])
def test_counts_are_at_least_one(option: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", EXPERIMENT, "--topology", "v6e:2x2", "--search", option, "0"])
    assert f"{option}: must be a whole number of at least 1, not '0'" in capsys.readouterr().err


def test_a_mesh_takes_the_remaining_devices_along_data_by_default():
    assert parse_mesh("fsdp=4,tensor=2") == MeshShape(-1, 4, 2)
    assert parse_mesh("data=2,fsdp=-1") == MeshShape(2, -1, 1)


@pytest.mark.parametrize("text", ["fsdp", "fsdp=x", "rows=2", "data=2,data=2", "data=-1,fsdp=-1", "tensor=0"])
def test_a_mesh_that_makes_no_sense_is_refused(text: str):
    with pytest.raises(PlanError, match="--mesh"):
        parse_mesh(text)


def test_single_host_slices_agree_with_the_launcher():
    one = {shape for kind, shapes in SLICES.items() for shape in shapes if hardware_of(kind, shape).hosts == 1}
    assert one == set(ON_ONE_HOST)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'rl-llm[tpu]'")
@pytest.mark.parametrize(
    ("slice_", "mesh"),
    [
        pytest.param(
            *("v6e:2x2", "data=1,fsdp=2,tensor=2"),
            marks=pytest.mark.nightly("v5p:2x2x1 is compiled, and small programs for v6e"),
        ),
        ("v5p:2x2x1", "data=2,fsdp=1,tensor=2"),
    ],
)
def test_a_small_qwen3_fits_and_its_cache_is_updated_in_place(slice_: str, mesh: str, tmp_path: Path):
    plan = planned(tmp_path, "--topology", slice_, "--mesh", mesh)
    assert plan["fits"]
    sample, update = plan["gib_per_chip"]["sample"], plan["gib_per_chip"]["update"]
    assert 0 < update["parameters"] < update["state"] < update["peak"] < plan["usable_gib"]
    assert sample["temporaries"] - sample["cache"] - sample["copied"] < 0.1 * sample["cache"]
    every_token = plan["collectives"]["sample"]["each_token"]
    assert [name for name in every_token if name.startswith("all-gather") and ("data" in name or "fsdp" in name)] == []
    assert plan["dollars"] > plan["dollars_spot"] > 0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'rl-llm[tpu]'")
def test_a_plan_that_does_not_fit_advises_a_change(tmp_path: Path):
    plan = planned(tmp_path, "--topology", "v5e:1x1", code=1)
    assert not plan["fits"]
    assert "sampling_batches" in plan["advice"] or "larger slice" in plan["advice"]


MANY = ("--set", "train_problems=200", "--set", "prompts_per_step=192")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'rl-llm[tpu]'")
@pytest.mark.parametrize(
    ("slice_", "options", "code", "said"),
    [
        ("v6e:2x4", (), 0, "compiling sample"),  # one host: its first four chips learn
        ("v6e:2x4", ("--search", "--candidates", "1"), 0, "compiling for"),
        # Four hosts: the chips in the middle learn.
        ("v6e:4x4", ("--set", "prompts_per_step=16", "--set", "mesh.data=8", "--set", "sampler_mesh.data=4"), 0, ""),
        # The larger part is in the middle.
        pytest.param(
            "v6e:4x8",
            (*MANY, "--set", "mesh.data=8", "--set", "sampler_mesh.data=12"),
            0,
            "",
            marks=pytest.mark.nightly("test_mesh.py places the larger part; v6e:4x4 is compiled"),
        ),
        (
            "v6e:8x8",
            (*MANY, "--set", "mesh.data=32", "--set", "sampler_mesh.data=16"),
            2,
            "sampler_mesh takes 32 of 64 chips",
        ),
        (
            "v6e:8x8",
            (*MANY, "--search", "--set", "sampler_mesh.data=16"),
            2,
            "refused: sampler_mesh takes",
        ),
    ],
)
def test_a_separate_sampler_is_planned_or_refused(slice_: str, options: tuple[str, ...], code: int, said: str):
    command = [sys.executable, "-m", "rl_llm", "plan", "tests/data/techniques.py:apart", "--topology", slice_, *options]
    done = subprocess.run(command, cwd=ROOT, env=AS_USERS, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr
    # Several hosts gather the weights before they send them.
    assert ("weights to the" in done.stdout) == (code == 0 and slice_ != "v6e:2x4")


def planned(folder: Path, *arguments: str, code: int = 0) -> dict:
    """The plan of the small experiment, from the command in its own process, which configures JAX for itself."""
    out = folder / "plan.json"
    command = [sys.executable, "-m", "rl_llm", "plan", EXPERIMENT, *arguments, "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=AS_USERS, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(out.read_text())
