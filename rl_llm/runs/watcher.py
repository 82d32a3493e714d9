"""The interface of watchers: trackers of a run's metrics, a profiler of its steps (`rl_llm.watching`)."""

from collections.abc import Callable, Iterable

from rl_llm.runs.folder import RunFolder


class Watcher:
    """Sees a run and takes no part in it. The run calls the methods in this order; by default they do nothing."""

    def open(self, folder: RunFolder, restored: int, done: int, say: Callable[[str], None]) -> None:
        """Prepare to watch a run at step `restored` (0: new) with `done` RL steps; nothing is written yet.

        `say` prints. With several processes, only the one whose folder `writes` has something to watch. Raises
        RunFolderError if the run is past what was asked for.
        """

    def steps(self, steps: Iterable[int]) -> Iterable[int]:
        """Pass on the RL steps to come, counted from 0."""
        return steps

    def wrote(self) -> None:
        """A line was added to metrics.jsonl. Returns at once."""

    def close(self) -> None:
        """The run ends, for whatever reason."""
