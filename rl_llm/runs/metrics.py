"""The metrics of a run: metrics.jsonl is the record, and trackers show the same numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from rl_llm.runs.files import read_records
from rl_llm.runs.folder import METRICS, RunFolder
from rl_llm.runs.tracking import Mirror, TensorBoard, Tracker


class MetricsLog:
    """Writes one record per step to metrics.jsonl, which TensorBoard and `trackers` show. Use it in a `with` statement.

    resumed_from: the step of the restored checkpoint. say: receives the errors of trackers, which stop no run.
    """

    def __init__(
        self,
        folder: RunFolder,
        resumed_from: int | None = None,
        trackers: Sequence[Tracker] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self._folder = folder
        watching = (TensorBoard(), *trackers) if folder.writes else ()
        self._mirrors = [Mirror(tracker, folder.path, resumed_from or 0, say) for tracker in watching]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for mirror in self._mirrors:
            mirror.close()

    def write(self, record: dict[str, Any]) -> None:
        """Write a record: an integer `step`, text such as `phase`, and numbers (trackers: finite ones)."""
        self._folder.log(record)
        for mirror in self._mirrors:
            mirror.wake()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Read the records of a run folder or a metrics.jsonl, in order; "nan" and "inf" become floats.

    The run may still be writing, so an incomplete last line is skipped. Raises ValueError for another damaged line.
    """
    records = read_records(Path(path) / METRICS if Path(path).is_dir() else Path(path))
    not_finite = ("nan", "inf", "-inf")
    return [{key: float(value) if value in not_finite else value for key, value in one.items()} for one in records]
