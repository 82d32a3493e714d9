"""Every recipe on the quickstart's policy: the same warm start, steps and prompts, another algorithm.

Run:    rl-llm train experiments/recipes.py:DAPO --seed 0

Recipes with a divergence measure it from the policy that RL began with. `stale` is Lite PPO with four updates per
rollout and a sampler two steps behind, corrected by truncated importance weights.
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
