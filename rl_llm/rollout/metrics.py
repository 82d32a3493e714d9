"""A step's rollout as numbers for metrics.jsonl. Host side, NumPy."""

from collections.abc import Iterable, Sequence

import numpy as np

from rl_llm.model import ModelConfig, forward_flops
from rl_llm.parallel import hosts
from rl_llm.rewards.grader import count_statuses
from rl_llm.rewards.worker import Grade
from rl_llm.rollout.engine import GradedRollout
from rl_llm.types import Rollout

LOOP_WINDOW = 1024  # tokens at the end of a response that are searched for a loop


def describe_rollout(graded: GradedRollout, config: ModelConfig, passes: float = 3) -> dict[str, float]:
    """Reward, length, truncation, grading and cost of a rollout, and its own `values`.

    Rewards, accuracies and `component/*`, the unweighted components, are means over the graded responses; `grading/*`
    counts all by status. Methods differ in the batch std they divide by, so there are both: `reward/std` of the raw
    rewards, `reward/std_centered` of the rewards minus their group's mean (ddof 1).
    Lengths are in tokens; 0 if no response was right, or none was wrong. `response/looping` is the share of responses
    that were truncated while repeating themselves (`loops`). Divided by `response/truncated` it is the repeat ratio of
    arXiv 2508.08221, appendix B.1, which gives no threshold.

    `flops/*` are the floor of generating the rollout, and of learning from its `learned` part with `passes` over every
    token (3 for one update: forward, and twice that backward). Padding, steps after a row's end and recomputation do
    not count.
    """
    rollout, learned = graded.rollout, graded.learned
    tokens, mask, truncated = hosts.to_host((rollout.tokens, rollout.mask, rollout.truncated))
    lengths, right, wrong = mask.sum(axis=1), graded.accuracies >= 1.0, graded.graded & (graded.accuracies < 1.0)
    cut = np.flatnonzero(truncated)
    looping = sum(loops(tokens[row, : int(lengths[row])]) for row in cut)
    groups = graded.by_group(graded.rewards)
    centered = groups - groups.mean(axis=1, keepdims=True)
    names = dict.fromkeys(name for grade in graded.grades for name in grade.components)
    return {
        **{f"component/{name}": _mean_component(graded.grades, name) for name in names},
        "reward/mean": float(groups.mean()),
        "reward/accuracy": float(graded.by_group(graded.accuracies).mean()),
        "reward/std": float(groups.std(ddof=1)) if groups.count() > 1 else 0.0,
        "reward/std_centered": float(centered.std(ddof=1)) if groups.count() > 1 else 0.0,
        "reward/zero_variance_groups": float((groups.min(axis=1) == groups.max(axis=1)).mean()),
        "response/length": float(lengths.mean()),
        "response/length_right": float(lengths[right].mean()) if right.any() else 0.0,
        "response/length_wrong": float(lengths[wrong].mean()) if wrong.any() else 0.0,
        "response/truncated": float(truncated.mean()),
        "response/looping": looping / len(mask),
        "tokens/generated": int(lengths.sum()),
        "flops/generate": forward_pass_flops(config, rollout),
        "flops/update": passes * forward_pass_flops(config, rollout if learned is None else learned),
        **{f"grading/{status}": count for status, count in count_statuses(graded.grades).items()},
        **graded.values,
    }


def loops(tokens: np.ndarray) -> bool:
    """Whether a response i32[T] ends in a loop: of its last `LOOP_WINDOW` tokens the second half stood there before."""
    end = tokens[-LOOP_WINDOW:]
    half = (len(end) + 1) // 2
    if len(end) < 2:
        return False
    earlier = np.lib.stride_tricks.sliding_window_view(end, half)[:-1]
    return bool((earlier == end[-half:]).all(axis=1).any())


def forward_pass_flops(config: ModelConfig, rollout: Rollout) -> float:
    """FLOPs of one forward pass over every prompt and every response."""
    mask, prompts = hosts.to_host((rollout.mask, rollout.prompts.lengths))
    lengths = mask.sum(axis=1)
    reading = forward_flops(config, prompts.sum(), prompts.mean() / 2, logits=len(prompts))
    return float(reading + forward_flops(config, lengths.sum(), prompts.mean() + lengths.mean() / 2))


def in_brief(line: dict[str, float]) -> dict[str, float]:
    """Values of a step for the progress display: reward, length, entropy and validation accuracy.

    While a critic learns alone, its error replaces the entropy.
    """
    names = {"reward": "reward/mean", "length": "response/length", "entropy": "policy/entropy"}
    names |= {"validation": "evaluation/accuracy"}
    names |= {} if "policy/entropy" in line else {"critic error": "critic/error"}
    return {shown: line[name] for shown, name in names.items() if name in line}


def _mean_component(grades: Sequence[Grade], name: str) -> float:
    """Mean over the responses that could be graded."""
    scores = [grade.components.get(name, 0.0) for grade in grades if grade.status == "ok"]
    return sum(scores) / len(scores)


def training_samples(step: int, graded: GradedRollout, rows: Iterable[int], when: str = "training") -> list[dict]:
    """Some rows of a step's rollout for samples.jsonl."""
    K = len(graded.grades) // len(graded.problems)  # row b answers problem b // K
    return [
        {
            "step": step,
            "when": when,
            "prompt": graded.problems[row // K].prompt,
            "response": graded.responses[row],
            "answer": graded.problems[row // K].answer,
            "reward": graded.grades[row].reward,
            "accuracy": graded.grades[row].accuracy,
        }
        for row in rows
    ]
