"""Controls: changes that must make no difference, and rewards that must not teach.

Rewards {0, 1} and {-1, 1} are the same algorithm under either normalisation: r -> 2r - 1 cancels, exactly so with an
eps below rounding. Takeaway 1 of arXiv 2508.08221 compares them. Random rewards (a coin) teach nothing, although they
may seem to (2506.10947). At a learning rate of zero nothing can change. A reward for length makes responses long.

Measured by `rl-llm ablate experiments/paper/controls.py`, 5 seeds, differences with 95 % intervals:

* {-1, 1} is {0, 1} under group norm: supported, bitwise the same.
* {-1, 1} is {0, 1} under batch norm: supported, bitwise the same.
* At a rate of zero no reward matters: supported, +0.000 [+0.000, +0.000].
* Rewards by a coin teach less than right ones: supported, -0.687 [-0.839, -0.535].
* Rewards by a coin teach nothing: undecided, -0.135 [-0.265, -0.006].
* A reward for length makes responses longer: supported, +26.892 [+23.609, +30.175].
"""

import hashlib
from dataclasses import dataclass, replace

from experiments.paper.scales import at_each_scale, base, starts
from rl_llm.algorithms import LITE_PPO, Normalize
from rl_llm.learner.optimizer import AdamW
from rl_llm.problem import Problem
from rl_llm.rewards.components import Reward
from rl_llm.studies import Final, Hypothesis, Study

NOTHING = 1e-30  # an eps that rounding removes from its sum with any spread


@dataclass(frozen=True)
class Signed:
    """-1 for a wrong response, 1 for a right one."""

    weight: float = 1.0

    def __call__(self, problem: Problem, response: str, accuracy: float) -> float:
        return 2.0 * accuracy - 1.0


@dataclass(frozen=True)
class Coin:
    """1 or 0 by a digest of problem and response: deterministic, and independent of correctness."""

    weight: float = 1.0

    def __call__(self, problem: Problem, response: str, accuracy: float) -> float:
        return float(hashlib.sha256(f"{problem.id} {response}".encode()).digest()[0] % 2)


@dataclass(frozen=True)
class Length:
    """Length of the response in units of ten characters."""

    weight: float = 1.0

    def __call__(self, problem: Problem, response: str, accuracy: float) -> float:
        return len(response) / 10.0


def study(scale: str) -> Study:
    lite = base(scale)
    group = replace(lite, algorithm=replace(LITE_PPO, advantage=Normalize("group", "group", eps=NOTHING)))
    batch = replace(lite, algorithm=replace(LITE_PPO, advantage=Normalize("batch", "batch", eps=NOTHING)))
    signed, coin, length = Reward((Signed(),)), Reward((Coin(),)), Reward((Length(),))
    still = replace(lite, optimizer=AdamW(0.0))
    longer = Final("response_length_after")
    return Study(
        title="Controls: what must make no difference, and what must not teach",
        starts=starts(scale, ("weak", "small")),
        arms={
            "group": group,
            "group_signed": replace(group, reward=signed),
            "batch": batch,
            "batch_signed": replace(batch, reward=signed),
            "coin": replace(group, reward=coin),
            "length": replace(group, reward=length),
            "still": still,
            "still_coin": replace(still, reward=coin),
        },
        hypotheses=(
            Hypothesis("{-1, 1} is {0, 1} under group norm", "group_signed", "group", Final(), "none", 0.02),
            Hypothesis("{-1, 1} is {0, 1} under batch norm", "batch_signed", "batch", Final(), "none", 0.02),
            Hypothesis("At a rate of zero no reward matters", "still_coin", "still", Final(), "none", 0.02),
            Hypothesis("Rewards by a coin teach less than right ones", "coin", "group", Final(), "less", 0.1),
            Hypothesis("Rewards by a coin teach nothing", "coin", "still", Final(), "none", 0.05),
            Hypothesis("A reward for length makes responses longer", "length", "still", longer, "greater", 2.0),
        ),
    )


STUDY = at_each_scale(study)
