"""Train a real pretrained model on two CPU cores: SmolLM2-135M-Instruct on one-step word problems.

Weights, tokenizer and problems are not part of this repository. Any file of word problems in GSM8K's layout will do.
The experiment keeps the problems that one sum or difference solves. The policy writes it, "18 - 11", and the verifier
computes it: a model of this size chooses better than it calculates.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir smollm2
    curl -LO https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/train.jsonl

Smoke:  rl-llm train experiments/smollm2_words.py:smoke
Form:   rl-llm train experiments/smollm2_words.py:warm --out runs/smollm2_words/warm \
            --set start=smollm2 --set tokenizer.folder=smollm2 --set task.path=train.jsonl
Run:    rl-llm train experiments/smollm2_words.py:lite_ppo --seed 0 --set tokenizer.folder=smollm2 \
            --set task.path=train.jsonl
        rl-llm train experiments/smollm2_words.py:rejection_sampling --seed 0 ... (the same)

--set task.held_out=test.jsonl evaluates on a test set of its own. `warm` first teaches the form, by 256 operations on
numbers of the question that are drawn at random. What RL adds is measured from there: the choice. Lite PPO and
rejection sampling start from the same policy, ask the same problems in the same order, and end at the same number of
generated tokens. Not measured yet: no run has reached that number.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, permutations
from operator import add, mul, sub, truediv
from pathlib import Path
from re import findall, fullmatch
from sys import maxsize

import numpy as np

from experiments.qwen3_4b_gsm8k import smoke as tiny
from rl_llm.algorithms import LITE_PPO, REJECTION_SAMPLING
from rl_llm.experiment import Checkpointing, Evaluation, Experiment, WarmStart
from rl_llm.learner.optimizer import AdamW
from rl_llm.model.families import LLAMA3_2_1B
from rl_llm.problem import Problem, Split
from rl_llm.sampler import Sampling
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer

DATA = Path(__file__).parent.parent / "tests" / "data"
OPERATIONS = {"+": add, "-": sub, "*": mul, "/": truediv}

SMOLLM2_135M = replace(
    LLAMA3_2_1B,
    vocabulary=49_152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    feed_forward=1536,
    rope_base=100_000.0,
    rope_scaling=None,
)


def operations(question: str) -> Iterator[tuple[str, Fraction]]:
    """Yield each operation on two numbers of the question with its value, as ("18 - 11", 7)."""
    found = (number.replace(",", "") for number in findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?!\w)", question))
    for first, second in permutations(dict.fromkeys(found), 2):
        for sign in OPERATIONS:
            ordered = Fraction(first) < Fraction(second) or sign in "-/"  # a + b and b + a are one operation
            written = f"{first} {sign} {second}"
            if ordered and (value := value_of(written)) is not None and value >= 0:
                yield written, value


def value_of(written: str) -> Fraction | None:
    """Value of an operation on two numbers, written as "18 - 11"; None if the text is anything else."""
    found = fullmatch(r"\s*(\d{1,12}(?:\.\d{1,12})?) ([-+*/]) (\d{1,12}(?:\.\d{1,12})?)\s*", written)
    if found is None or (found[2] == "/" and not Fraction(found[3])):
        return None
    return OPERATIONS[found[2]](Fraction(found[1]), Fraction(found[3]))


@dataclass(frozen=True)
class OneStep(JsonlProblems):
    """The problems of a file that exactly one operation solves, with one of `signs`, in at most `words` words.

    A response is that operation, "18 - 11". The verifier computes it.
    """

    words: int = 32
    signs: str = "+-"

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Return up to `count` problems of a split, shuffled by the seed. Their answers are operations."""
        found = (self._solved(problem) for problem in super().problems(split, maxsize, seed))
        return list(islice((problem for problem in found if problem), count))

    def demonstrate(self, problem: Problem, generator: np.random.Generator) -> str:
        """Write some operation on two numbers of the question, seldom the right one: its form, not its choice."""
        return str(generator.choice([written for written, _ in operations(problem.prompt) if self._has_sign(written)]))

    def verify(self, problem: Problem, response: str) -> float:
        """Return 1.0 if the response is an operation with the value of the right one, else 0.0."""
        value = value_of(response)
        return float(value is not None and value == value_of(problem.answer))

    def _solved(self, problem: Problem) -> Problem | None:
        """The problem with its one operation as answer."""
        if len(problem.prompt.split()) > self.words or not problem.answer.replace(".", "", 1).isdigit():
            return None
        right = [written for written, value in operations(problem.prompt) if value == Fraction(problem.answer)]
        return replace(problem, answer=right[0]) if len(right) == 1 and self._has_sign(right[0]) else None

    def _has_sign(self, written: str) -> bool:
        return written.split()[1] in self.signs


warm = Experiment(
    task=OneStep(path=""),
    tokenizer=HuggingFaceTokenizer(folder=""),
    model=SMOLLM2_135M,
    start="",
    warm_start=WarmStart(steps=16, optimizer=AdamW(5e-5, warmup_updates=4), demonstrations_per_step=16, max_tokens=16),
    algorithm=LITE_PPO,
    optimizer=AdamW(0.0),
    sampling=Sampling(max_tokens=12),
    steps=1,
    prompts_per_step=8,
    responses_per_prompt=8,
    updates_per_rollout=2,
    train_problems=1024,
    max_prompt_tokens=56,
    evaluation=Evaluation(problems=8),
    checkpointing=Checkpointing(every=8, keep=1),
)

lite_ppo = replace(
    warm,
    start="runs/smollm2_words/warm",
    warm_start=None,
    optimizer=AdamW(3e-5, warmup_updates=2),
    steps=60,
    token_budget=18_000,
    evaluation=Evaluation(problems=8, every=10),
)
rejection_sampling = replace(lite_ppo, algorithm=REJECTION_SAMPLING)

smoke = replace(
    warm,
    task=OneStep(path=DATA / "gsm8k_style.jsonl", signs="+-*/"),
    tokenizer=HuggingFaceTokenizer(folder=DATA / "tokenizers" / "qwen3"),
    model=tiny.model,
    start=tiny.start,
    warm_start=WarmStart(steps=2, optimizer=AdamW(1e-3), demonstrations_per_step=4, max_tokens=64),
    optimizer=AdamW(1e-3),
    prompts_per_step=4,
    responses_per_prompt=2,
    train_problems=8,
    max_prompt_tokens=128,
    evaluation=Evaluation(problems=2),
)
