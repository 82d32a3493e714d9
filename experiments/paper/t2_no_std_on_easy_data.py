"""T2: no division by the standard deviation on easy data.

Claim (arXiv 2508.08221, section 4.1.1): on easy data, where nearly all rewards are equal, dividing by their small
standard deviation makes gradients blow up, and leaving it out is better and more stable; on hard data it makes no
difference. Adam hardly notices a factor common to all advantages, except through gradient clipping, which at its
default norm of 1 hardly acts here. So there are arms with a tight clip that acts at most updates. One of them scales
its advantages to be as large without the std as with it, to test the claim at equal step sizes.

Measured by `rl-llm ablate experiments/paper/t2_no_std_on_easy_data.py`, 5 seeds, differences with 95 % intervals:

* Easy: no std ends higher: undecided, +0.019 [-0.122, +0.161].
* Easy: no std loses less: undecided, -0.031 [-0.169, +0.107].
* Easy, clipped: no std ends higher: undecided, +0.013 [-0.070, +0.096].
* Easy, clipped, as large: it makes no difference: undecided, -0.072 [-0.231, +0.088].
* Hard: it makes no difference: undecided, -0.057 [-0.159, +0.045].
"""

from dataclasses import replace

from experiments.paper.scales import at_each_scale, base, starts
from rl_llm.algorithms import LITE_PPO, Normalize
from rl_llm.experiment import Experiment
from rl_llm.rewards.components import Accuracy, Reward
from rl_llm.studies import Drop, Final, Hypothesis, Study

TIGHT = 0.1  # gradient norm, exceeded by about half the updates without the std and nearly all with it
AS_LARGE = 4.0  # mean over a run of 1 / std of the rewards


def study(scale: str) -> Study:
    def arm(data: str, std: bool, norm: float = base(scale).optimizer.max_gradient_norm) -> Experiment:
        experiment = base(scale, data=data)
        algorithm = replace(LITE_PPO, advantage=Normalize("group", "batch" if std else "none"))
        optimizer = replace(experiment.optimizer, max_gradient_norm=norm)
        return replace(experiment, algorithm=algorithm, optimizer=optimizer)

    no_std_clipped = arm("easy", False, TIGHT)
    return Study(
        title="T2: with and without the std, on easy and on hard data",
        starts=starts(scale, ("weak", "small")),
        arms={
            "easy_std": arm("easy", True),
            "easy_no_std": arm("easy", False),
            "easy_std_clipped": arm("easy", True, TIGHT),
            "easy_no_std_clipped": no_std_clipped,
            "easy_no_std_clipped_as_large": replace(no_std_clipped, reward=Reward((Accuracy(AS_LARGE),))),
            "hard_std": arm("hard", True),
            "hard_no_std": arm("hard", False),
        },
        hypotheses=(
            Hypothesis("Easy: no std ends higher", "easy_no_std", "easy_std", Final(), "greater", 0.02),
            Hypothesis("Easy: no std loses less", "easy_no_std", "easy_std", Drop(), "less", 0.02),
            Hypothesis(
                "Easy, clipped: no std ends higher", "easy_no_std_clipped", "easy_std_clipped", Final(), "greater", 0.02
            ),
            Hypothesis(
                "Easy, clipped, as large: it makes no difference",
                "easy_no_std_clipped_as_large",
                "easy_std_clipped",
                Final(),
                "none",
                0.02,
            ),
            Hypothesis("Hard: it makes no difference", "hard_no_std", "hard_std", Final(), "none", 0.02),
        ),
    )


STUDY = at_each_scale(study)
