"""T1: normalisation by group and by batch, under rewards of several scales.

Claim (arXiv 2508.08221, contribution 1; its section is in the first version only): group-level normalisation works
under every reward, and batch-level normalisation becomes more stable as the reward scale grows. Both divide by the
scale, so only `eps` and rewards that are not binary can differ. The graded reward here gives half a point for written
steps.

Measured by `rl-llm ablate experiments/paper/t1_normalization_and_reward_scale.py`, 5 seeds, differences with 95 %
intervals:

* Group norm beats none: contradicted, -0.025 [-0.038, -0.012].
* Batch norm falls behind group norm: no effect, -0.008 [-0.019, +0.002].
* A tenfold reward helps batch norm: no effect, +0.000 [+0.000, +0.000].
* A tenfold reward steadies batch norm: no effect, +0.000 [+0.000, +0.000].
* A tenfold reward leaves group norm: supported, -0.001 [-0.005, +0.002].
* A graded reward helps group norm: undecided, +0.004 [-0.024, +0.032].
"""

from dataclasses import dataclass, replace

from experiments.paper.scales import at_each_scale, base, starts
from rl_llm.algorithms import LITE_PPO, Normalize
from rl_llm.problem import Problem
from rl_llm.rewards.components import Accuracy, Reward
from rl_llm.studies import Drop, Final, Hypothesis, Study


@dataclass(frozen=True)
class WritesSteps:
    """1 for a response that starts with written thinking."""

    weight: float = 0.5

    def __call__(self, problem: Problem, response: str, accuracy: float) -> float:
        return float(response.startswith("<think>"))


NORMS = {
    "raw": Normalize("none", "none"),
    "group": Normalize("group", "group"),
    "batch": Normalize("batch", "batch"),
}
REWARDS = {
    "binary": Reward(),
    "tenfold": Reward((Accuracy(10.0),)),
    "graded": Reward((Accuracy(), WritesSteps())),
}


def study(scale: str) -> Study:
    lite = base(scale)
    arms = {
        f"{norm}_{name}": replace(lite, algorithm=replace(LITE_PPO, advantage=value), reward=reward)
        for norm, value in NORMS.items()
        for name, reward in REWARDS.items()
    }
    return Study(
        title="T1: group and batch normalisation under several rewards",
        starts=starts(scale, ("weak", "small")),
        arms=arms,
        hypotheses=(
            Hypothesis("Group norm beats none", "group_binary", "raw_binary", Final(), "greater", 0.02),
            Hypothesis("Batch norm falls behind group norm", "batch_binary", "group_binary", Final(), "less", 0.02),
            Hypothesis("A tenfold reward helps batch norm", "batch_tenfold", "batch_binary", Final(), "greater", 0.02),
            Hypothesis("A tenfold reward steadies batch norm", "batch_tenfold", "batch_binary", Drop(), "less", 0.02),
            Hypothesis("A tenfold reward leaves group norm", "group_tenfold", "group_binary", Final(), "none", 0.02),
            Hypothesis("A graded reward helps group norm", "group_graded", "group_binary", Final(), "greater", 0.02),
        ),
    )


STUDY = at_each_scale(study)
