"""Initialization x learning rate x warm-up: where training learns, stalls and collapses.

arXiv 2508.08221 makes no such claim: it has one rate (1e-6, 50 warm-up steps) and published weights, and its "base" and
"aligned" models differ in where a run starts. The arms are weak and strong warm starts over two decades of rates around
the quickstart's 5e-4, with and without warm-up. Further weak starts have other initial parameters (half and double the
standard deviations; 0.02 everywhere) or as many demonstrations with fewer or more written steps. The table of all arms
that `rl-llm ablate` writes is the map.

Measured by `rl-llm ablate experiments/paper/initialization_and_learning_rate.py`, 5 seeds, differences with 95 %
intervals:

* Weak: the highest rate ends lower: supported, -0.853 [-0.940, -0.765].
* Weak: the lowest rate ends lower: undecided, -0.097 [-0.197, +0.003].
* Strong: the highest rate ends lower: supported, -0.866 [-0.999, -0.733].
* Strong: the highest rate loses its best: undecided, +0.052 [-0.032, +0.135].
* Weak: no warm-up makes no difference: undecided, -0.134 [-0.443, +0.176].
* A strong start ends higher: undecided, +0.013 [-0.145, +0.172].
* Drawn otherwise (half), it ends alike: undecided, -0.195 [-0.580, +0.191].
* Drawn otherwise (double), it ends alike: undecided, -0.065 [-0.176, +0.045].
* Drawn otherwise (fixed), it ends alike: undecided, -0.478 [-0.784, -0.171].
* Shown fewer steps, it ends lower: supported, -0.656 [-0.758, -0.554].
* Shown more steps, it ends higher: undecided, -0.163 [-0.362, +0.035].
"""

from dataclasses import replace

from experiments.paper.scales import POLICIES, STRONG, TASK, at_each_scale, base, start, starts
from rl_llm.experiment import Experiment
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import Initialization
from rl_llm.studies import Drop, Final, Hypothesis, Study
from rl_llm.tasks.modular_sum import Demonstrations

RATES = {"smoke": (1e-4, 1e-3, 1e-2), "cpu": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "paper": (1e-7, 3e-7, 1e-6, 3e-6, 1e-5)}
WARMUP = {"smoke": 1, "cpu": 4, "paper": 50}
DRAWN = {
    "half": Initialization(scale=0.5),
    "double": Initialization(scale=2.0),
    "fixed": Initialization("fixed"),
}
SHOWN = {
    "brief": Demonstrations(direct=0.90, two_per_step=0.05, one_per_step=0.05, slip=0.05),
    "written": STRONG.demonstrations,
}


def others(scale: str) -> dict[str, Experiment]:
    """Starts that each differ from the weak one in one respect, without a gate on the reached skill."""
    if scale == "paper":
        return {}
    weak = start(scale)
    assert weak.warm_start is not None
    weak = replace(weak, warm_start=replace(weak.warm_start, gate=None))
    drawn = {name: replace(weak, initialization=how) for name, how in DRAWN.items()}
    shown = {name: replace(weak, task=replace(TASK, demonstrations=mixture)) for name, mixture in SHOWN.items()}
    return drawn | shown


def study(scale: str) -> Study:
    low, *_, high = rates = RATES[scale]
    middle = rates[len(rates) // 2]

    def arm(policy: str, rate: float, warmup: int = WARMUP[scale]) -> Experiment:
        experiment = base(scale, policy) if policy in POLICIES else replace(base(scale), start=policy)
        return replace(experiment, optimizer=AdamW(rate, warmup_updates=warmup))

    arms = {f"{policy}_{rate:g}": arm(policy, rate) for policy in POLICIES for rate in rates}
    arms |= {f"{policy}_{rate:g}_no_warmup": arm(policy, rate, 0) for policy in POLICIES for rate in (middle, high)}
    begun = others(scale)
    arms |= {f"{name}_{middle:g}": arm(name, middle) for name in begun}
    weak, strong = f"weak_{middle:g}", f"strong_{middle:g}"
    hypotheses = [
        Hypothesis("Weak: the highest rate ends lower", f"weak_{high:g}", weak, Final(), "less", 0.02),
        Hypothesis("Weak: the lowest rate ends lower", f"weak_{low:g}", weak, Final(), "less", 0.02),
        Hypothesis("Strong: the highest rate ends lower", f"strong_{high:g}", strong, Final(), "less", 0.02),
        Hypothesis("Strong: the highest rate loses its best", f"strong_{high:g}", strong, Drop(), "greater", 0.02),
        Hypothesis("Weak: no warm-up makes no difference", f"{weak}_no_warmup", weak, Final(), "none", 0.02),
        Hypothesis("A strong start ends higher", strong, weak, Final(), "greater", 0.02),
    ]
    hypotheses += [
        Hypothesis(f"Drawn otherwise ({name}), it ends alike", f"{name}_{middle:g}", weak, Final(), "none", 0.02)
        for name in DRAWN
        if name in begun
    ]
    if begun:
        brief, written = (f"{name}_{middle:g}" for name in SHOWN)
        hypotheses += [
            Hypothesis("Shown fewer steps, it ends lower", brief, weak, Final(), "less", 0.02),
            Hypothesis("Shown more steps, it ends higher", written, weak, Final(), "greater", 0.02),
        ]
    return Study(
        title="Initialization x learning rate",
        starts={**starts(scale, *((policy, "small") for policy in POLICIES)), **begun},
        arms=arms,
        hypotheses=tuple(hypotheses),
    )


STUDY = at_each_scale(study)
