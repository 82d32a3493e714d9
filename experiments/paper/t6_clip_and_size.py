"""T6: the best upper clip bound, by the size of the model.

Claim (arXiv 2508.08221, section 4.2.3): of 0.20, 0.24, 0.28 and 0.32 the largest is best for an aligned model of 4 B,
and 0.28 for one of 8 B: four points, two sizes, one run each. Here two sizes of strong policies differ by a factor 2.9.

Measured by `rl-llm ablate experiments/paper/t6_clip_and_size.py`, 5 seeds, differences with 95 % intervals:

* Small: 0.32 beats 0.20: undecided, -0.008 [-0.032, +0.017].
* Small: 0.32 beats 0.28: undecided, -0.008 [-0.029, +0.014].
* Large: 0.28 beats 0.20: undecided, -0.001 [-0.030, +0.028].
* Large: 0.28 beats 0.32: undecided, +0.011 [-0.019, +0.041].
"""

from experiments.paper.scales import SIZES, at_each_scale, starts
from experiments.paper.t4_clip_higher import arm
from rl_llm.studies import Final, Hypothesis, Study

HIGH = (0.20, 0.24, 0.28, 0.32)


def study(scale: str) -> Study:
    arms = {f"{size}_{high:.2f}": arm(scale, "strong", size, 4, high) for size in SIZES for high in HIGH}
    return Study(
        title="T6: upper clip bounds for two sizes",
        starts=starts(scale, *(("strong", size) for size in SIZES)),
        arms=arms,
        hypotheses=(
            Hypothesis("Small: 0.32 beats 0.20", "small_0.32", "small_0.20", Final(), "greater", 0.02),
            Hypothesis("Small: 0.32 beats 0.28", "small_0.32", "small_0.28", Final(), "greater", 0.02),
            Hypothesis("Large: 0.28 beats 0.20", "large_0.28", "large_0.20", Final(), "greater", 0.02),
            Hypothesis("Large: 0.28 beats 0.32", "large_0.28", "large_0.32", Final(), "greater", 0.02),
        ),
    )


STUDY = at_each_scale(study)
