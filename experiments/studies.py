"""Run all studies of the paper and tabulate their results.

Run:    make studies        (or: python experiments/studies.py; resumable, finished runs are not repeated)

Every study is an ordinary `rl-llm ablate`; all share their starting policies and compiled programs. Prints the table of
docs/results.md: a line for each hypothesis registered in a study's module, the total cost, and which studies reproduced
the numbers of experiments/paper/results/ bit for bit. --only runs the named studies; --table prints the recorded table
without running anything; --record records the results and writes them into the studies' docstrings and the page.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("paper")
RECORD = FOLDER / "results"  # results.json of each study at the scale of a CPU, and costs.json
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
RESULTS_PAGE = Path(__file__).parent.parent / "docs" / "results.md"
MEASURED = "\n\nMeasured by `rl-llm ablate"
HEAD = "| study | hypothesis | verdict | difference | smallest | seeds |\n|---|---|---|---|---|---|"


def main() -> None:
    """Run the missing studies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), metavar="DIR")
    parser.add_argument("--only", nargs="+", default=list(STUDIES), choices=STUDIES, metavar="NAME")
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu"))
    parser.add_argument("--seeds", type=int, metavar="N", help="(default: the studies' own)")
    parser.add_argument("--table", action="store_true", help="print the recorded table")
    parser.add_argument("--record", action="store_true", help="record results, docstrings, docs/results.md")
    options = parser.parse_args()
    if options.record:
        record(options.out)
    if options.table or options.record:
        print(table(recorded(), json.loads((RECORD / "costs.json").read_text())))
        return
    codes = [run(name, options) for name in options.only]
    results = found(options.out, options.scale)
    print(table(results, costs(options.out, options.scale)))
    if options.scale == "cpu":
        print(f"\n{agreement(results)}")
    if any(codes):
        raise SystemExit("some members failed; see the logs folders, or run it again")


