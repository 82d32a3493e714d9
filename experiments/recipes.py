"""Every recipe on the quickstart's policy: the same warm start, steps and prompts, another algorithm.

Run:    rl-llm train experiments/recipes.py:DAPO --seed 0

Recipes with a divergence measure it from the policy that RL began with. `stale` is Lite PPO with four updates per
rollout and a sampler two steps behind, corrected by truncated importance weights.

Measured, seed 0 alone (too few to rank them: Lite PPO's own seeds lie between 0.976 and 0.984), held-out accuracy of
samples from 0.421 before RL to: LITE_PPO 0.976; DAPO 0.986; GRPO 0.979; GRPO_KL 0.964; GSPO_SEQUENCE 0.960;
CISPO_SCALE_RL 0.985; LEAVE_ONE_OUT 0.988; REINFORCE 0.984; REINFORCE_PLUS_PLUS 0.982; dr_grpo 0.981; stale 0.983. All
generated 649 to 665 thousand tokens.
"""

from dataclasses import replace

from experiments.quickstart import base as quickstart
from rl_llm import algorithms

base = quickstart

ABLATION = {
    name: replace(base, algorithm=recipe, reference=algorithms.Reference() if "ref_logp" in recipe.needs else None)
    for name, recipe in vars(algorithms).items()
    if isinstance(recipe, algorithms.Algorithm)
}
ABLATION["dr_grpo"] = replace(base, algorithm=algorithms.dr_grpo(base.sampling.max_tokens))
ABLATION["remax"] = replace(base, algorithm=replace(algorithms.LITE_PPO, advantage=algorithms.ReMax()))
ABLATION["stale"] = replace(
    base,
    algorithm=replace(algorithms.LITE_PPO, corrections=(algorithms.ImportanceWeight(),)),
    updates_per_rollout=4,
    micro_batches=3,
    staleness=2,
)
