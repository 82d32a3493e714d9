"""Progress display of a run: live bars on a terminal, plain lines elsewhere."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rl_llm.config.terminal import escaped_lines, make_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 10.0
SHARE_BETWEEN_LINES = 0.05
STEPS_OF_TOKEN_RATE = 10


class Progress:
    """Shows the phases of a run on standard error or `console`, or nothing if `quiet`. Use it in a `with` statement."""

    def __init__(self, console: "Console | None" = None, quiet: bool = False) -> None:
        self._console = console or make_console(stderr=True, quiet=quiet)
        self._bars = _bars(self._console) if self._console.is_terminal and not quiet else None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Print `text` above the bars, as it is but for control characters."""
        self._console.print(escaped_lines(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(
        self, name: str, total: int, done: int = 0, aside: bool = False, compiles: str = ""
    ) -> Iterator["_Bar | _Lines"]:
        """Show one phase of `total` steps, such as the warm start; `done` of them were made before a resume.

        A phase `aside` is part of another: it prints nothing in its first seconds, and its bar goes when it ends. The
        first step compiles the programs `compiles`, which may take minutes: it does not count for the time left.
        """
        if compiles and done < total:
            self.say(f"{name}: compiling {compiles} in the first step ...")
        if self._bars is None:
            yield _Lines(self, name, total, done, aside)
            return
        task = self._bars.add_task(name, total=total, completed=done, numbers="")
        try:
            yield _Bar(self._bars, task)
        finally:
            self._bars.stop_task(task)
            self._bars.update(task, visible=not aside)


class _TokenRate:
    """Tokens per second over the last few updates; 0 for the first one, which compiles."""

    def __init__(self) -> None:
        self._updates: deque[tuple[float, int]] = deque(maxlen=STEPS_OF_TOKEN_RATE + 1)

    def add(self, tokens: int) -> float:
        self._updates.append((time.monotonic(), tokens))
        seconds = self._updates[-1][0] - self._updates[0][0]
        return sum(count for _, count in list(self._updates)[1:]) / max(seconds, 1e-9)


class _Bar:
    def __init__(self, bars: "Bars", task: "TaskID") -> None:
        self._bars, self._task, self._rate = bars, task, _TokenRate()

    def update(self, step: int, *, tokens: int = 0, **fields: float) -> None:
        """Show that `step` steps are done. tokens: processed since the last update. fields: numbers such as reward."""
        self._bars.update(self._task, completed=step, numbers=_numbers(fields, self._rate.add(tokens)))


class _Lines:
    """Prints a line at the first and last step, and after every 5 % of the steps or 10 seconds.

    A phase aside prints after 10 seconds only.
    """

    def __init__(self, progress: Progress, name: str, total: int, done: int, aside: bool = False) -> None:
        self._progress, self._name, self._total, self._aside = progress, name, total, aside
        self._start = time.monotonic()
        self._first: tuple[int, float] | None = None  # step and time of the first update
        self._rate = _TokenRate()
        self._shown: tuple[int, float] | None = (done, self._start) if aside else None

    def update(self, step: int, *, tokens: int = 0, **fields: float) -> None:
        now = time.monotonic()
        rate = self._rate.add(tokens)
        self._first = self._first or (step, now)
        if self._shown is not None and (step < self._total or self._aside):
            shown_step, shown_time = self._shown
            few_steps = self._aside or step - shown_step < SHARE_BETWEEN_LINES * self._total
            if few_steps and now - shown_time < SECONDS_BETWEEN_LINES:
                return
        self._shown = (step, now)
        timed = step - self._first[0]
        left = (now - self._first[1]) / max(timed, 1) * (self._total - step)
        times = f"{_clock(now - self._start)} elapsed" + (f", {_clock(left)} left" if timed and left else "")
        self._progress.say(f"{self._name} {step}/{self._total}  {_numbers(fields, rate)}  {times}")


def _bars(console: "Console") -> "Bars":
    from rich import progress
    from rich.table import Column

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        progress.BarColumn(bar_width=12),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left", markup=False),
        progress.TimeRemainingColumn(compact=True),
        # Last, so that a narrow terminal cuts it off first.
        progress.TextColumn(
            "{task.fields[numbers]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        console=console,
        expand=True,
        speed_estimate_period=math.inf,  # a step may take minutes
    )


def _numbers(fields: dict[str, float], tokens_per_second: float) -> str:
    shown = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in fields.items()]
    return "  ".join([*shown, f"{tokens_per_second:,.0f} tokens/s"] if tokens_per_second else shown)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
