"""Training data: easy, hard and few problems, skewed answers, questions with two answers.

Every arm is tested on the same problems: sums of any length with any answer. Sections 3.1 and 3.2 of arXiv 2508.08221
train on easy, medium and hard sets after removing most true/false questions. Here one arm has only such questions (is
the sum 0 or not?), one has 70 % sums with the answer 0, and one repeats 32 sums over and over. There are 512 easy sums
and 8192 of the other kinds.

At the scale `cpu`, `rl-llm data-report` warns of each of these: in `skewed` 70 % of the answers are 0, in `zero_or_not`
always answering 3 earns 80 %, and in `few` each problem is asked 60 times.

Measured by `rl-llm ablate experiments/paper/data_difficulty_and_bias.py`, 5 seeds, differences with 95 % intervals:

* Easy problems alone end lower: undecided, -0.097 [-0.240, +0.045].
* Hard problems alone end lower: supported, -0.042 [-0.050, -0.033].
* Easy problems alone lose their best: undecided, +0.079 [-0.079, +0.237].
* Harder data, longer responses: undecided, +0.884 [-0.739, +2.507].
* Few problems end lower: undecided, -0.031 [-0.073, +0.011].
* Skewed answers end lower: undecided, -0.043 [-0.146, +0.060].
* Two answers for all end lower: undecided, -0.106 [-0.199, -0.013].
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.paper.scales import TERMS, Pool, at_each_scale, base, starts
from experiments.quickstart import TASK
from rl_llm.problem import Problem, Split
from rl_llm.studies import Drop, Final, Hypothesis, Study
from rl_llm.tasks.modular_sum import ModularSum

FEW = {"smoke": 16, "cpu": 32}
COMMON = 0.9  # share of problems of each length with the common answer, if enough exist


@dataclass(frozen=True)
class Skewed(ModularSum):
    """Sums that mostly have the answer 0, with the lengths of the unskewed task.

    There are too few short sums to reach `COMMON`; over all lengths, seven in ten problems have the answer 0.
    """

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        lengths = Counter(problem.difficulty for problem in super().problems(split, count, seed))
        drawn = super().problems(split, 8 * count, seed)
        chosen: list[Problem] = []
        for length, wanted in sorted(lengths.items()):
            candidates = [problem for problem in drawn if problem.difficulty == length]
            zeros = [problem for problem in candidates if problem.answer == "0"][: round(COMMON * wanted)]
            others = [problem for problem in candidates if problem.answer != "0"][: wanted - len(zeros)]
            chosen += zeros + others
        return [chosen[index] for index in np.random.default_rng(seed).permutation(count)]


@dataclass(frozen=True)
class ZeroOrNot(ModularSum):
    """Sums where any answer but 0 is right unless the sum is 0, so a wrong chain of thought can earn the reward."""

    def verify(self, problem: Problem, response: str) -> float:
        if problem.answer == "0":
            return super().verify(problem, response)
        answers = (str(digit) for digit in range(1, self.modulus))
        return max(super(ZeroOrNot, self).verify(replace(problem, answer=answer), response) for answer in answers)


@dataclass(frozen=True)
class Judged(Pool):
    """A pool that verifies training problems with the training task."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        found: Sequence[Problem] = super().problems(split, count, seed)
        return [replace(problem, metadata={**problem.metadata, "split": split}) for problem in found]

    def verify(self, problem: Problem, response: str) -> float:
        return (self.train if problem.metadata["split"] == "train" else self.test).verify(problem, response)


def skewed(kind: type[ModularSum]) -> ModularSum:
    """The quickstart's task as an instance of `kind`."""
    return kind(TASK.min_terms, TASK.max_terms, TASK.modulus, TASK.demonstrations)


def study(scale: str) -> Study:
    medium = base(scale)
    arms = {name: base(scale, data=name) for name in TERMS}
    if scale != "paper":
        arms |= {
            "few": replace(medium, train_problems=FEW[scale]),
            "skewed": replace(medium, task=Pool(skewed(Skewed), TASK)),
            # Its neighbours of an answer are right by design, which the gate would refuse.
            "zero_or_not": replace(
                medium,
                task=Judged(skewed(ZeroOrNot), TASK),
                grading=replace(medium.grading, failing_problems=1.0),
            ),
        }
    hypotheses = [
        Hypothesis("Easy problems alone end lower", "easy", "medium", Final(), "less", 0.02),
        Hypothesis("Hard problems alone end lower", "hard", "medium", Final(), "less", 0.02),
        Hypothesis("Easy problems alone lose their best", "easy", "medium", Drop(), "greater", 0.02),
        Hypothesis("Harder data, longer responses", "hard", "easy", Final("response_length_after"), "greater", 1.0),
    ]
    if scale != "paper":
        hypotheses += [
            Hypothesis("Few problems end lower", "few", "medium", Final(), "less", 0.02),
            Hypothesis("Skewed answers end lower", "skewed", "medium", Final(), "less", 0.02),
            Hypothesis("Two answers for all end lower", "zero_or_not", "medium", Final(), "less", 0.02),
        ]
    return Study(
        title="Data: difficulty and bias",
        starts=starts(scale, ("weak", "small")),
        arms=arms,
        hypotheses=tuple(hypotheses),
    )


STUDY = at_each_scale(study)
