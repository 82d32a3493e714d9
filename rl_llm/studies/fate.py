"""How a run went, in a word: for a map of what to begin with and which numbers to choose."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from rl_llm.runs.findings import FALL

Fate = Literal["learned", "stalled", "collapsed"]
FATES: tuple[Fate, ...] = get_args(Fate)
GAIN = 0.05  # of held-out accuracy, below which a run has learned nothing that is worth its cost


def fate(summary: Mapping[str, Any]) -> Fate:
    """From summary.json, by held-out accuracy: `collapsed` where a run found that it had lost accuracy on its way, or
    ended `FALL` below its start; else `learned` where it ended `GAIN` above its start; else `stalled`.
    """
    gain = summary["accuracy_after"] - summary["accuracy_before"]
    found = {finding["name"] for finding in summary.get("findings", ())}
    if "accuracy_lost" in found or not gain > -FALL:
        return "collapsed"
    return "learned" if gain >= GAIN else "stalled"


def count_fates(summaries: Iterable[Mapping[str, Any]]) -> dict[Fate, int]:
    """How many runs went each way."""
    counts = Counter(map(fate, summaries))
    return {name: counts[name] for name in FATES}
