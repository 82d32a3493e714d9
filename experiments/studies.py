"""All studies of the paper, one after the other, and the page of their results.

Run:    make studies        (or: python experiments/studies.py; resumable, finished runs are not repeated)

Every study is an ordinary `rl-llm ablate`; all share the policies that they begin with, and compiled programs. Prints
the table of the README: a line for each hypothesis that was written down in a study's module before its first run, and
what all of it has cost. With --only the named ones; with --table nothing is run; with --record what is there is
written into the studies' docstrings and README.md.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import textwrap
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
README = Path(__file__).parent.parent / "README.md"
MEASURED = "\n\nMeasured by `rl-llm ablate"
HEAD = "| study | hypothesis | verdict | difference | smallest | seeds |\n|---|---|---|---|---|---|"


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), metavar="DIR")
    parser.add_argument("--only", nargs="+", default=list(STUDIES), choices=STUDIES, metavar="NAME")
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu"))
    parser.add_argument("--seeds", type=int, metavar="N", help="(default: as the studies say)")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("--record", action="store_true", help="write what is there into the docstrings and README.md")
    options = parser.parse_args()
    codes = [] if options.table or options.record else [run(name, options) for name in options.only]
    print(table(options.out, options.scale))
    if options.record:
        record(options.out, options.scale)
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
    rows = [HEAD, *(row(name, verdict) for name, verdicts in found(out, scale).items() for verdict in verdicts)]
    folders = (*out.glob(f"*-{scale}/*"), *out.glob("shared/starts/*"))
    summaries = [json.loads(path.read_text()) for folder in folders for path in folder.glob("summary.json")]
    hours = sum(summary["wall_seconds"] for summary in summaries) / 3600
    tokens = sum(summary["tokens_generated"] for summary in summaries)
    return (
        "\n".join(rows) + f"\n\n{len(summaries)} runs, {tokens / 1e6:.1f} M generated tokens, {hours:.1f} core-hours."
    )


def found(out: Path, scale: str) -> dict[str, list[dict[str, Any]]]:
    """The verdicts of the studies that have some, by study."""
    paths = {name: out / f"{name}-{scale}" / "results.json" for name in STUDIES}
    return {name: json.loads(path.read_text())["verdicts"] for name, path in paths.items() if path.exists()}


def record(out: Path, scale: str) -> None:
    """Verdicts into the docstrings of their studies, and the table into README.md, in the place of earlier ones."""
    for name, verdicts in found(out, scale).items():
        path = FOLDER / f"{name}.py"
        docstring, code = path.read_text().split('\n"""\n', 1)
        path.write_text(f'{docstring.partition(MEASURED)[0].rstrip()}{measured(name, verdicts)}\n"""\n{code}')
    start, end = re.escape(HEAD.splitlines()[0]), r"core-hours\."
    README.write_text(re.sub(f"{start}.*?{end}", lambda _: table(out, scale), README.read_text(), flags=re.DOTALL))


def measured(name: str, verdicts: list[dict[str, Any]]) -> str:
    """The end of a study's docstring."""
    seeds = " or ".join(str(pairs) for pairs in sorted({verdict["pairs"] for verdict in verdicts}))
    lines = []
    for verdict in verdicts:
        told = "bitwise the same" if verdict["identical"] else difference(verdict)
        said = f"* {verdict['hypothesis']['claim']}: {verdict['outcome']}, {told}."
        lines.append(textwrap.fill(said, 120, subsequent_indent="  "))
    command = f"{MEASURED} experiments/paper/{name}.py`, {seeds} seeds, differences with 95 % intervals:"
    return "\n\n".join(("", textwrap.fill(command.strip(), 120), "\n".join(lines)))


def difference(verdict: dict[str, Any]) -> str:
    """The mean difference with its interval, to a tenth of what matters; empty where there is none."""
    estimate = verdict["mean"]
    if estimate is None:
        return ""
    digits = max(3, 1 + math.ceil(-math.log10(verdict["hypothesis"]["smallest"])))
    value, *low_high = (f"{number:+.{digits}f}" for number in (estimate["value"], *(estimate["interval"] or ())))
    return f"{value} [{', '.join(low_high)}]" if low_high else value


def row(name: str, verdict: dict[str, Any]) -> str:
    """A line of the table."""
    said = verdict["hypothesis"]
    outcome = verdict["outcome"]
    if verdict["identical"]:
        outcome += ", bitwise the same"
    if verdict["seeds_needed"]:
        outcome += f", {verdict['seeds_needed']} seeds would decide"
    metric = said["metric"]["class"].rpartition(".")[2]
    expected = {"greater": ">", "less": "<", "none": "="}[said["direction"]]
    claim = f"{said['claim']} ({metric}: `{said['treatment']}` {expected} `{said['control']}`)"
    return f"| `{name}` | {claim} | {outcome} | {difference(verdict)} | {said['smallest']:g} | {verdict['pairs']} |"


if __name__ == "__main__":
    main()
