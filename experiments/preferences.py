"""From judged responses to a better policy: directly (DPO, KTO), or through a reward model, as with human feedback.

The judged responses are those of the warm-started policy of experiments/recipes.py to training problems, each with its
reward; the verifier stands in for the person who would judge. Then:

    rl-llm train experiments/recipes.py:warm --seed 0 --out runs/recipes/warm-seed0
    rl-llm evaluate runs/recipes/warm-seed0 --split train --problems 2048 --samples runs/judged.jsonl
    rl-llm train experiments/preferences.py:offline_dpo            learn from the file
    rl-llm train experiments/preferences.py:offline_kto
    rl-llm train experiments/preferences.py:offline_sft            maximum likelihood on what was judged right
    rl-llm train experiments/preferences.py:reward_model --out runs/reward_model
    rl-llm train experiments/preferences.py:rlhf                   RL whose only reward is that model's score
    rl-llm train experiments/preferences.py:rlhf_kl                the same, held near the policy it began with

What comes of it: `python experiments/pipelines_table.py`. Against the reward model alone its score rises to the end,
while accuracy first rises and then falls: the policy learns to please its judge. A KL penalty of 0.1 keeps most of that
from happening.
"""

from dataclasses import replace

from experiments.recipes import CRITIC, base, with_algorithm
from rl_llm import algorithms
from rl_llm.algorithms import LITE_PPO, KLPenalty
from rl_llm.experiment import RewardModel, StoredResponses
from rl_llm.learner.optimizer import AdamW

JUDGED = StoredResponses("runs/judged.jsonl")

stored = replace(base, responses=JUDGED, optimizer=AdamW(3e-4, warmup_updates=6, schedule="linear", final_fraction=0.1))
offline_dpo = with_algorithm(stored, algorithms.DIRECT_PREFERENCE, CRITIC)
# At the others' learning rate KTO pushes what was judged wrong away without end: 0.19 in the end.
slower = replace(stored, optimizer=replace(stored.optimizer, learning_rate=1e-4))
offline_kto = with_algorithm(slower, algorithms.KAHNEMAN_TVERSKY, CRITIC)
offline_sft = with_algorithm(stored, algorithms.REJECTION_SAMPLING, CRITIC)

# All steps train the critic alone, on the judged responses: it is the reward model, and no policy is trained.
reward_model = with_algorithm(
    replace(stored, steps=40, evaluation=replace(stored.evaluation, every=0)),
    algorithms.REWARD_MODEL,
    replace(CRITIC, pretraining_steps=40),
)
rlhf = replace(base, reward_model=RewardModel("runs/reward_model"))
rlhf_kl = with_algorithm(rlhf, replace(LITE_PPO, regularizers=(KLPenalty(coefficient=0.1),)), CRITIC)

ABLATION = {
    "offline_dpo": offline_dpo,
    "offline_kto": offline_kto,
    "offline_sft": offline_sft,
    "reward_model": reward_model,
    "rlhf": rlhf,
    "rlhf_kl": rlhf_kl,
}
