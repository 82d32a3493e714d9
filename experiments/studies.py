"""All studies of the paper, one after the other, and the page of their results.

Run:    make studies        (or: python experiments/studies.py; resumable, finished runs are not repeated)

Every study is an ordinary `rl-llm ablate`; all share the policies that they begin with, and compiled programs. Prints
the table of the README: a line for each hypothesis that was written down in a study's module before its first run, and
what all of it has cost. With --only the named ones; with --table nothing is run.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("paper")
STUDIES = (
    "controls",
    "t3_group_mean_batch_std",
    "lite_ppo",
    "t7_aggregation",
    "t1_normalization_and_reward_scale",
    "t2_no_std_on_easy_data",
    "data_difficulty_and_bias",
    "initialization_and_learning_rate",
    "t4_clip_higher",
    "t8_overlong_filtering",
    "t5_clipped_tokens",
    "t6_clip_and_size",
)
HEAD = "| study | hypothesis | verdict | difference | smallest | seeds |\n|---|---|---|---|---|---|"


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), metavar="DIR")
    parser.add_argument("--only", nargs="+", default=list(STUDIES), choices=STUDIES, metavar="NAME")
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu"))
    parser.add_argument("--seeds", type=int, metavar="N", help="(default: as the studies say)")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    options = parser.parse_args()
    codes = [] if options.table else [run(name, options) for name in options.only]
    print(table(options.out, options.scale))
    if any(codes):
        raise SystemExit("some members failed: run it again, or see the logs folders")


def run(name: str, options: argparse.Namespace) -> int:
    """One study; returns its exit code."""
    print(f"--- {name}", file=sys.stderr, flush=True)
    command = [
        sys.executable,
        "-m",
        "rl_llm",
        "ablate",
        os.path.relpath(FOLDER / f"{name}.py"),
        "--scale",
        options.scale,
    ]
    command += ["--out", str(options.out / f"{name}-{options.scale}"), "--shared", str(options.out / "shared")]
    command += ["--seeds", str(options.seeds)] if options.seeds else []
    code = subprocess.run([*command, "--resume"], check=False).returncode
    if code not in (0, 1):
        raise SystemExit(code)
    return code


def table(out: Path, scale: str) -> str:
    """Markdown: the verdicts of all studies that have some, and what their runs have cost together."""
    rows = [HEAD]
    for name in STUDIES:
        path = out / f"{name}-{scale}" / "results.json"
        if path.exists():
            rows += [row(name, verdict) for verdict in json.loads(path.read_text())["verdicts"]]
    folders = (*out.glob(f"*-{scale}/*"), *out.glob("shared/starts/*"))
    summaries = [json.loads(path.read_text()) for folder in folders for path in folder.glob("summary.json")]
    hours = sum(summary["wall_seconds"] for summary in summaries) / 3600
    tokens = sum(summary["tokens_generated"] for summary in summaries)
    return (
        "\n".join(rows) + f"\n\n{len(summaries)} runs, {tokens / 1e6:.1f} M generated tokens, {hours:.1f} core-hours."
    )


def row(name: str, verdict: dict[str, Any]) -> str:
    """A line of the table."""
    said = verdict["hypothesis"]
    outcome = verdict["outcome"]
    if verdict["identical"]:
        outcome += ", bitwise the same"
    if verdict["seeds_needed"]:
        outcome += f", {verdict['seeds_needed']} seeds would decide"
    estimate = verdict["mean"]
    difference = "" if estimate is None else f"{estimate['value']:+.3f}"
    if estimate and estimate["interval"]:
        difference += f" [{estimate['interval'][0]:+.3f}, {estimate['interval'][1]:+.3f}]"
    metric = said["metric"]["class"].rpartition(".")[2]
    expected = {"greater": ">", "less": "<", "none": "="}[said["direction"]]
    claim = f"{said['claim']} ({metric}: `{said['treatment']}` {expected} `{said['control']}`)"
    return f"| `{name}` | {claim} | {outcome} | {difference} | {said['smallest']:g} | {verdict['pairs']} |"


if __name__ == "__main__":
    main()