def run(name: str, options: argparse.Namespace) -> int:
    """Run one study; returns its exit code."""
    print(f"--- {name}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "rl_llm", "ablate", os.path.relpath(FOLDER / f"{name}.py")]
    command += ["--scale", options.scale]
    command += ["--out", str(options.out / f"{name}-{options.scale}"), "--shared", str(options.out / "shared")]
    command += ["--seeds", str(options.seeds)] if options.seeds else []
    code = subprocess.run([*command, "--resume"], check=False).returncode
    if code not in (0, 1):
        raise SystemExit(code)
    return code


def table(results: dict[str, Any], spent: Mapping[str, Mapping[str, int]]) -> str:
    """The Markdown table of all verdicts, followed by the total cost."""
    rows = [HEAD, *(row(name, verdict) for name, result in results.items() for verdict in result["verdicts"])]
    runs, tokens, seconds = (sum(cost[unit] for cost in spent.values()) for unit in ("runs", "tokens", "seconds"))
    return "\n".join(rows) + f"\n\n{runs} runs, {tokens / 1e6:.1f} M generated tokens, {seconds / 3600:.1f} core-hours."


def found(out: Path, scale: str) -> dict[str, Any]:
    """The contents of results.json by study, for the studies that have one."""
    paths = {name: out / f"{name}-{scale}" / "results.json" for name in STUDIES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def recorded() -> dict[str, Any]:
    """The recorded contents of results.json, by study."""
    paths = {name: RECORD / f"{name}.json" for name in STUDIES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def costs(out: Path, scale: str) -> dict[str, Counter[str]]:
    """Number, tokens and seconds of the finished runs, by study and by start."""
    spent: dict[str, Counter[str]] = {}
    for path in sorted([*out.glob(f"*-{scale}/*/summary.json"), *out.glob("shared/starts/*/summary.json")]):
        run, folder = path.parent, path.parent.parent.name
        cost = spent.setdefault(run.name.partition("-seed")[0] if folder == "starts" else folder, Counter())
        summary = json.loads(path.read_text())
        cost["runs"] += 1
        cost["tokens"] += summary["tokens_generated"]
        cost["seconds"] += round(summary["wall_seconds"])
    return spent


def agreement(results: dict[str, Any]) -> str:
    """The studies that reproduced the record, and those that did not; rounding depends on hardware and JAX version."""
    before = recorded()
    groups: dict[str, list[str]] = {"as recorded": [], "different from the record": [], "not recorded": []}
    for name, result in results.items():
        same = "as recorded" if result == before.get(name) else "different from the record"
        groups[same if name in before else "not recorded"].append(name)
    return "\n".join(f"{key}: {', '.join(names)}" for key, names in groups.items() if names)


def record(out: Path) -> None:
    """Record the results at scale `cpu`; write verdicts into docstrings and the table into docs/results.md."""
    RECORD.mkdir(exist_ok=True)
    path = RECORD / "costs.json"
    spent = (json.loads(path.read_text()) if path.exists() else {}) | costs(out, "cpu")
    path.write_text(json.dumps(spent, indent=1) + "\n")
    for name in found(out, "cpu"):
        (RECORD / f"{name}.json").write_bytes((out / f"{name}-cpu" / "results.json").read_bytes())
    for name, result in recorded().items():
        module = FOLDER / f"{name}.py"
        docstring, code = module.read_text().split('\n"""\n', 1)
        module.write_text(
            f'{docstring.partition(MEASURED)[0].rstrip()}{measured(name, result["verdicts"])}\n"""\n{code}'
        )
    start, end = re.escape(HEAD.splitlines()[0]), r"core-hours\."
    new = table(recorded(), spent)
    page = RESULTS_PAGE.read_text()
    RESULTS_PAGE.write_text(re.sub(f"{start}.*?{end}", lambda _: new, page, flags=re.DOTALL))


def measured(name: str, verdicts: list[dict[str, Any]]) -> str:
    """The measured results at the end of a study's docstring."""
    seeds = " or ".join(str(pairs) for pairs in sorted({verdict["pairs"] for verdict in verdicts}))
    lines = []
    for verdict in verdicts:
        effect = "bitwise the same" if verdict["identical"] else difference(verdict)
        line = f"* {verdict['hypothesis']['claim']}: {verdict['outcome']}, {effect}."
        lines.append(textwrap.fill(line, 120, subsequent_indent="  "))
    command = f"{MEASURED} experiments/paper/{name}.py`, {seeds} seeds, differences with 95 % intervals:"
    return "\n\n".join(("", textwrap.fill(command.strip(), 120), "\n".join(lines)))


def difference(verdict: dict[str, Any]) -> str:
    """The mean difference with its interval, to a tenth of the smallest effect that matters; empty without a mean."""
    estimate = verdict["mean"]
    if estimate is None:
        return ""
    digits = max(3, 1 + math.ceil(-math.log10(verdict["hypothesis"]["smallest"])))
    value, *low_high = (f"{number:+.{digits}f}" for number in (estimate["value"], *(estimate["interval"] or ())))
    return f"{value} [{', '.join(low_high)}]" if low_high else value


def row(name: str, verdict: dict[str, Any]) -> str:
    """A line of the table."""
    hypothesis = verdict["hypothesis"]
    outcome = verdict["outcome"]
    if verdict["identical"]:
        outcome += ", bitwise the same"
    if verdict["seeds_needed"]:
        outcome += f", {verdict['seeds_needed']} seeds would decide"
    metric = hypothesis["metric"]["class"].rpartition(".")[2]
    expected = {"greater": ">", "less": "<", "none": "="}[hypothesis["direction"]]
    claim = f"{hypothesis['claim']} ({metric}: `{hypothesis['treatment']}` {expected} `{hypothesis['control']}`)"
    return (
        f"| `{name}` | {claim} | {outcome} | {difference(verdict)} | {hypothesis['smallest']:g} | {verdict['pairs']} |"
    )


if __name__ == "__main__":
    main()
