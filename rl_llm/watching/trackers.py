"""Trackers of other libraries, by name: Weights & Biases and MLflow."""

import fcntl
import json
import os
from collections.abc import Iterator
from netrc import NetrcParseError, netrc
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from urllib.parse import urlsplit

PROJECT = "rl-llm"  # the project in W&B and the experiment in MLflow, unless their environment variables name another
TOTAL = "tokens/total"  # a number that every line of metrics.jsonl has


class WeightsAndBiases:
    """Weights & Biases: uploads if there is an API key; otherwise `wandb/` in the run folder waits for `wandb sync`."""

    name, packages = "wandb", ("wandb",)

    def open(self, run: Path, restored: int) -> int:
        """Open the run of this folder; a resumed one keeps its id, so its steps go on."""
        import wandb

        record, self._run = json.loads((run / "experiment.json").read_text()), run
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_api_key() else "offline")
        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
        self._wandb = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            **{"id": run_id(run), "name": run.name, "resume": "allow"},
            **{"dir": str(run), "mode": mode, "config": record, "settings": settings},
        )
        return _last_offline_step(run) if mode == "offline" else max(0, self._wandb.step - 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write a row of the history."""
        self._wandb.log(numbers, step=step, commit=True)

    def close(self) -> None:
        """Finish the run; without summary.json it counts as failed."""
        self._wandb.finish(exit_code=0 if _is_done(self._run) else 1)


class MLflow:
    """MLflow: the store that MLFLOW_TRACKING_URI names, by default MLflow's own, mlflow.db in the current folder."""

    name, packages = "mlflow", ("mlflow", "sqlalchemy", "alembic")

    def open(self, run: Path, restored: int) -> int:
        """Open the run that has this folder's id as a tag, or create it."""
        self._client, self._run = self._open_store(), run
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        found = self._client.search_runs([experiment], f"tags.`rl_llm.run` = '{run_id(run)}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, "RUNNING")
            return max((metric.step for metric in self._client.get_metric_history(self._id, TOTAL)), default=0)
        tags = {"rl_llm.run": run_id(run)}
        self._id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        for name, value in _flat("", json.loads((run / "experiment.json").read_text())):
            self._client.log_param(self._id, name, str(value)[:500])
        return 0

    def _open_store(self) -> Any:
        """Open the store, one process of this machine at a time: two that create its tables at once would break it."""
        from mlflow import MlflowClient

        with (Path(gettempdir()) / f"rl_llm-mlflow-{os.getuid()}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return MlflowClient()

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # it exists already
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write all numbers of a step in one transaction."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in numbers.items()])

    def close(self) -> None:
        """End the run; without summary.json it counts as killed."""
        self._client.set_terminated(self._id, "FINISHED" if _is_done(self._run) else "KILLED")


TRACKERS: dict[str, Any] = {kind.name: kind for kind in (WeightsAndBiases, MLflow)}


def run_id(run: Path) -> str:
    """An id of a run folder that no other has: the digest of its ledger's first entry, which contains the time."""
    with (run / "ledger.jsonl").open() as lines:
        return str(json.loads(next(lines))["sha256"])[:16]


def _is_done(run: Path) -> bool:
    return (run / "summary.json").is_file()


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects, named by their path."""
    if not isinstance(value, dict):
        yield path, value
        return
    for name, child in value.items():
        yield from _flat(f"{path}.{name}" if path else str(name), child)


def _has_api_key() -> bool:
    """Whether W&B has an API key, so that it need not ask for one."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, NetrcParseError):
        known = None
    return bool(os.environ.get("WANDB_API_KEY") or known)


def _last_offline_step(run: Path) -> int:
    """The last step in this run's offline files; W&B loses those that it had not written when it was killed."""
    from wandb.proto.wandb_internal_pb2 import Record

    steps = [0]
    for file in sorted(run.glob(f"wandb/*/run-{run_id(run)}.wandb")):
        for item in (item for record in _records(file) for item in Record.FromString(record).history.item):
            if (item.key or "/".join(item.nested_key)) == "_step":
                steps.append(int(json.loads(item.value_json)))
    return max(steps)


def _records(file: Path) -> Iterator[bytes]:
    """The whole records of a W&B file: 7 bytes, then LevelDB's log format.

    A block of 32 KiB has parts of records: check sum (4 bytes), length (2), kind (1: whole, 2: first, 3: middle,
    4: last), content. Less than 7 bytes at its end are padding.
    """
    content, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        room = 2**15 - place % 2**15
        if room < 7:
            place += room
            continue
        end, kind = place + 7 + int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        if kind == 0 or end > len(content):  # never written, or torn by a kill
            return
        record, place = (b"" if kind in (1, 2) else record) + content[place + 7 : end], end
        if kind in (1, 4):
            yield record
