"""A trace of some RL steps by JAX's profiler, for Perfetto and XProf."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import jax

from rl_llm.runs.folder import RunFolder, RunFolderError
from rl_llm.runs.watcher import Watcher


class Profiler(Watcher):
    """Traces the RL steps `traced`, counted from 1, into `profile/` of the run folder."""

    def __init__(self, traced: range) -> None:
        self._traced, self._running = traced, False

    def open(self, folder: RunFolder, restored: int, done: int, say: Callable[[str], None]) -> None:
        """Raise RunFolderError if the first of the steps is already done."""
        if self._traced.start <= done:
            raise RunFolderError(
                f"--profile {self._traced.start}:{self._traced[-1]}: {done} RL steps of {folder.path} are done; choose "
                "later steps"
            )
        self._writes, self._run, self._folder, self._say = folder.writes, folder, folder.path / "profile", say

    def close(self) -> None:
        """Stop the trace of a run that ends early."""
        if self._running:
            self._stop()

    def steps(self, steps: Iterable[int]) -> Iterator[int]:
        """Name RL steps in the trace; start and stop it between them."""
        for step in steps:
            if self._writes and step + 1 == self._traced.start:
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # every Python call would slow the steps and hide their phases
                self._traces = TemporaryDirectory()
                jax.profiler.start_trace(self._traces.name, profiler_options=options)
                self._running = True
            with jax.profiler.StepTraceAnnotation("RL step", step_num=step + 1):
                yield step
            if self._running and step + 1 == self._traced[-1]:
                self._stop()

    def _stop(self) -> None:
        self._running = False
        with self._traces as written:
            jax.profiler.stop_trace()
            self._run.check()
            shutil.copytree(written, self._folder, dirs_exist_ok=True)
        newest = max(self._folder.rglob("*.trace.json.gz"), key=lambda path: Path(path).stat().st_mtime_ns)
        self._say(f"trace of RL steps: open {newest} in https://ui.perfetto.dev, or run: xprof --logdir {self._folder}")
