"""T7: the mean over tokens or over responses, for weak and for strong policies.

Claim (arXiv 2508.08221, section 4.3.1): a token-level loss is better for base models, a sequence-level loss for aligned
ones. A rival explanation (2605.04077): the variance of lengths and the length gap between right and wrong responses
decide. So both policies are trained on short sums and on sums of any length: on the short ones, right and wrong
responses differ by half as many tokens (with about the same ratio). Both lengths are metrics of every run.

Measured by `rl-llm ablate experiments/paper/t7_aggregation.py`, 5 seeds, differences with 95 % intervals:

* Weak: token mean learns sooner: undecided, +0.020 [-0.011, +0.051].
* Weak: token mean ends higher: undecided, +0.034 [-0.015, +0.084].
* Strong: token mean ends lower: undecided, +0.023 [-0.011, +0.057].
* Weak, lengths alike: no difference: undecided, -0.007 [-0.110, +0.096].
* Strong, lengths alike: no difference: undecided, +0.010 [-0.014, +0.035].
"""

from dataclasses import replace

from experiments.paper.scales import POLICIES, at_each_scale, base, starts
from rl_llm.algorithms import LITE_PPO, Aggregate, SequenceMean, TokenMean
from rl_llm.studies import Final, Hypothesis, Speed, Study

DATA = ("easy", "medium")
AGGREGATES: dict[str, Aggregate] = {"token": TokenMean(), "sequence": SequenceMean()}


def study(scale: str) -> Study:
    arms = {
        f"{policy}_{data}_{name}": replace(base(scale, policy, data), algorithm=replace(LITE_PPO, aggregate=aggregate))
        for policy in POLICIES
        for data in DATA
        for name, aggregate in AGGREGATES.items()
    }

    def pair(policy: str, data: str = "medium") -> tuple[str, str]:
        return f"{policy}_{data}_token", f"{policy}_{data}_sequence"

    return Study(
        title="T7: token mean against sequence mean",
        starts=starts(scale, *((policy, "small") for policy in POLICIES)),
        arms=arms,
        hypotheses=(
            Hypothesis("Weak: token mean learns sooner", *pair("weak"), Speed(), "greater", 0.02),
            Hypothesis("Weak: token mean ends higher", *pair("weak"), Final(), "greater", 0.02),
            Hypothesis("Strong: token mean ends lower", *pair("strong"), Final(), "less", 0.02),
            Hypothesis("Weak, lengths alike: no difference", *pair("weak", "easy"), Speed(), "none", 0.02),
            Hypothesis("Strong, lengths alike: no difference", *pair("strong", "easy"), Speed(), "none", 0.02),
        ),
    )


STUDY = at_each_scale(study)
