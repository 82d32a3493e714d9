"""Compare the recipes on the quickstart's policy, by generated tokens.

Run:    python experiments/recipes_table.py              (resumable: finished runs are not repeated)

Every run is an ordinary `rl-llm train`. All runs of a seed start from the same warm-started policy and use the same
problems in the same order. `at N k tokens` is the validation accuracy of samples after N thousand generated tokens
(interpolated between two evaluations); `held out` is that of the last policy on unseen problems. Means over the seeds,
with 95 % intervals of Student's t.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from experiments.recipes import ABLATION

EXPERIMENT = Path(__file__).with_name("recipes.py")
BUDGET = 200_000  # generated tokens


def main() -> None:
    """Run the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"), metavar="DIR")
    parser.add_argument("--arms", nargs="+", default=list(ABLATION), choices=list(ABLATION), metavar="NAME")
    options = parser.parse_args()
    runs: dict[str, list[Path]] = {arm: [] for arm in options.arms}
    for seed in range(options.seeds):
        warm = run("warm", seed, options.out)
        for arm in options.arms:
            runs[arm].append(run(arm, seed, options.out, f"start={warm}"))
    print(table(runs))


def run(arm: str, seed: int, out: Path, *changes: str, experiment: Path = EXPERIMENT) -> Path:
    """The folder of one run, which is run first if it is missing."""
    folder = out / f"{arm}-seed{seed}"
    if not (folder / "summary.json").exists():
        command = [sys.executable, "-m", "rl_llm", "train", f"{experiment}:{arm}", "--seed", str(seed)]
        command += [part for change in changes for part in ("--set", change)]
        subprocess.run([*command, "--out", str(folder), "--resume"], check=True)
    return folder


def table(runs: dict[str, list[Path]]) -> str:
    """Markdown table with a row for each arm, best held-out accuracy first."""
    head = f"| recipe | before | at {BUDGET // 1000} k tokens | held out | length | tokens | seconds |"
    rows = []
    for arm, folders in runs.items():
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
        before, after, length, tokens, seconds = (
            [summary[name] for summary in summaries]
            for name in (
                "accuracy_before",
                "accuracy_after",
                "response_length_after",
                "tokens_generated",
                "wall_seconds",
            )
        )
        cells = [f"`{arm}`", f"{np.mean(before):.3f}", interval([at_budget(folder) for folder in folders])]
        cells += [
            interval(after),
            f"{np.mean(length):.0f}",
            f"{np.mean(tokens) / 1e3:.0f} k",
            f"{np.mean(seconds):.0f}",
        ]
        rows.append((np.mean(after), "| " + " | ".join(cells) + " |"))
    ordered = [row for _, row in sorted(rows, reverse=True)]
    return "\n".join([head, "|" + "---|" * head.count(" | ") + "---|", *ordered])


def at_budget(folder: Path) -> float:
    """Validation accuracy of a run after BUDGET generated tokens."""
    tokens, accuracies = zip(*evaluations(folder), strict=True)
    return float(np.interp(BUDGET, tokens, accuracies))


def evaluations(folder: Path) -> list[tuple[int, float]]:
    """(tokens generated so far, validation accuracy of samples) at each evaluation of a run."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["tokens/total"], line["evaluation/accuracy"]) for line in lines if "evaluation/accuracy" in line]


def interval(values: list[float]) -> str:
    """Mean ± half the width of its 95 % interval."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
