"""Every recipe on the quickstart's policy: the same warm start, steps and prompts, another algorithm.

Run:    rl-llm train experiments/recipes.py:DAPO --seed 0

Recipes with a divergence measure it from the policy that RL began with; a critic learns alone in the first steps.
"""

from dataclasses import replace

from experiments.quickstart import base as quickstart
from rl_llm import algorithms
from rl_llm.critic import Critic
from rl_llm.curriculum import Curriculum, DynamicSampling
from rl_llm.experiment import Experiment
from rl_llm.optimizer import AdamW

base = quickstart
CRITIC = Critic(AdamW(1e-3, warmup_updates=4, schedule="linear", final_fraction=0.1), pretraining_steps=2)


def with_algorithm(experiment: Experiment, algorithm: algorithms.Algorithm, critic: Critic) -> Experiment:
    """An experiment with another algorithm and what that needs beside it."""
    return replace(
        experiment,
        algorithm=algorithm,
        reference=algorithms.Reference() if algorithm.needs & {"ref_logp", "kl_baseline"} else None,
        critic=critic if algorithm.value_loss is not None else None,
        staleness=1 if algorithm.corrections else 0,
    )


ARMS = {
    name: with_algorithm(base, recipe, CRITIC)
    for name, recipe in vars(algorithms).items()
    if isinstance(recipe, algorithms.Algorithm)
    and recipe not in (algorithms.REWARD_MODEL, algorithms.ON_POLICY_DISTILLATION, algorithms.GKD)
}
ARMS["DAPO"] = replace(ARMS["DAPO"], dynamic_sampling=DynamicSampling(max_rollouts=3))
ARMS["OLMO_3_ZERO"] = replace(
    ARMS["OLMO_3_ZERO"], dynamic_sampling=DynamicSampling(max_rollouts=3), curriculum=Curriculum(drop_solved=0.9)
)
ARMS["dr_grpo"] = replace(base, algorithm=algorithms.dr_grpo(base.sampling.max_tokens))
ARMS["remax"] = replace(base, algorithm=replace(algorithms.LITE_PPO, advantage=algorithms.ReMax()))
ARMS["stale"] = replace(
    base,
    algorithm=replace(algorithms.LITE_PPO, corrections=(algorithms.ImportanceWeight(),)),
    updates_per_rollout=4,
    micro_batches=3,
    staleness=2,
)
ABLATION = ARMS
