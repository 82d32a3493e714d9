r"""Train Qwen3-4B-Base on grade-school mathematics: Lite PPO with the settings of arXiv 2508.08221 (3.1, A.1).

Weights, tokenizer and problems are not part of this repository:

    hf download Qwen/Qwen3-4B-Base --local-dir qwen3-4b-base
    curl -LO https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/train.jsonl

Smoke:  rl-llm train experiments/qwen3_4b_gsm8k.py:smoke
Run:    rl-llm train experiments/qwen3_4b_gsm8k.py:paper --set start=qwen3-4b-base \
            --set tokenizer.folder=qwen3-4b-base --set task.path=train.jsonl
Chats:  rl-llm train experiments/qwen3_4b_gsm8k.py:chats

The prompt asks for the answer in \boxed{}, and that is read first (`rl_llm.tasks.answers`). Another file needs its
layout: MATH's is --set task.layout.question=problem --set task.layout.answer=solution, and its answers, which are
expressions, need the extra `math`. --set task.held_out=test.jsonl evaluates on a test set as it is published. Before a
run, `rl-llm data-report FILE` shows the layout that fits, and a run refuses problems that it could not grade.

`smoke` uses a tiny random model of the family and MATH-style problems of tests/data: it takes a minute on a laptop and
learns nothing. `chats` is `smoke` after a warm start on a file of conversations. The paper leaves open, and this file
chooses: two updates per rollout, since with one the clip could never act; the problems of GSM8K, the larger part of the
paper's easy set; and the wording of the system message. Not measured: `paper` has not been run yet.
"""

from dataclasses import replace
from pathlib import Path

from rl_llm.algorithms import LITE_PPO
from rl_llm.experiment import Checkpointing, Conversations, Evaluation, Experiment, WarmStart
from rl_llm.learner.optimizer import AdamW
from rl_llm.model.families import QWEN3_4B
from rl_llm.sampler import Sampling
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from rl_llm.tasks.layouts import MATH

DATA = Path(__file__).parent.parent / "tests" / "data"

TOKENIZER = HuggingFaceTokenizer(
    folder="", chat=True, system="Reason step by step, and end with the final answer within \\boxed{}."
)

paper = Experiment(
    task=JsonlProblems(path=""),
    tokenizer=TOKENIZER,
    model=replace(QWEN3_4B, remat="layers"),
    start="",
    algorithm=LITE_PPO,
    optimizer=AdamW(1e-6, warmup_updates=50),
    sampling=Sampling(max_tokens=8192, temperature=0.99, top_p=0.99, top_k=100),
    steps=500,
    prompts_per_step=128,
    responses_per_prompt=8,
    updates_per_rollout=2,
    micro_batches=8,
    staleness=1,
    train_problems=5000,
    max_prompt_tokens=1024,
    evaluation=Evaluation(problems=640, every=25),
    checkpointing=Checkpointing(every=25),
)

smoke = replace(
    paper,
    task=JsonlProblems(path=DATA / "math_style.jsonl", layout=MATH),
    tokenizer=replace(TOKENIZER, folder=DATA / "tokenizers" / "qwen3"),
    model=replace(paper.model, vocabulary=352, width=32, layers=2, heads=4, kv_heads=2, head_width=16, feed_forward=64),
    start=str(DATA / "tokenizers" / "qwen3"),
    optimizer=AdamW(1e-3, warmup_updates=1),
    sampling=replace(paper.sampling, max_tokens=24),
    steps=2,
    prompts_per_step=16,
    responses_per_prompt=4,
    micro_batches=1,
    train_problems=16,
    max_prompt_tokens=256,
    evaluation=Evaluation(problems=4),
)

chats = replace(
    smoke,
    warm_start=WarmStart(
        steps=4,
        optimizer=AdamW(1e-2, warmup_updates=1),
        demonstrations=Conversations(DATA / "chats.jsonl", rows_per_step=8, row_tokens=512),
    ),
)
