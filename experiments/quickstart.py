"""A tiny language model learns by RL to write out its steps (minutes on two CPU cores).

Run:    rl-llm train experiments/quickstart.py --seed 0
"""

from dataclasses import replace

from rl_llm.algorithms import LITE_PPO, REJECTION_SAMPLING
from rl_llm.experiment import Checkpointing, Evaluation, Experiment, SkillGate, WarmStart
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import ModelConfig
from rl_llm.sampler import Sampling
from rl_llm.tasks.modular_sum import Demonstrations, ModularSum

TASK = ModularSum(
    min_terms=2,
    max_terms=8,
    modulus=5,
    demonstrations=Demonstrations(direct=0.60, two_per_step=0.10, one_per_step=0.30, slip=0.05),
)

base = Experiment(
    task=TASK,
    tokenizer=TASK.tokenizer,
    model=ModelConfig(
        vocabulary=TASK.tokenizer.vocab_size, width=96, layers=2, heads=4, kv_heads=2, head_width=32, feed_forward=256
    ),
    warm_start=WarmStart(
        steps=800,
        demonstrations_per_step=32,
        max_tokens=48,
        optimizer=AdamW(3e-3, warmup_updates=50, schedule="cosine", final_fraction=0.1, beta2=0.99, weight_decay=0.01),
        gate=SkillGate(prefix=TASK.thinking_prefix, minimum=0.5),
    ),
    algorithm=LITE_PPO,
    optimizer=AdamW(5e-4, warmup_updates=6, schedule="linear", final_fraction=0.1),
    sampling=Sampling(max_tokens=48),
    steps=48,
    prompts_per_step=48,
    responses_per_prompt=8,
    updates_per_rollout=2,
    micro_batches=6,
    max_prompt_tokens=17,
    evaluation=Evaluation(problems=240, every=10),
    checkpointing=Checkpointing(every=100),
)

ABLATION = {"lite_ppo": base, "rejection_sampling": replace(base, algorithm=REJECTION_SAMPLING)}
