"""What a step's rollout looked like, as numbers for metrics.jsonl. Host side, NumPy."""

from collections.abc import Sequence

import numpy as np

from rl_llm.model import ModelConfig, forward_flops
from rl_llm.parallel import hosts
from rl_llm.problem import Problem
from rl_llm.rewards.grader import count_statuses
from rl_llm.rewards.worker import Grade
from rl_llm.rollout.engine import Answers
from rl_llm.types import Rollout

WINDOW = 1024  # tokens at the end of a response in which a loop is looked for


def describe_rollout(
    answers: Answers, config: ModelConfig, responses_per_prompt: int, learned: Rollout | None = None, passes: float = 3
) -> dict[str, float]:
    """Reward, length, truncation, grading and cost of a rollout.

    `component/*` are the components of the reward, unweighted. Both batch stds are there since methods differ in the
    one they divide by: `reward/std` is of the raw rewards, `reward/std_centered` of the rewards less their group's mean
    (both with ddof 1). Lengths are in tokens, 0 where no response was right or none was wrong. `response/looping` is
    the share of responses that were cut off while they repeated themselves (`loops`): with `response/truncated` the
    repeat ratio of arXiv 2508.08221, appendix B.1, which gives no threshold. FLOPs are what
    generating the rollout, and learning from it or from the part of it that is `learned`, had to cost: `passes` over
    every token, 3 for one update (forward + twice that backward). Padding, steps after a row's end and recomputation
    do not count.
    """
    rollout = answers.rollout
    tokens, mask, truncated = hosts.to_host((rollout.tokens, rollout.mask, rollout.truncated))
    lengths, right = mask.sum(axis=1), answers.accuracies >= 1.0
    cut = np.flatnonzero(truncated)
    looping = sum(loops(tokens[row, : int(lengths[row])]) for row in cut)
    groups = answers.rewards.reshape(-1, responses_per_prompt)
    centered = groups - groups.mean(axis=1, keepdims=True)
    names = dict.fromkeys(name for grade in answers.grades for name in grade.components)
    return {
        **{f"component/{name}": _mean_component(answers.grades, name) for name in names},
        "reward/mean": float(groups.mean()),
        "reward/accuracy": float(answers.accuracies.mean()),
        "reward/std": float(groups.std(ddof=1)) if groups.size > 1 else 0.0,
        "reward/std_centered": float(centered.std(ddof=1)) if groups.size > 1 else 0.0,
        "reward/zero_variance_groups": float((groups == groups[:, :1]).all(axis=1).mean()),
        "response/length": float(lengths.mean()),
        "response/length_right": float(lengths[right].mean()) if right.any() else 0.0,
        "response/length_wrong": float(lengths[~right].mean()) if not right.all() else 0.0,
        "response/truncated": float(truncated.mean()),
        "response/looping": looping / len(mask),
        "tokens/generated": int(lengths.sum()),
        "flops/generate": flops_of_pass(config, rollout),
        "flops/update": passes * flops_of_pass(config, rollout if learned is None else learned),
        **{f"grading/{status}": count for status, count in count_statuses(answers.grades).items()},
    }


def loops(tokens: np.ndarray) -> bool:
    """Whether a response i32[T] ends in a loop: of its last `WINDOW` tokens the second half stood there before."""
    end = tokens[-WINDOW:]
    half = (len(end) + 1) // 2
    if len(end) < 2:
        return False
    earlier = np.lib.stride_tricks.sliding_window_view(end, half)[:-1]
    return bool((earlier == end[-half:]).all(axis=1).any())


def flops_of_pass(config: ModelConfig, rollout: Rollout) -> float:
    """FLOPs of reading every prompt once and every response."""
    mask, prompts = hosts.to_host((rollout.mask, rollout.prompts.lengths))
    lengths = mask.sum(axis=1)
    reading = forward_flops(config, prompts.sum(), prompts.mean() / 2, logits=len(prompts))
    return float(reading + forward_flops(config, lengths.sum(), prompts.mean() + lengths.mean() / 2))


def in_brief(line: dict[str, float]) -> dict[str, float]:
    """What the progress display shows of a step: reward, length, and the entropy or, while a critic learns alone, its
    error.
    """
    names = {"reward": "reward/mean", "length": "response/length", "entropy": "policy/entropy"}
    names |= {} if "policy/entropy" in line else {"critic error": "critic/error"}
    return {shown: line[name] for shown, name in names.items() if name in line}


def _mean_component(grades: Sequence[Grade], name: str) -> float:
    """Over all responses; what could not be graded has none of it."""
    return sum(grade.components.get(name, 0.0) for grade in grades) / len(grades)


def training_samples(
    step: int, problems: Sequence[Problem], answers: Answers, responses_per_prompt: int, count: int = 2
) -> list[dict]:
    """The first response to each of the first `count` problems of a step, for samples.jsonl."""
    rows = [(problems[n], n * responses_per_prompt) for n in range(min(count, len(problems)))]
    return [
        {
            "step": step,
            "when": "training",
            "prompt": problem.prompt,
            "response": answers.responses[row],
            "answer": problem.answer,
            "reward": answers.grades[row].reward,
        }
        for problem, row in rows
    ]
