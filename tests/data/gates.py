"""Three tiny runs that differ in one number. One has a gate that no policy passes after three updates.

Run:    rl-llm ablate tests/data/gates.py --seeds 1 --population 3 --jobs 1 --out runs/gates
"""

from dataclasses import replace

from rl_llm.experiment import Experiment
from tests.data import tiny


def _at(least: float) -> Experiment:
    warm_start = tiny.base.warm_start
    assert warm_start is not None
    assert warm_start.gate is not None
    gate = replace(warm_start.gate, minimum=least)
    return replace(tiny.base, steps=2, warm_start=replace(warm_start, steps=3, gate=gate))


ABLATION = {"passes": _at(0.0), "fails": _at(1.0), "passes_too": _at(0.0)}
