"""The tiny experiment with optional parts: everything a state can carry, recipes, and all that surrounds an algorithm.

Run:    rl-llm train tests/data/techniques.py:everything --out runs/everything
"""

from dataclasses import replace

from experiments.recipes import with_algorithm
from rl_llm import algorithms  # as a module: its recipes' names are the experiments' below
from rl_llm.algorithms import (
    GAE,
    AdaptiveKL,
    Distillation,
    EntropyBonus,
    EntropyTarget,
    GeneralizedJSD,
    ImportanceWeight,
    KLInReward,
    KLPenalty,
    LengthAdaptive,
    Normalize,
    Reference,
    ReMax,
    RewardToGo,
    ZeroVariance,
)
from rl_llm.experiment import (
    Conversations,
    Curriculum,
    Difficulty,
    DynamicSampling,
    Mixture,
    Replay,
    ResponseLength,
    RewardModel,
    StoredResponses,
    Teacher,
    WarmStart,
)
from rl_llm.learner.critic import Critic
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import Lora
from rl_llm.parallel.mesh import MeshShape
from tests.data import tiny

base = replace(
    tiny.base,
    steps=4,
    evaluation=replace(tiny.base.evaluation, every=0),
    checkpointing=replace(tiny.base.checkpointing, keep_best=False),
)
CRITIC = Critic(AdamW(1e-2))

# All that a train state can carry, at once.
everything = replace(
    base,
    algorithm=replace(
        algorithms.GRPO_KL,
        advantage=Normalize(mean="running", std="running"),
        corrections=(ImportanceWeight(),),
        regularizers=(*algorithms.GRPO_KL.regularizers, EntropyBonus(0.05, EntropyTarget(5.0))),
    ),
    reference=Reference(reset_every=2),
    staleness=2,
    replay=Replay(max_age=2),
    curriculum=Curriculum(drop_solved=0.75),
)
lora = replace(everything, model=replace(base.model, lora=Lora(rank=8, alpha=16.0, targets=("query", "value", "down"))))
small = replace(  # in memory
    everything,
    reference=Reference(reset_every=2, offload=True),
    optimizer=replace(base.optimizer, beta2=0.95, moments_dtype="bfloat16"),
    warm_start=replace(base.warm_start, optimizer=replace(base.warm_start.optimizer, beta2=0.9)),
)
critic = replace(base, algorithm=algorithms.PPO, critic=replace(CRITIC, pretraining_steps=1), staleness=1)
# The sampler on four devices of its own, which follow the learner's four.
apart = replace(base, staleness=1, mesh=MeshShape(4), sampler_mesh=MeshShape(2, fsdp=2))
together = replace(apart, sampler_mesh=None)
shared_critic = replace(critic, critic=Critic(AdamW(1e-2), shared=True, coefficient=0.5, pretraining_steps=1))

remax = replace(base, algorithm=replace(algorithms.LITE_PPO, advantage=ReMax()))
following = replace(
    base,
    algorithm=replace(algorithms.LITE_PPO, advantage=RewardToGo(), shaping=(KLInReward(controller=AdaptiveKL()),)),
    reference=Reference(decay=0.5),
)
selecting = replace(
    base,
    algorithm=replace(algorithms.LITE_PPO, filters=(ZeroVariance(),)),
    dynamic_sampling=DynamicSampling(max_rollouts=3),
    curriculum=Curriculum(Difficulty(first_share=0.6, steps=3), ResponseLength(first=6, steps=3), drop_solved=0.75),
)
full_kl = replace(
    base,
    algorithm=replace(
        algorithms.LITE_PPO, regularizers=(KLPenalty(0.01), Distillation(GeneralizedJSD(beta=1.0), coefficient=0.1))
    ),
    reference=Reference(top_tokens=tiny.base.model.vocabulary),
)
full_kl_in_reward = replace(
    full_kl, algorithm=replace(algorithms.LITE_PPO, advantage=RewardToGo(), shaping=(algorithms.FullKLInReward(0.5),))
)
mixed = replace(base, mixture=Mixture(per_update=8, max_tokens=28, coefficient=0.5))

# These learn from another run (--set start=..., teacher.run=..., reward_model.run=...) or a file
# (responses.path=..., warm_start.demonstrations.path=...).
OTHER, FILE = "runs/other", "runs/judged.jsonl"
started = replace(base, warm_start=None, start=OTHER)
from_file = replace(
    base,
    warm_start=WarmStart(
        4, AdamW(3e-2), demonstrations=Conversations("runs/pairs.jsonl", rows_per_step=16, row_tokens=48)
    ),
)
on_policy_distillation = replace(base, algorithm=algorithms.ON_POLICY_DISTILLATION, teacher=Teacher(OTHER))
gkd = replace(base, algorithm=algorithms.GKD, teacher=Teacher(OTHER, top_tokens=4, on_policy=0.5))
stored = replace(base, responses=StoredResponses(FILE))
offline_dpo = with_algorithm(stored, algorithms.DIRECT_PREFERENCE, CRITIC)
offline_kto = with_algorithm(stored, algorithms.KAHNEMAN_TVERSKY, CRITIC)
offline_logits = replace(base, algorithm=algorithms.GKD, responses=StoredResponses(FILE, top_tokens=4))
reward_model = with_algorithm(stored, algorithms.REWARD_MODEL, replace(CRITIC, pretraining_steps=base.steps))
rlhf = replace(base, reward_model=RewardModel(OTHER))

# Published for responses of thousands of tokens; these have 16.
SHORT = {"VAPO": replace(algorithms.VAPO, advantage=GAE(lam=LengthAdaptive(0.2), critic_lam=1.0))}
RECIPES = {
    name: with_algorithm(base, SHORT.get(name, recipe), CRITIC)
    for name, recipe in vars(algorithms).items()
    if isinstance(recipe, algorithms.Algorithm) and "teacher_tokens" not in recipe.needs
}
ABLATION = {**RECIPES, "dr_grpo": replace(base, algorithm=algorithms.dr_grpo(base.sampling.max_tokens))}
