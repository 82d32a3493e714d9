"""Lite PPO against GRPO and DAPO, and its two parts separately.

Claim (arXiv 2508.08221, section 5): on base models, group mean with batch std and a token-level loss beat GRPO and
DAPO, which collapse after their peak. The paper did not test the two parts separately and gives no coefficients of its
baselines. Here GRPO has no KL term, as in most later work. DAPO resamples groups without a signal, from the same token
budget. Its penalty on long responses starts a fifth below the cap at the scale `paper`, as in its own paper. Smaller
scales leave it out, because there the longest right responses end that close to the cap.

Measured by `rl-llm ablate experiments/paper/lite_ppo.py`, 5 seeds, differences with 95 % intervals:

* Lite PPO ends above GRPO: undecided, +0.026 [+0.000, +0.051].
* Lite PPO ends above DAPO: undecided, +0.036 [-0.007, +0.079].
* Lite PPO learns sooner than GRPO: undecided, +0.022 [-0.024, +0.067].
* Lite PPO learns sooner than DAPO: undecided, +0.075 [+0.016, +0.134].
* GRPO loses more of its best: undecided, +0.009 [-0.035, +0.054].
* DAPO loses more of its best: undecided, -0.009 [-0.028, +0.010].
* Token mean alone learns sooner: undecided, +0.028 [-0.028, +0.084].
* Batch std alone learns sooner: no effect, +0.002 [-0.016, +0.019].
"""

from dataclasses import replace

from experiments.paper.scales import at_each_scale, base, starts
from rl_llm.algorithms import DAPO, GRPO, LITE_PPO, SoftOverlong, TokenMean
from rl_llm.experiment import DynamicSampling
from rl_llm.studies import Drop, Final, Hypothesis, Speed, Study


def study(scale: str) -> Study:
    lite = base(scale)
    cap = lite.sampling.max_tokens
    dapo = replace(DAPO, shaping=(SoftOverlong(cap, cap // 5),)) if scale == "paper" else DAPO
    return Study(
        title="Lite PPO against GRPO and DAPO, and its parts",
        starts=starts(scale, ("weak", "small")),
        arms={
            "lite_ppo": lite,
            "grpo": replace(lite, algorithm=GRPO),
            "grpo_token_mean": replace(lite, algorithm=replace(GRPO, aggregate=TokenMean())),
            "grpo_batch_std": replace(lite, algorithm=replace(GRPO, advantage=LITE_PPO.advantage)),
            "dapo": replace(lite, algorithm=dapo, dynamic_sampling=DynamicSampling(max_rollouts=3)),
        },
        hypotheses=(
            Hypothesis("Lite PPO ends above GRPO", "lite_ppo", "grpo", Final(), "greater", 0.02),
            Hypothesis("Lite PPO ends above DAPO", "lite_ppo", "dapo", Final(), "greater", 0.02),
            Hypothesis("Lite PPO learns sooner than GRPO", "lite_ppo", "grpo", Speed(), "greater", 0.02),
            Hypothesis("Lite PPO learns sooner than DAPO", "lite_ppo", "dapo", Speed(), "greater", 0.02),
            Hypothesis("GRPO loses more of its best", "grpo", "lite_ppo", Drop(), "greater", 0.02),
            Hypothesis("DAPO loses more of its best", "dapo", "lite_ppo", Drop(), "greater", 0.02),
            Hypothesis("Token mean alone learns sooner", "grpo_token_mean", "grpo", Speed(), "greater", 0.02),
            Hypothesis("Batch std alone learns sooner", "grpo_batch_std", "grpo", Speed(), "greater", 0.02),
        ),
    )


STUDY = at_each_scale(study)
