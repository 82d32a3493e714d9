"""How a run went, in a word: for a map of what to begin with and which numbers to choose."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

from rl_llm.studies.metric import Lines, Summary, curve

Fate = Literal["learned", "stalled", "collapsed"]
FATES: tuple[Fate, ...] = get_args(Fate)
GAIN = 0.05  # of held-out accuracy, below which a run has learned nothing that is worth its cost
LOSS = 0.10  # of held-out accuracy, below where a run began
LOST = 0.20  # from its best validation, which is high by chance: the best of many evaluations of a few problems


def fate(summary: Summary, lines: Lines) -> Fate:
    """By held-out accuracy in the end: `collapsed` where it is `LOSS` below the start, or `LOST` below the best
    validation on the way; else `learned` where it is `GAIN` above the start; else `stalled`.
    """
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    _, validations = curve(lines, "evaluation/accuracy")
    if not after > before - LOSS or (len(validations) and after <= validations.max() - LOST):
        return "collapsed"
    return "learned" if after - before >= GAIN else "stalled"


def count_fates(runs: Iterable[tuple[Summary, Lines]]) -> dict[Fate, int]:
    """How many runs went each way."""
    counts = Counter(fate(*run) for run in runs)
    return {name: counts[name] for name in FATES}
