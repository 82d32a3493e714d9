"""The metrics of a run: metrics.jsonl is the record, and TensorBoard shows the same numbers."""

import math
from pathlib import Path
from typing import Any, Self

from rl_llm.runs.files import read_records
from rl_llm.runs.folder import METRICS, RunFolder


class MetricsLog:
    """Writes one record per step to metrics.jsonl and its numbers to `tensorboard/`. Use it in a `with` statement.

    resumed_from: the step of the restored checkpoint; TensorBoard drops later ones, as `RunFolder.truncate_after` does.
    """

    def __init__(self, folder: RunFolder, resumed_from: int | None = None) -> None:
        from tensorboardX import SummaryWriter

        self._folder = folder
        self._writer = None
        if not folder.writes:
            return
        self._writer = SummaryWriter(
            str(folder.path / "tensorboard"),
            purge_step=None if resumed_from is None else resumed_from + 1,
            flush_secs=10,
            # Names contain the second, so without a suffix a quick resume would overwrite the previous file.
            filename_suffix="" if resumed_from is None else f".after_{resumed_from}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, record: dict[str, Any]) -> None:
        """Write a record: an integer `step`, text such as `phase`, and numbers (TensorBoard: finite ones)."""
        self._folder.log(record)
        if self._writer is None:
            return
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, record["step"])


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Read the records of a run folder or a metrics.jsonl, in order; "nan" and "inf" become floats.

    The run may still be writing, so an incomplete last line is skipped. Raises ValueError for another damaged line.
    """
    records = read_records(Path(path) / METRICS if Path(path).is_dir() else Path(path))
    not_finite = ("nan", "inf", "-inf")
    return [{key: float(value) if value in not_finite else value for key, value in one.items()} for one in records]
