"""The smallest complete run: sums of two to four digits modulo 3, and a model of one narrow layer.

It learns little, but has every part: warm start, gate, RL with rewards that differ, evaluation on a held-out set
that does not divide into batches.

Run:    rl-llm train tests/data/tiny.py --out runs/tiny
"""

from dataclasses import replace

from rl_llm.algorithms import LITE_PPO
from rl_llm.experiment import Checkpointing, Evaluation, Experiment, SkillGate, WarmStart
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import ModelConfig
from rl_llm.sampler import Sampling
from rl_llm.tasks.modular_sum import Demonstrations, ModularSum

TASK = ModularSum(
    min_terms=2,
    max_terms=4,
    modulus=3,
    demonstrations=Demonstrations(direct=0.8, two_per_step=0.0, one_per_step=0.2),
)

base = Experiment(
    task=TASK,
    tokenizer=TASK.tokenizer,
    model=ModelConfig(
        vocabulary=TASK.tokenizer.vocab_size, width=16, layers=1, heads=2, kv_heads=1, head_width=8, feed_forward=32
    ),
    warm_start=WarmStart(
        steps=16,
        demonstrations_per_step=32,
        max_tokens=28,
        optimizer=AdamW(3e-2, warmup_updates=2, schedule="cosine"),
        gate=SkillGate(prefix=TASK.thinking_prefix, minimum=0.0),
    ),
    algorithm=LITE_PPO,
    optimizer=AdamW(1e-2, warmup_updates=2, schedule="linear"),
    sampling=Sampling(max_tokens=16),
    steps=6,
    prompts_per_step=8,
    responses_per_prompt=4,
    updates_per_rollout=2,
    train_problems=40,
    max_prompt_tokens=9,
    evaluation=Evaluation(problems=9, every=2),
    checkpointing=Checkpointing(every=5, keep=3, keep_best=True),
)

cold = replace(base, warm_start=None)
