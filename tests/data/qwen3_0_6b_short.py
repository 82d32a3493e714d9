"""Qwen3-0.6B with short responses: small enough to compile for a TPU in a test, large enough to be realistic."""

from dataclasses import replace

from rl_llm.algorithms import LITE_PPO
from rl_llm.experiment import Experiment
from rl_llm.learner.optimizer import AdamW
from rl_llm.model.families import QWEN3_0_6B
from rl_llm.sampler import Sampling
from rl_llm.tasks.modular_sum import ModularSum
from rl_llm.tasks.tokenizer import CharacterTokenizer

TASK = ModularSum()
SYMBOLS = TASK.tokenizer.symbols

base = Experiment(
    task=TASK,
    tokenizer=CharacterTokenizer(
        SYMBOLS + tuple(f"<{index}>" for index in range(QWEN3_0_6B.vocabulary - 2 - len(SYMBOLS)))
    ),
    model=replace(QWEN3_0_6B, remat="layers"),
    algorithm=LITE_PPO,
    optimizer=AdamW(1e-6),
    sampling=Sampling(max_tokens=2048),
    steps=100,
    prompts_per_step=16,
    responses_per_prompt=8,
    max_prompt_tokens=128,
    micro_batches=4,
)
