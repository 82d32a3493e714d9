"""Runs one after the other in one process, as the worker of a study makes them: the next finds what one compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from program import CACHE

from rl_llm.commands.ablate import train_members
from rl_llm.studies.workers import Job, Workers, open_workers


@dataclass(frozen=True)
class Runs:
    """Made by `open_runs`."""

    workers: Workers[str]
    logs: Path

    def train(self, *arguments: str | Path) -> tuple[int, str]:
        """`rl-llm train` with these arguments: its exit code, and what it printed."""
        log = self.logs / f"{len(list(self.logs.iterdir()))}.log"
        self.workers.give("run", Job(train_members, [list(map(str, arguments))], [log]))
        while not (ended := self.workers.ended()):
            pass
        return ended[0].codes[0], log.read_text()


@contextmanager
def open_runs(logs: Path) -> Iterator[Runs]:
    """A process for runs, which print into files of a folder."""
    with open_workers([None], Path(CACHE["JAX_COMPILATION_CACHE_DIR"])) as workers:
        yield Runs(workers, logs)
