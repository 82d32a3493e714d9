"""Benchmarks by name: each makes a suite of a file, in any of the layouts in which it is published."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rl_llm.evaluation.reasoning_gym_file import ReasoningGymFile
from rl_llm.experiment.suite import QUESTION, Suite
from rl_llm.problem import Task
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.layouts import AIME, DAPO, GSM8K, MATH, PRESETS, Layout, advice, fitting
from rl_llm.tasks.reasoning_gym import ReasoningGym
from rl_llm.tasks.tables import read_files, rows_of

BOXED = QUESTION + "\nPlease reason step by step, and put your final answer within \\boxed{}."
TAGGED = QUESTION + "\nThink step by step, and write your final answer between <answer> and </answer>."
DRAWN = 256  # problems of a reasoning-gym data set that is named instead of a file

_CAPITALS = Layout("Problem", "Answer")
_NAMED = (AIME, _CAPITALS, GSM8K, MATH, DAPO)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, called with its file. Among `layouts` the first that reads the file's first row is taken.

    `prompt` is how a model without a run is asked.
    """

    name: str
    layouts: tuple[Layout, ...] = _NAMED
    prompt: str = BOXED

    def __call__(self, file: str | Path) -> Suite:
        """Make the suite of a file. Raises FileNotFoundError or ValueError naming the file and the way out."""
        return Suite(self.name, self._task(file))

    def _task(self, file: str | Path) -> Task:
        place, fields = next(iter(rows_of(_files(self.name, file))))
        if isinstance(fields, ValueError):
            raise ValueError(f"{place}: {fields}")
        reasons = []
        for layout in self.layouts:
            try:
                layout.read(fields)
                return JsonlProblems(file, layout=layout, split="all")
            except ValueError as error:
                reasons.append(f"{' + '.join(layout.parts)} and {layout.answer}: {error}")
        fits = next((name for name in fitting(fields)), None)
        known = f"; it reads as layout {fits}, of another benchmark" if fits else advice(fields, self.layouts[0])
        raise ValueError(
            f"{place} is no row of {self.name} (its fields are {', '.join(fields)}){known}. Expected question and "
            f"answer in {reasons[0]}. Rename the fields, or put Suite({self.name!r}, JsonlProblems(FILE, "
            "layout=Layout(QUESTION, ANSWER), split='all')) into the experiment's evaluation.suites"
        )


@dataclass(frozen=True)
class ReasoningGymBenchmark(Benchmark):
    """Entries of reasoning-gym in a file, or `DRAWN` held-out problems of one of its data sets."""

    def __call__(self, file: str | Path) -> Suite:
        """Make the suite of a file, or of a data set if there is no such file."""
        if not Path(file).exists() and re.fullmatch(r"[a-z0-9_]+", str(file)):
            return Suite(self.name, ReasoningGym(str(file)), problems=DRAWN)
        _files(self.name, file)
        return Suite(self.name, ReasoningGymFile(file))


def _files(name: str, file: str | Path) -> Mapping[Path, bytes]:
    files = read_files(file)
    if not files:
        raise FileNotFoundError(f"--suite {name}={file}: {file} is not a file; give the file with its problems")
    return files


BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("gsm8k", (GSM8K, DAPO)),
        Benchmark("math500"),
        Benchmark("aime24"),
        Benchmark("aime25"),
        Benchmark("amc23"),
        Benchmark("minerva", (MATH, GSM8K, AIME, DAPO)),
        Benchmark("olympiadbench", (PRESETS["OLYMPIAD"], PRESETS["FINAL_ANSWER"], GSM8K, AIME, DAPO)),
        ReasoningGymBenchmark("reasoning_gym", (), TAGGED),
    )
}


def benchmark(name: str) -> Benchmark:
    """Benchmark of a name; capitals, '-' and '_' make no difference. Raises ValueError with the nearest name."""

    def plain(text: str) -> str:
        return re.sub(r"[\W_]", "", text.casefold()).replace("2024", "24").replace("2025", "25").replace("2023", "23")

    names = {plain(known): known for known in BENCHMARKS} | {"minervamath": "minerva", "olympiad": "olympiadbench"}
    found = names.get(plain(name))
    if found is None:
        near = difflib.get_close_matches(plain(name), names, n=1)
        hint = f"; did you mean {names[near[0]]}?" if near else "."
        raise ValueError(f"--suite {name}=...: there is no such suite{hint} There are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[found]


def parse_suites(given: list[str]) -> list[Suite]:
    """Suites of NAME=FILE. Raises ValueError or FileNotFoundError naming the argument."""
    suites = []
    for text in given:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise ValueError(f"--suite {text}: expected NAME=FILE, with a NAME among {', '.join(BENCHMARKS)}")
        suites.append(benchmark(name)(file))
    names = [suite.name for suite in suites]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--suite {repeated[0]} is given more than once; evaluate one file at a time")
    return suites
