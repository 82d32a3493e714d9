"""All studies of the paper, one after the other, and the page of their results.

Run:    make studies        (or: python experiments/studies.py; resumable, finished runs are not repeated)

Every study is an ordinary `rl-llm ablate`; all share the policies that they begin with, and compiled programs. Prints
the table of the README: a line for each hypothesis that was written down in a study's module before its first run,
what all of it has cost, and which studies gave the numbers of experiments/paper/results/ again, bit for bit. With
--only the named ones; with --table nothing is run and the recorded table is printed; with --record what is there
becomes the record, from which the studies' docstrings and the table of README.md are written.
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
    parser.add_argument("--table", action="store_true", help="print the recorded table")
    parser.add_argument("--record", action="store_true", help="record what is there; docstrings and README.md with it")
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


def table(results: dict[str, Any], spent: Mapping[str, Mapping[str, int]]) -> str:
    """Markdown: the verdicts of all studies that have some, and what their runs have cost together."""
    rows = [HEAD, *(row(name, verdict) for name, of in results.items() for verdict in of["verdicts"])]
    runs, tokens, seconds = (sum(of[unit] for of in spent.values()) for unit in ("runs", "tokens", "seconds"))
    return "\n".join(rows) + f"\n\n{runs} runs, {tokens / 1e6:.1f} M generated tokens, {seconds / 3600:.1f} core-hours."


def found(out: Path, scale: str) -> dict[str, Any]:
    """The contents of results.json of the studies that have one, by study."""
    paths = {name: out / f"{name}-{scale}" / "results.json" for name in STUDIES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def recorded() -> dict[str, Any]:
    """What `found` gives of the studies that were recorded."""
    paths = {name: RECORD / f"{name}.json" for name in STUDIES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def costs(out: Path, scale: str) -> dict[str, Counter[str]]:
    """Finished runs, tokens they generated and seconds they took, by study, and by what studies begin with."""
    spent: dict[str, Counter[str]] = {}
    for path in sorted([*out.glob(f"*-{scale}/*/summary.json"), *out.glob("shared/starts/*/summary.json")]):
        run, folder = path.parent, path.parent.parent.name
        of = spent.setdefault(run.name.partition("-seed")[0] if folder == "starts" else folder, Counter())
        summary = json.loads(path.read_text())
        of["runs"] += 1
        of["tokens"] += summary["tokens_generated"]
        of["seconds"] += round(summary["wall_seconds"])
    return spent


def agreement(results: dict[str, Any]) -> str:
    """Which studies gave what was recorded; other machines and other versions of JAX round otherwise."""
    before = recorded()
    said: dict[str, list[str]] = {"as recorded": [], "otherwise": [], "not recorded": []}
    for name, of in results.items():
        key = "not recorded" if name not in before else "as recorded" if of == before[name] else "otherwise"
        said[key].append(name)
    return "\n".join(f"{key}: {', '.join(names)}" for key, names in said.items() if names)


def record(out: Path) -> None:
    """The results of a CPU into the record, and from it verdicts into docstrings, and the table into README.md."""
    RECORD.mkdir(exist_ok=True)
    path = RECORD / "costs.json"
    spent = (json.loads(path.read_text()) if path.exists() else {}) | costs(out, "cpu")
    path.write_text(json.dumps(spent, indent=1) + "\n")
    for name in found(out, "cpu"):
        (RECORD / f"{name}.json").write_bytes((out / f"{name}-cpu" / "results.json").read_bytes())
    for name, of in recorded().items():
        module = FOLDER / f"{name}.py"
        docstring, code = module.read_text().split('\n"""\n', 1)
        module.write_text(f'{docstring.partition(MEASURED)[0].rstrip()}{measured(name, of["verdicts"])}\n"""\n{code}')
    start, end = re.escape(HEAD.splitlines()[0]), r"core-hours\."
    new = table(recorded(), spent)
    README.write_text(re.sub(f"{start}.*?{end}", lambda _: new, README.read_text(), flags=re.DOTALL))


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
