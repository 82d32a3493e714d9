"""Building blocks of the paper's studies at three scales: starting policies, problem pools, and a base experiment.

* `smoke`: seconds; everything runs, nothing is learned.
* `cpu`: the quickstart's task; a run takes half a CPU-minute. The paper's "base" and "aligned" models are a `weak` and
  a `strong` warm start; its easy, medium and hard data are sums of few, any and many terms.
* `paper`: Qwen3 with the paper's settings (sections 3.1 and A.1 of arXiv 2508.08221), for `rl-llm plan` and TPUs. Put
  links to (or copies of) the folders of weights and the files of problems into the current folder, under these names.

Every run of a study ends at the same number of generated tokens, or after its last step (the report names such runs).
The learning rate is constant after a short warm-up, as in the paper as far as it says. There are two updates per
rollout, because with one the clip could not act.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from experiments.quickstart import TASK
from experiments.quickstart import base as quickstart
from experiments.qwen3_4b_gsm8k import TOKENIZER
from experiments.qwen3_4b_gsm8k import paper as qwen3
from rl_llm.experiment import Checkpointing, Evaluation, Experiment
from rl_llm.learner.optimizer import AdamW
from rl_llm.model.families import QWEN3_8B
from rl_llm.parallel.mesh import MeshShape
from rl_llm.problem import Problem, Split
from rl_llm.studies import Study
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.modular_sum import Demonstrations, ModularSum

SIZES = ("small", "large")
POLICIES = ("weak", "strong")
POOLS = ("easy", "medium", "hard")
EASY = 512  # of the 608 sums of two to four terms
TERMS = {"easy": (2, 4), "medium": (2, 8), "hard": (6, 8)}


@dataclass(frozen=True)
class Pool:
    """Train on the problems of one task, test on those of another: does learning on a narrow pool generalise?"""

    train: ModularSum
    test: ModularSum

    name: ClassVar[str] = "pool"
    thinking_prefix: ClassVar[str] = ModularSum.thinking_prefix

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Problems of `train` for training, otherwise of `test`; a hash makes the splits of both disjoint."""
        return (self.train if split == "train" else self.test).problems(split, count, seed)

    def demonstrate(self, problem: Problem, generator: np.random.Generator) -> str:
        return self.train.demonstrate(problem, generator)

    def write_answer(self, problem: Problem, shown_prompt: str) -> str:
        return self.train.write_answer(problem, shown_prompt)

    def verify(self, problem: Problem, response: str) -> float:
        return self.test.verify(problem, response)


def pool(name: str) -> ModularSum | Pool:
    """The training problems of a pool; tests use sums of any length."""
    if name == "medium":
        return TASK
    low, high = TERMS[name]
    return Pool(replace(TASK, min_terms=low, max_terms=high), TASK)


# A strong policy has seen twice as many demonstrations, mostly with written steps.
STRONG = replace(TASK, demonstrations=Demonstrations(direct=0.25, two_per_step=0.10, one_per_step=0.65, slip=0.05))
LARGE = replace(quickstart.model, width=160, heads=5, kv_heads=5, feed_forward=448)

_CPU = replace(
    quickstart,
    warm_start=None,
    start="weak",
    optimizer=AdamW(5e-4, warmup_updates=4),
    steps=60,
    prompts_per_step=32,
    micro_batches=4,
    token_budget=120_000,
    evaluation=Evaluation(problems=128, every=2),
)
# `rl-llm plan` found that this fits 16 chips of TPU v6e. Mesh and micro-batches do not change the computation.
_PAPER = replace(
    qwen3,
    start="qwen3-4b-base",
    token_budget=500 * 1024 * 4096,
    mesh=MeshShape(data=1, fsdp=2, tensor=8),
    micro_batches=32,
    sampling_batches=8,
)
_SMOKE = replace(
    _CPU,
    model=replace(quickstart.model, width=16, layers=1, heads=2, kv_heads=1, head_width=8, feed_forward=32),
    steps=3,
    prompts_per_step=16,
    micro_batches=1,
    responses_per_prompt=4,
    token_budget=4_000,
    train_problems=64,
    evaluation=Evaluation(problems=8, every=1),
    checkpointing=Checkpointing(every=2),
)


def base(scale: str, policy: str = "weak", data: str = "medium", size: str = "small") -> Experiment:
    """Lite PPO from a policy (the name in `start`), on a pool of problems, with a model size."""
    if scale == "paper":
        return _paper(policy, data, size)
    experiment = replace(_SMOKE if scale == "smoke" else _CPU, start=start_name(policy, size), task=pool(data))
    if data == "easy":  # short sums are few
        experiment = replace(experiment, train_problems=min(experiment.train_problems, EASY))
    large = replace(experiment.model, width=24, heads=3, kv_heads=3) if scale == "smoke" else LARGE
    return replace(experiment, model=large) if size == "large" else experiment


def starts(scale: str, *names: tuple[str, str]) -> dict[str, Experiment]:
    """Starting policies (POLICY, SIZE) by name; none at the scale `paper`, which uses published weights."""
    return {} if scale == "paper" else {start_name(*name): start(scale, *name) for name in names}


def start(scale: str, policy: str = "weak", size: str = "small") -> Experiment:
    """The experiment with the warm start that makes a policy."""
    warm_start = quickstart.warm_start
    assert warm_start is not None
    if policy == "strong":
        warm_start = replace(warm_start, steps=1600)
    if scale == "smoke":
        warm_start = replace(warm_start, steps=60, optimizer=replace(warm_start.optimizer, warmup_updates=5), gate=None)
    task = STRONG if policy == "strong" else TASK
    return replace(base(scale, policy, size=size), start=None, warm_start=warm_start, task=task)


def start_name(policy: str, size: str) -> str:
    """The name of a starting policy."""
    return policy if size == "small" else f"{policy}-{size}"


def _paper(policy: str, data: str, size: str) -> Experiment:
    folder = f"qwen3-{'4b' if size == 'small' else '8b'}{'-base' if policy == 'weak' else ''}"
    model = qwen3.model if size == "small" else replace(QWEN3_8B, remat="layers")
    tokenizer = replace(TOKENIZER, folder=folder)
    return replace(_PAPER, start=folder, model=model, tokenizer=tokenizer, task=JsonlProblems(f"{data}.jsonl"))


def at_each_scale(make: Callable[[str], Study]) -> dict[str, Study]:
    """The STUDY of a module: {scale: make(scale)}."""
    return {scale: make(scale) for scale in ("smoke", "cpu", "paper")}
