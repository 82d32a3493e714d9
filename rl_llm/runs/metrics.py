"""The metrics of a run: metrics.jsonl is the truth, TensorBoard shows the same numbers."""

import json
import math
from pathlib import Path
from typing import Any, Self

from rl_llm.runs.folder import METRICS, RunFolder


class MetricsLog:
    """One record per step to metrics.jsonl, its numbers to `tensorboard/` too. Use it in a `with` statement.

    resumed_from: the step of the checkpoint that a resumed run goes on from; TensorBoard then drops what it
    holds of later steps, as `RunFolder.truncate_after` does in metrics.jsonl.
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
            # The rest of the name is the second, so a quick resume would overwrite the file before it.
            filename_suffix="" if resumed_from is None else f".after_{resumed_from}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, record: dict[str, Any]) -> None:
        """Writes `record`: an integer `step`, text such as `phase`, floats (TensorBoard: finite ones)."""
        self._folder.log(record)
        if self._writer is None:
            return
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, record["step"])


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The records of a run folder, or of a metrics.jsonl, in order; "nan" and "inf" are floats again.

    A torn last line is left out, for the run may still go on. Raises ValueError for any other damaged line.
    """
    path = Path(path)
    return [_with_floats(record) for record in read_records(path / METRICS if path.is_dir() else path)]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, without a torn last one. ValueError names a damaged line."""
    content = path.read_bytes()
    records = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
    return records


def _with_floats(record: dict[str, Any]) -> dict[str, Any]:
    not_finite = ("nan", "inf", "-inf")
    return {name: float(value) if value in not_finite else value for name, value in record.items()}
