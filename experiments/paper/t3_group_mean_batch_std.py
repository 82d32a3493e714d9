"""T3: a group's mean with the batch's standard deviation.

Claim (arXiv 2508.08221, section 4.1.2): "group mean + batch std" is more robust than "group mean + group std". One run
for each arm was shown, without a table.

Measured by `rl-llm ablate experiments/paper/t3_group_mean_batch_std.py`, five seeds, differences with 95 % intervals:

* Batch std ends higher than group std: no effect, +0.005 [-0.008, +0.018].
* Batch std learns sooner than group std: undecided, -0.007 [-0.031, +0.018].
* Batch std loses less of its best: undecided, -0.003 [-0.034, +0.027].
"""

from dataclasses import replace

from experiments.paper.scales import at_each_scale, base, starts
from rl_llm.algorithms import LITE_PPO, Normalize
from rl_llm.studies import Drop, Final, Hypothesis, Speed, Study


def study(scale: str) -> Study:
    lite = base(scale)
    stds = {
        "batch_std": Normalize("group", "batch"),
        "batch_std_centred": Normalize("group", "batch", std_of="centred"),
        "group_std": Normalize("group", "group"),
        "no_std": Normalize("group", "none"),
    }
    return Study(
        title="T3: group mean with batch std against group std",
        starts=starts(scale, ("weak", "small")),
        arms={name: replace(lite, algorithm=replace(LITE_PPO, advantage=value)) for name, value in stds.items()},
        hypotheses=(
            Hypothesis("Batch std ends higher than group std", "batch_std", "group_std", Final(), "greater", 0.02),
            Hypothesis("Batch std learns sooner than group std", "batch_std", "group_std", Speed(), "greater", 0.02),
            Hypothesis("Batch std loses less of its best", "batch_std", "group_std", Drop(), "less", 0.02),
        ),
    )


STUDY = at_each_scale(study)
