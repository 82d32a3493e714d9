"""Where training succeeds, stalls and collapses: what a policy begins with x the learning rate x its warm-up.

Not a claim of arXiv 2508.08221, which has one rate (1e-6, 50 warm-up steps) and published weights; what it says of
"base" and "aligned" models is about where a run begins. Weak and strong warm starts, and weak ones whose parameters
were drawn otherwise (half and double the standard deviations; 0.02 everywhere), over two decades of rates around the
quickstart's 5e-4, with and without warm-up. `rl-llm ablate` writes the table of all arms, which is the map.
"""

from dataclasses import replace

from experiments.paper.scales import POLICIES, at_each_scale, base, start, starts
from rl_llm.experiment import Experiment
from rl_llm.model import Initialization
from rl_llm.optimizer import AdamW
from rl_llm.studies import Drop, Final, Hypothesis, Study

RATES = {"smoke": (1e-4, 1e-3, 1e-2), "cpu": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "paper": (1e-7, 3e-7, 1e-6, 3e-6, 1e-5)}
WARMUP = {"smoke": 1, "cpu": 4, "paper": 50}
DRAWN = {
    "half": Initialization(scale=0.5),
    "double": Initialization(scale=2.0),
    "fixed": Initialization("fixed"),
}


def study(scale: str) -> Study:
    low, *_, high = rates = RATES[scale]
    middle = rates[len(rates) // 2]

    def arm(policy: str, rate: float, warmup: int = WARMUP[scale]) -> Experiment:
        begins = "weak" if policy in DRAWN else policy
        experiment = replace(base(scale, begins), optimizer=AdamW(rate, warmup_updates=warmup))
        return replace(experiment, start=policy) if policy in DRAWN else experiment

    arms = {f"{policy}_{rate:g}": arm(policy, rate) for policy in POLICIES for rate in rates}
    arms |= {f"{policy}_{rate:g}_no_warmup": arm(policy, rate, 0) for policy in POLICIES for rate in (middle, high)}
    drawn = {} if scale == "paper" else {name: replace(start(scale), initialization=how) for name, how in DRAWN.items()}
    arms |= {f"{name}_{middle:g}": arm(name, middle) for name in drawn}
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
        for name in drawn
    ]
    return Study(
        title="Initialization x learning rate",
        starts={**starts(scale, *((policy, "small") for policy in POLICIES)), **drawn},
        arms=arms,
        hypotheses=tuple(hypotheses),
    )


STUDY = at_each_scale(study)
