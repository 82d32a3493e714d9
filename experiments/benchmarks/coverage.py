"""Coverage of the 95 % intervals of evaluations, by simulation clustered by problem.

Run:    python experiments/benchmarks/coverage.py      (--repeats 200: a quick look)

The chance that a sample is right differs between problems, with a beta distribution: `spread` is the sum of its two
parameters, from 0.3 (nearly every problem is either solved or not) to 20 (all alike). A repeat draws problems and
samples and asks whether the interval holds the mean over all problems that could have been drawn. pass@k is for half
the samples, maj@k for all, with four wrong answers. The second of two paired policies solves 10 % of what the first
one does not. `jump` is the hardest pair: it always solves 5 % of the problems, and is the same policy on the others.

Measured: docs/evaluation.md, "Coverage of the intervals".
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from rl_llm.evaluation.statistics import differences_bound, interval, pass_at

Kind = Literal["avg", "pass", "maj", "difference", "jump"]
WRONG = np.array([0.4, 0.3, 0.2, 0.1])  # shares of the wrong answers
BATCH = 250  # repeats at once
POPULATION = 400_000  # problems whose mean maj@k counts as the truth


@dataclass(frozen=True)
class Case:
    """One condition: what is measured, on how many problems with how many samples, and their difficulty."""

    kind: Kind
    problems: int
    samples: int
    mean: float
    spread: float


@dataclass(frozen=True)
class Coverage:
    """Share of the intervals that hold the truth, and their mean width."""

    share: float
    width: float


def coverage(case: Case, repeats: int, seed: int) -> Coverage:
    """Simulate `repeats` evaluations."""
    noise = np.random.default_rng(seed)
    truth, held, width = true_value(case), 0, 0.0
    for start in range(0, repeats, BATCH):
        shape = min(BATCH, repeats - start), case.problems
        values = simulate(case, noise, shape)
        if case.kind in ("difference", "jump"):
            bound = differences_bound(values)
            low, high = interval(values, -bound, bound)
        else:
            low, high = interval(values)
        held += int(((low <= truth + 1e-9) & (truth - 1e-9 <= high)).sum())
        width += float((high - low).sum())
    return Coverage(held / repeats, width / repeats)


def simulate(case: Case, noise: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values f64[shape] of problems, a sample mean of each."""
    K, chance = case.samples, noise.beta(*_parameters(case), shape)
    right = noise.binomial(K, chance)
    if case.kind == "avg":
        return right / K
    if case.kind == "pass":
        grades = [np.repeat([1.0, 0.0], [count, K - count]) for count in range(K + 1)]
        return np.array([pass_at([grade], _half(K)).value for grade in grades])[right]
    if case.kind == "maj":
        votes = np.concatenate([right[..., None], noise.multinomial(K - right, WRONG)], axis=-1)
        winners = votes == votes.max(axis=-1, keepdims=True)
        return winners[..., 0] / winners.sum(axis=-1)
    jumps = noise.random(shape) < 0.05
    better = np.where(jumps, 1.0, chance) if case.kind == "jump" else chance + 0.1 * (1 - chance)
    return (noise.binomial(K, better) - right) / K


def true_value(case: Case) -> float:
    """The mean over all problems that could be drawn; of maj@k by a large sample."""
    a, b = _parameters(case)
    if case.kind == "avg":
        return case.mean
    if case.kind == "pass":
        steps = np.arange(_half(case.samples))
        return float(1 - np.prod((b + steps) / (a + b + steps)))
    if case.kind == "maj":
        return float(simulate(case, np.random.default_rng(1), (POPULATION,)).mean())
    return (0.1 if case.kind == "difference" else 0.05) * (1 - case.mean)


def _parameters(case: Case) -> tuple[float, float]:
    return case.mean * case.spread, (1 - case.mean) * case.spread


def _half(samples: int) -> int:
    return max(samples // 2, 1)


def grid(kind: Kind) -> Iterator[Case]:
    """All conditions of a kind in which the truth is within 0.05 and 0.95."""
    for problems, samples, mean, spread in product(
        (30, 100, 500), (1, 4, 16), (0.05, 0.3, 0.7, 0.95), (0.3, 2.0, 20.0)
    ):
        case = Case(kind, problems, samples, mean, spread)
        if kind in ("difference", "jump") or 0.05 <= true_value(case) <= 0.95:
            yield case


def main() -> None:
    """Simulate every condition and print a row of a Markdown table for each quantity and number of problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, metavar="N", help="of a condition (default: 2000)")
    repeats = parser.parse_args().repeats
    print(f"{repeats} repeats of each condition: 1, 4, 16 samples; means 0.05 to 0.95; spreads 0.3, 2, 20\n")
    print("| quantity | problems | conditions | lowest coverage | in | mean coverage | mean width |")
    print("|---|---|---|---|---|---|---|")
    kinds: tuple[Kind, ...] = ("avg", "pass", "maj", "difference", "jump")
    for kind in kinds:
        found = {case: coverage(case, repeats, seed=0) for case in grid(kind)}
        for problems in sorted({case.problems for case in found}):
            here = {case: result for case, result in found.items() if case.problems == problems}
            worst = min(here, key=lambda case: here[case].share)
            where = f"{worst.samples} samples, mean {worst.mean:g}, spread {worst.spread:g}"
            shares, widths = ([getattr(one, name) for one in here.values()] for name in ("share", "width"))
            mean, width = np.mean(shares), np.mean(widths)
            print(
                f"| {kind} | {problems} | {len(here)} | {min(shares):.1%} | {where} | {mean:.1%} | {width:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
