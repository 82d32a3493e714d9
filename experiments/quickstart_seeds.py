"""Run the quickstart over five seeds, beside rejection sampling with the same number of steps and prompts.

Run:    python experiments/quickstart_seeds.py              (resumable: finished runs are not repeated)

Every run is an ordinary `rl-llm train` in its own process, so its seconds include imports and compilation. Prints the
table of docs/results.md: held-out accuracy of samples before and after, their interquartile mean and minimum, mean
response length, generated tokens, seconds. Both policies learn to write out every step, so their generated tokens
differ by about one percent.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from scipy.stats import trim_mean

ARMS = ("lite_ppo", "rejection_sampling")
EXPERIMENT = Path(__file__).with_name("quickstart.py")


def main() -> None:
    """Run the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N - 1 (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart_seeds"), metavar="DIR")
    options = parser.parse_args()
    summaries = {(arm, seed): run(arm, seed, options.out) for seed in range(options.seeds) for arm in ARMS}
    print(table(summaries, options.seeds))


def run(arm: str, seed: int, out: Path) -> dict[str, Any]:
    """The summary of one run, which is run first if it is missing."""
    folder = out / f"{arm}-seed{seed}"
    if not (folder / "summary.json").exists():
        command = [sys.executable, "-m", "rl_llm", "train", f"{EXPERIMENT}:{arm}", "--seed", str(seed)]
        subprocess.run([*command, "--out", str(folder), "--resume"], check=True)
    return dict(json.loads((folder / "summary.json").read_text()))


def table(summaries: dict[tuple[str, int], dict[str, Any]], seeds: int) -> str:
    """Markdown table with a row per seed, then the interquartile mean and the minimum."""
    head = "| seed | before | Lite PPO | greedy | length | tokens | seconds | rejection sampling | tokens |"
    lines = [head, "|" + "---|" * head.count(" | ") + "---|"]
    for seed in range(seeds):
        ppo, control = (summaries[arm, seed] for arm in ARMS)
        lines.append(
            f"| {seed} | {ppo['accuracy_before']:.3f} | {ppo['accuracy_after']:.3f} | {ppo['greedy_after']:.3f} "
            f"| {ppo['response_length_before']:.1f} -> {ppo['response_length_after']:.1f} "
            f"| {ppo['tokens_generated'] / 1e3:.0f} k | {ppo['wall_seconds']:.0f} "
            f"| {control['accuracy_after']:.3f} | {control['tokens_generated'] / 1e3:.0f} k |"
        )
    columns = [
        [summaries[arm, seed][field] for seed in range(seeds)]
        for arm, field in (
            (ARMS[0], "accuracy_before"),
            (ARMS[0], "accuracy_after"),
            (ARMS[0], "greedy_after"),
            (ARMS[1], "accuracy_after"),
        )
    ]
    for name, reduce in (("IQM", lambda column: trim_mean(column, 0.25)), ("min", min)):
        before, after, greedy, controls = (f"{reduce(column):.3f}" for column in columns)
        lines.append(f"| {name} | {before} | {after} | {greedy} | | | | {controls} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
