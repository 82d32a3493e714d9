"""T3: a group's mean with the batch's standard deviation.

Claim (arXiv 2508.08221, section 4.1.2): "group mean + batch std" is more robust than "group mean + group std". The
paper shows one run per arm and no table. On medium data, two more arms use the std of the centred rewards and no std.

Measured by `rl-llm ablate experiments/paper/t3_group_mean_batch_std.py`, 5 seeds, differences with 95 % intervals:

* Batch std ends higher than group std: no effect, +0.005 [-0.008, +0.018].
* Batch std learns sooner than group std: undecided, -0.006 [-0.030, +0.018].
* Batch std loses less of its best: undecided, -0.003 [-0.034, +0.027].
* Easy: batch std ends higher: undecided, -0.049 [-0.137, +0.038].
* Hard: batch std ends higher: undecided, -0.019 [-0.053, +0.014].
* Raw or centred, it ends alike: undecided, -0.016 [-0.058, +0.025].
* Without a std it ends lower: undecided, -0.015 [-0.044, +0.014].
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
    arms = {name: replace(lite, algorithm=replace(LITE_PPO, advantage=value)) for name, value in stds.items()}
    arms |= {
        f"{data}_{name}": replace(base(scale, data=data), algorithm=arms[name].algorithm)
        for data in ("easy", "hard")
        for name in ("batch_std", "group_std")
    }
    return Study(
        title="T3: group mean with batch std against group std",
        starts=starts(scale, ("weak", "small")),
        arms=arms,
        hypotheses=(
            Hypothesis("Batch std ends higher than group std", "batch_std", "group_std", Final(), "greater", 0.02),
            Hypothesis("Batch std learns sooner than group std", "batch_std", "group_std", Speed(), "greater", 0.02),
            Hypothesis("Batch std loses less of its best", "batch_std", "group_std", Drop(), "less", 0.02),
            Hypothesis("Easy: batch std ends higher", "easy_batch_std", "easy_group_std", Final(), "greater", 0.02),
            Hypothesis("Hard: batch std ends higher", "hard_batch_std", "hard_group_std", Final(), "greater", 0.02),
            Hypothesis("Raw or centred, it ends alike", "batch_std_centred", "batch_std", Final(), "none", 0.02),
            Hypothesis("Without a std it ends lower", "no_std", "batch_std", Final(), "less", 0.02),
        ),
    )


STUDY = at_each_scale(study)
