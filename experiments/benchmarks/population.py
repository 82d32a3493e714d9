"""Time a population: whole runs of an experiment, N members at once against one alone.

Run:    python experiments/benchmarks/population.py             (64 members of the quickstart, on an accelerator)
        python experiments/benchmarks/population.py --experiment tests/data/tiny.py --members 8     (on a CPU)

The whole run counts: warm start, sampling, grading, updates, checkpoints, evaluations and report. Each size runs twice
in this process. The table shows the second run, which compiles nothing; `first` is the extra time of the first. A step
is the median `time/step` of the RL steps of all members. The goal: 64 members in at most four times the seconds of one.

Measured: on two busy AMD EPYC cores, 8 members of tests/data/tiny.py took 10.3 s of CPU, and one took 1.3 s: there is
no gain if one member fills the cores. Nearly all of it is work of the host for each member in turn (problems, files,
evaluations, report); the programs took 1.3 s of wall-clock time. Not measured on an accelerator.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import jax

from rl_llm.commands.ablate import train_members
from rl_llm.runs.folder import read_metrics
from rl_llm.studies.workers import printing_to, thread_logs


def main() -> None:
    """Run one member, then all; prints a row of a Markdown table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="experiments/quickstart.py", help="a Python file (default: quickstart)")
    parser.add_argument("--members", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=v", dest="overrides", help="as in rl-llm train"
    )
    asked = parser.parse_args()
    overrides = [part for override in asked.overrides for part in ("--set", override)]
    print(f"{asked.experiment} {' '.join(asked.overrides)} on {jax.devices()[0].device_kind}\n")
    print("| members | seconds | of one | CPU s | step, s | first, s |")
    print("|---|---|---|---|---|---|")
    alone = 0.0
    for size in (1, asked.members):
        (first, _, _), (seconds, cpu, step) = (timed(asked.experiment, overrides, size) for _ in range(2))
        alone = alone or seconds
        figures = (f"{seconds:.1f}", f"{seconds / alone:.2f}", f"{cpu:.1f}", f"{step:.3f}", f"{first - seconds:.1f}")
        print(f"| {size} | {' | '.join(figures)} |", flush=True)


def timed(experiment: str, overrides: Sequence[str], size: int) -> tuple[float, float, float]:
    """Wall-clock and CPU seconds of this process for a population of runs, and the median of a step."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder, str(seed)) for seed in range(size)]
        commands = [[experiment, "--seed", str(seed), "--out", str(run), *overrides] for seed, run in enumerate(runs)]
        logs = [Path(folder, f"{seed}.log") for seed in range(size)]
        begun = time.perf_counter(), time.process_time()
        with thread_logs(), printing_to(logs[0]):
            codes = train_members(commands, logs)
        seconds, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
        if any(codes):
            raise SystemExit(f"a run ended with exit codes {codes}: {logs[codes.index(max(codes))].read_text()}")
        steps = [line["time/step"] for run in runs for line in read_metrics(run) if line["phase"] == "rl"]
        return seconds, cpu, median(steps)


if __name__ == "__main__":
    main()
