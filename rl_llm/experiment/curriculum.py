"""Which problems a step asks and how long responses may be: curricula, dynamic sampling, replay."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from rl_llm.config.fields import Checked, PositiveInt, PositiveShare
from rl_llm.prng import Purpose, generator
from rl_llm.problem import Problem


@dataclass(frozen=True)
class Difficulty(Checked):
    """Ask the easiest problems first, by `Problem.difficulty`.

    The pool holds `first_share` of the problems at the first step and grows linearly to all of them after `steps`
    (linear pacing of curriculum learning, arXiv 1904.03626).
    """

    first_share: Annotated[float, Meta(gt=0, lt=1)]
    steps: PositiveInt

    def count(self, problems: int, step: int) -> int:
        """Size of the pool at a step (from 0), out of `problems`."""
        share = self.first_share + (1 - self.first_share) * min(step / self.steps, 1.0)
        return min(int(share * problems + 0.5), problems)


@dataclass(frozen=True)
class ResponseLength(Checked):
    """Limit responses to `first` tokens at the first step, growing linearly to sampling.max_tokens after `steps`.

    One program serves all lengths: the limit is traced. In stages: DeepScaleR 2025; Skywork-OR1, arXiv 2505.22312.
    """

    first: PositiveInt
    steps: PositiveInt

    def limit(self, max_tokens: int, step: int) -> int:
        """Longest response at a step (from 0), in tokens."""
        return min(self.first + (max_tokens - self.first) * step // self.steps, max_tokens)


@dataclass(frozen=True)
class Curriculum(Checked):
    """Order of problems and lengths over a run.

    `drop_solved`: stop asking a problem once this share or more of its responses was right (0.9 in ScaleRL, arXiv
    2510.13786). If too few are left for a step, all of them return.
    """

    difficulty: Difficulty | None = None
    length: ResponseLength | None = None
    drop_solved: PositiveShare | None = None

    def pool(self, problems: Sequence[Problem], step: int) -> Sequence[Problem]:
        """Problems that a step may ask. Equally difficult ones keep their order."""
        if self.difficulty is None:
            return problems
        easiest = sorted(problems, key=lambda problem: problem.difficulty)
        return easiest[: self.difficulty.count(len(problems), step)]


@dataclass(frozen=True)
class DynamicSampling(Checked):
    """Replace groups that the algorithm's filters drop by groups of further prompts (DAPO, arXiv 2503.14476, sec. 3.2).

    A step samples until it has `prompts_per_step` groups to learn from or has made `max_rollouts` rollouts. Dropped
    groups, which have no gradient, then fill what is missing.
    """

    max_rollouts: Annotated[int, Meta(ge=2)] = 4


@dataclass(frozen=True)
class Replay(Checked):
    """Learn from `rollouts` earlier rollouts after each step's own, drawn without repetition from the last `max_age`.

    No response is learned from more than `max_age` steps after it was sampled. With a staleness s, the policy that
    sampled it is s steps older still.
    """

    max_age: PositiveInt = 4
    rollouts: PositiveInt = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollouts > self.max_age:
            raise ValueError(f"Replay.rollouts={self.rollouts} is more than max_age={self.max_age}: one rollout a step")

    def drawn(self, seed: int, step: int) -> list[int]:
        """Ages in steps (from 1) of the rollouts that a step (from 0) replays, oldest first."""
        ages = generator(seed, Purpose.REPLAY, step).permutation(min(step, self.max_age))[: self.rollouts] + 1
        return sorted(map(int, ages), reverse=True)

    def updates(self, steps: int, per_rollout: int) -> int:
        """Optimizer updates in the first `steps` steps, on their own and on replayed rollouts."""
        return per_rollout * sum(1 + min(step, self.rollouts) for step in range(steps))


@dataclass(frozen=True)
class Cursor:
    """Position of a run in its problems: `place` problems of the shuffled `epoch` are behind it."""

    epoch: int = 0
    place: int = 0


class TooFewProblems(Exception):
    """Fewer problems are allowed than a step needs."""


def next_prompts(
    problems: Sequence[Problem], seed: int, cursor: Cursor, count: int, allowed: Callable[[Problem], bool]
) -> tuple[list[Problem], Cursor]:
    """Choose the next `count` allowed problems, and return the cursor behind them.

    Every epoch has its own order; less than `count` at its end is skipped. Raises TooFewProblems if an epoch has less.
    """
    for epoch, place in ((cursor.epoch, cursor.place), (cursor.epoch + 1, 0)):
        order = generator(seed, Purpose.PROMPT_ORDER, epoch).permutation(len(problems))
        chosen: list[Problem] = []
        for passed, index in enumerate(order[place:], place + 1):
            if allowed(problems[index]):
                chosen.append(problems[index])
            if len(chosen) == count:
                return chosen, Cursor(epoch, passed)
    raise TooFewProblems(f"fewer than {count} of {len(problems)} problems may be asked")
