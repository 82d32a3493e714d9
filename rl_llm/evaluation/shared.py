"""Problems of suites that a run learns from: a note for the user, before accuracy on them is believed."""

from collections.abc import Iterator, Mapping, Sequence

from rl_llm.experiment.suite import Suite
from rl_llm.problem import Problem

LEARNED = ("train", "stored", "conversations")


def shared_problems(suites: Sequence[Suite], problems: Mapping[str, Sequence[Problem]]) -> Iterator[str]:
    """Name the suites with problems that a run learns from. `problems` are a run's, by split and by suite.

    Capitals and spaces do not make another problem. Passages that occur in both: `rl-llm data-report`.
    """
    learned = {_plain(problem) for name in LEARNED for problem in problems.get(name, ())}
    for suite in suites:
        asked = problems[suite.key]
        if shared := [problem for problem in asked if _plain(problem) in learned]:
            yield (
                f"suite {suite.name}: the run learns from {len(shared)} of its {len(asked)} problems, the first is "
                f"{shared[0].prompt[:60]!r}: accuracy on them says nothing about new ones"
            )


def _plain(problem: Problem) -> str:
    return " ".join(problem.prompt.casefold().split())
