"""Every recipe on the quickstart's policy: the same warm start, steps and problems, different algorithms.

Run:    rl-llm train experiments/recipes.py:warm --seed 0 --out runs/recipes/warm-seed0        once: all start from it
        rl-llm train experiments/recipes.py:DAPO --seed 0
Table:  python experiments/recipes_table.py                    (three seeds, in docs/results.md)

Divergences are measured from RL's initial policy. A critic, if there is one, first learns alone. `stale` is Lite PPO
with four updates per rollout and a sampler two steps behind, corrected by truncated importance weights; `replay` also
learns from a rollout of the last three steps.
"""

from dataclasses import replace

from experiments.quickstart import base as quickstart
from rl_llm import algorithms
from rl_llm.experiment import Curriculum, DynamicSampling, Experiment, Replay
from rl_llm.learner.critic import Critic
from rl_llm.learner.optimizer import AdamW

CRITIC = Critic(AdamW(1e-3, warmup_updates=4, schedule="linear", final_fraction=0.1), pretraining_steps=2)

warm = replace(quickstart, steps=1, optimizer=AdamW(0.0), evaluation=replace(quickstart.evaluation, every=0))
base = replace(
    quickstart,
    warm_start=None,
    start="runs/recipes/warm-seed0",
    steps=24,
    evaluation=replace(quickstart.evaluation, every=3),
)


def with_algorithm(experiment: Experiment, algorithm: algorithms.Algorithm, critic: Critic) -> Experiment:
    """The experiment with another algorithm and the reference, critic and staleness that it needs."""
    return replace(
        experiment,
        algorithm=algorithm,
        reference=algorithms.Reference() if algorithm.needs & {"ref_logp", "kl_baseline"} else None,
        critic=critic if algorithm.value_loss is not None else None,
        staleness=1 if algorithm.corrections else 0,
    )


ABLATION = {
    name: with_algorithm(base, recipe, CRITIC)
    for name, recipe in vars(algorithms).items()
    if isinstance(recipe, algorithms.Algorithm)
    # These need another run: experiments/distillation.py, experiments/preferences.py.
    and recipe not in (algorithms.REWARD_MODEL, algorithms.ON_POLICY_DISTILLATION, algorithms.GKD)
}
ABLATION["DAPO"] = replace(ABLATION["DAPO"], dynamic_sampling=DynamicSampling(max_rollouts=3))
ABLATION["OLMO_3_ZERO"] = replace(
    ABLATION["OLMO_3_ZERO"], dynamic_sampling=DynamicSampling(max_rollouts=3), curriculum=Curriculum(drop_solved=0.9)
)
ABLATION["dr_grpo"] = replace(base, algorithm=algorithms.dr_grpo(base.sampling.max_tokens))
ABLATION["remax"] = replace(base, algorithm=replace(algorithms.LITE_PPO, advantage=algorithms.ReMax()))
ABLATION["stale"] = replace(
    base,
    algorithm=replace(algorithms.LITE_PPO, corrections=(algorithms.ImportanceWeight(),)),
    updates_per_rollout=4,
    micro_batches=3,
    staleness=2,
)
ABLATION["replay"] = replace(ABLATION["stale"], updates_per_rollout=2, micro_batches=6, staleness=0, replay=Replay(3))
