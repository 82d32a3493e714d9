"""Improve a policy from judged responses: directly (DPO, KTO), or through a reward model, as in RLHF.

The judged responses are sampled on training problems from the warm-started policy of experiments/recipes.py. The
verifier's rewards stand in for human judgements.

    rl-llm train experiments/recipes.py:warm --seed 0 --out runs/recipes/warm-seed0
    rl-llm evaluate runs/recipes/warm-seed0 --split train --problems 2048 --responses runs/judged.jsonl
    rl-llm train experiments/preferences.py:offline_dpo            learn from the file
    rl-llm train experiments/preferences.py:offline_kto
    rl-llm train experiments/preferences.py:offline_sft            maximum likelihood on the responses judged right
    rl-llm train experiments/preferences.py:reward_model --out runs/reward_model
    rl-llm train experiments/preferences.py:rlhf                   RL with that model's score as the only reward
    rl-llm train experiments/preferences.py:rlhf_kl                the same with a KL penalty from the initial policy

`python experiments/pipelines_table.py` measures all of them. With the reward model alone, its score rises to the end,
while accuracy first rises and then falls: the policy exploits its judge. A KL penalty of 0.1 prevents most of that.
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
# At the learning rate of the others, KTO pushes wrong responses away without limit: its final accuracy is 0.19.
slower = replace(stored, optimizer=replace(stored.optimizer, learning_rate=1e-4))
offline_kto = with_algorithm(slower, algorithms.KAHNEMAN_TVERSKY, CRITIC)
offline_sft = with_algorithm(stored, algorithms.REJECTION_SAMPLING, CRITIC)

# All steps train only the critic, on the judged responses. It is the reward model; no policy is trained.
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
