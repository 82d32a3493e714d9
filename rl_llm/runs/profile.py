"""A trace of some RL steps by JAX's profiler, for Perfetto and XProf."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

import jax

from rl_llm.runs.folder import RunFolder, RunFolderError


class Profiler:
    """Traces the RL steps `traced`, counted from 1, into `profile/` of a run folder. Use it in a `with` statement.

    `done` RL steps were made before a resume. Without `traced` it does nothing. Raises RunFolderError if the first of
    the steps is already done.
    """

    def __init__(self, folder: RunFolder, traced: range | None, done: int, say: Callable[[str], None]) -> None:
        if traced and traced.start <= done:
            raise RunFolderError(
                f"--profile {traced.start}:{traced[-1]}: {done} RL steps of {folder.path} are done; choose later steps"
            )
        self._folder, self._say, self._running = folder.path / "profile", say, False
        self._traced = traced if folder.writes and traced else range(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._running:
            self._stop()

    def name_steps(self, steps: Iterable[int]) -> Iterator[int]:
        """Yield RL steps, counted from 0, each named in the trace; start and stop the trace between them."""
        for step in steps:
            if self._traced and step + 1 == self._traced.start:
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # every Python call would slow the steps and hide their phases
                jax.profiler.start_trace(self._folder, profiler_options=options)
                self._running = True
            with jax.profiler.StepTraceAnnotation("RL step", step_num=step + 1):
                yield step
            if self._running and step + 1 == self._traced[-1]:
                self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        newest = max(self._folder.rglob("*.trace.json.gz"), key=lambda path: Path(path).stat().st_mtime_ns)
        self._say(f"trace of RL steps: open {newest} in https://ui.perfetto.dev, or run: xprof --logdir {self._folder}")
