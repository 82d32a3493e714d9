"""Which problems a step asks, and how long its responses may be: curricula, solved problems dropped, dynamic
sampling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rl_llm.prng import Purpose, generator
from rl_llm.problem import Problem


@dataclass(frozen=True)
class Difficulty:
    """The easiest problems first (by `Problem.difficulty`): a share of them at the first step, which grows evenly to
    all of them after `steps` (the linear pacing of curriculum learning, arXiv 1904.03626).
    """

    first_share: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.first_share < 1 or self.steps < 1:
            raise ValueError(f"Difficulty needs 0 < first_share < 1 and steps >= 1, not {self}")

    def count(self, problems: int, step: int) -> int:
        """How many of so many problems, the easiest, may be asked at a step (from 0)."""
        share = self.first_share + (1 - self.first_share) * min(step / self.steps, 1.0)
        return min(int(share * problems + 0.5), problems)


@dataclass(frozen=True)
class ResponseLength:
    """Responses of at most `first` tokens at the first step, a bound which grows evenly to sampling.max_tokens after
    `steps` (in stages: DeepScaleR 2025; Skywork-OR1, arXiv 2505.22312). The bound is a value: one program
    serves all.
    """

    first: int
    steps: int

    def __post_init__(self) -> None:
        if self.first < 1 or self.steps < 1:
            raise ValueError(f"ResponseLength needs first >= 1 and steps >= 1, not {self}")

    def limit(self, max_tokens: int, step: int) -> int:
        """The longest response of a step (from 0), in tokens."""
        return min(self.first + (max_tokens - self.first) * step // self.steps, max_tokens)


@dataclass(frozen=True)
class Curriculum:
    """What is asked when. `drop_solved`: a problem whose responses were right to this share or more is not asked again
    (0.9 in ScaleRL, arXiv 2510.13786); when too few are left for a step, all are asked anew.
    """

    difficulty: Difficulty | None = None
    length: ResponseLength | None = None
    drop_solved: float | None = None

    def __post_init__(self) -> None:
        if self.drop_solved is not None and not 0 < self.drop_solved <= 1:
            raise ValueError(f"Curriculum.drop_solved is a share of right responses in (0, 1], not {self.drop_solved}")

    def pool(self, problems: Sequence[Problem], step: int) -> Sequence[Problem]:
        """The problems that a step may ask; equally difficult ones in the order they have."""
        if self.difficulty is None:
            return problems
        easiest = sorted(problems, key=lambda problem: problem.difficulty)
        return easiest[: self.difficulty.count(len(problems), step)]


@dataclass(frozen=True)
class DynamicSampling:
    """Groups that the algorithm's filters drop are replaced by those of further prompts, until a step has
    `prompts_per_step` groups to learn from or has made `max_rollouts` rollouts (DAPO, arXiv 2503.14476, section 3.2).
    What is lacking then is filled up with dropped groups, which have no gradient.
    """

    max_rollouts: int = 4

    def __post_init__(self) -> None:
        if self.max_rollouts < 2:
            raise ValueError(
                f"DynamicSampling.max_rollouts={self.max_rollouts} leaves nothing to sample again: at least 2"
            )


@dataclass(frozen=True)
class Replay:
    """After its own rollout a step learns from `rollouts` earlier ones as well, drawn without repetition from those of
    the last `max_age` steps: no response is learned from that was sampled more than `max_age` steps ago, with a
    staleness s by a policy of s steps before that.
    """

    max_age: int = 4
    rollouts: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.rollouts <= self.max_age:
            raise ValueError(f"Replay needs 1 <= rollouts <= max_age, not {self}")

    def drawn(self, seed: int, step: int) -> list[int]:
        """The ages in steps (from 1) of the rollouts that a step (from 0) replays, the oldest first."""
        there = min(step, self.max_age)
        ages = generator(seed, Purpose.REPLAY, step).permutation(there)[: self.rollouts] + 1
        return sorted(map(int, ages), reverse=True)

    def updates(self, steps: int, per_rollout: int) -> int:
        """Optimizer updates of that many steps, their own rollouts' included."""
        return per_rollout * sum(1 + min(step, self.rollouts) for step in range(steps))


@dataclass(frozen=True)
class Cursor:
    """Where a run stands in its problems: `place` of them were passed in the order of `epoch`."""

    epoch: int = 0
    place: int = 0


class TooFewProblems(Exception):
    """Fewer problems may be asked than a step asks."""


def next_prompts(
    problems: Sequence[Problem], seed: int, cursor: Cursor, count: int, allowed: Callable[[Problem], bool]
) -> tuple[list[Problem], Cursor]:
    """The next `count` of the problems that are allowed, and where that leaves off: every epoch in an order of its own,
    without repetition; what remains of an epoch is left out if it is too little.

    Raises TooFewProblems if a whole epoch has not so many.
    """
    for epoch, place in ((cursor.epoch, cursor.place), (cursor.epoch + 1, 0)):
        order = generator(seed, Purpose.PROMPT_ORDER, epoch).permutation(len(problems))
        chosen: list[Problem] = []
        for passed, index in enumerate(order[place:], place + 1):
            if allowed(problems[index]):
                chosen.append(problems[index])
            if len(chosen) == count:
                return chosen, Cursor(epoch, passed)
    raise TooFewProblems(f"of {len(problems)} problems fewer than {count} may be asked")
