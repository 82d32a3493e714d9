"""T2: no standard deviation where rewards are much alike.

Claim (arXiv 2508.08221, section 4.1.1): on easy data, where nearly all rewards are equal, dividing by their small
standard deviation makes gradients blow up, and leaving it out is better and more stable; on hard data it makes no
difference. A factor that all advantages of a step share is nearly invisible to Adam, but for the clipping of the
gradient: hence the arms without that, and one whose advantages are as large without the std as with it.
"""

from dataclasses import replace

from experiments.paper.scales import at_each_scale, base, starts
from rl_llm.algorithms import LITE_PPO, Normalize
from rl_llm.experiment import Experiment
from rl_llm.rewards.components import Accuracy, Reward
from rl_llm.studies import Drop, Final, Hypothesis, Study

UNCLIPPED = 1e9  # a norm that no gradient has
AS_LARGE = 2.2  # 1 / std of rewards of which three quarters are right


def study(scale: str) -> Study:
    def arm(data: str, std: bool) -> Experiment:
        experiment = base(scale, data=data)
        advantage = Normalize("group", "batch" if std else "none")
        return replace(experiment, algorithm=replace(LITE_PPO, advantage=advantage))

    easy_std, easy_no_std = arm("easy", True), arm("easy", False)
    unclipped = replace(easy_std.optimizer, max_gradient_norm=UNCLIPPED)
    return Study(
        title="T2: with and without the std, on easy and on hard data",
        starts=starts(scale, ("weak", "small")),
        arms={
            "easy_std": easy_std,
            "easy_no_std": easy_no_std,
            "easy_no_std_matched": replace(easy_no_std, reward=Reward((Accuracy(AS_LARGE),))),
            "easy_std_unclipped": replace(easy_std, optimizer=unclipped),
            "easy_no_std_unclipped": replace(easy_no_std, optimizer=unclipped),
            "hard_std": arm("hard", True),
            "hard_no_std": arm("hard", False),
        },
        hypotheses=(
            Hypothesis("Easy: no std ends higher", "easy_no_std", "easy_std", Final(), "greater", 0.02),
            Hypothesis("Easy: no std loses less", "easy_no_std", "easy_std", Drop(), "less", 0.02),
            Hypothesis("Easy: as large without the std", "easy_no_std_matched", "easy_std", Final(), "greater", 0.02),
            Hypothesis(
                "Easy, gradient not clipped", "easy_no_std_unclipped", "easy_std_unclipped", Final(), "greater", 0.02
            ),
            Hypothesis("Hard: it makes no difference", "hard_no_std", "hard_std", Final(), "none", 0.02),
        ),
    )


STUDY = at_each_scale(study)
