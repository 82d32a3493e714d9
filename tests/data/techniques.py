"""The tiny experiment with what only some algorithms need: a reference policy, moments, stale samplers, recipes.

Run:    rl-llm train tests/data/techniques.py:everything --out runs/everything
"""

from dataclasses import replace

from rl_llm import algorithms  # as a module: its recipes' names are the experiments' below
from rl_llm.algorithms import ImportanceWeight, KLInReward, Normalize, Reference, ReMax, RewardToGo
from tests.data import tiny

base = replace(tiny.base, steps=4, evaluation=replace(tiny.base.evaluation, every=0))

# All that a train state can carry, at once.
everything = replace(
    base,
    algorithm=replace(
        algorithms.GRPO_KL,
        advantage=Normalize(mean="running", std="running"),
        corrections=(ImportanceWeight(),),
    ),
    reference=Reference(reset_every=2),
    staleness=2,
)

remax = replace(base, algorithm=replace(algorithms.LITE_PPO, advantage=ReMax()))
following = replace(
    base,
    algorithm=replace(algorithms.LITE_PPO, advantage=RewardToGo(), shaping=(KLInReward(),)),
    reference=Reference(decay=0.5),
)

RECIPES = {
    name: replace(base, algorithm=recipe, reference=Reference() if "ref_logp" in recipe.needs else None)
    for name, recipe in vars(algorithms).items()
    if isinstance(recipe, algorithms.Algorithm)
}
ABLATION = {**RECIPES, "dr_grpo": replace(base, algorithm=algorithms.dr_grpo(base.sampling.max_tokens))}
