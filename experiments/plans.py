"""What the paper's settings need of TPU slices: Qwen3-0.6B, 4B and 8B, Lite PPO, 128 prompts x 8 responses of at most
8192 tokens to prompts of at most 1024 (arXiv 2508.08221, A.1). Nothing is trained, and no weights are needed.

One:    rl-llm plan experiments/plans.py:qwen3_4b --topology v6e:4x4 --search
All:    python experiments/plans.py        (an hour on two cores; writes docs/plans.md)

A plan that was made is kept in docs/plans/, with all its numbers, and not made again: delete what is to be.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.qwen3_4b_gsm8k import paper as base
from rl_llm.model.families import QWEN3_0_6B, QWEN3_4B, QWEN3_8B

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SLICES = ("v6e:4x4", "v6e:8x8", "v5p:2x2x2", "v5p:2x2x4", "v5e:4x4")

ABLATION = {
    name: replace(base, model=replace(model, remat=base.model.remat))
    for name, model in (("qwen3_0_6b", QWEN3_0_6B), ("qwen3_4b", QWEN3_4B), ("qwen3_8b", QWEN3_8B))
}

HEAD = """# Plans: what the paper's settings need

Lite PPO with 128 prompts x 8 responses a step, prompts of at most 1024 tokens and responses of at most 8192, bfloat16
products, two updates a rollout, the layers recomputed in the backward pass. For each slice the mesh and the cuts that
`--search --candidates 1` takes to be the best, compiled; where these do not fit, the best of four. Slices have their
number of chips in their shape; Google Cloud's own names count chips for v5e and v6e (v6e-16 is v6e:4x4) and cores, two
a chip, for v5p (v5p-16 is v5p:2x2x2, 8 chips; v5p-32 is v5p:2x2x4).

GiB are per chip, at the fullest moment of each program, with what stays there beside it. Seconds are a roofline at the
efficiencies that `rl-llm plan --help` says, as if every response were as long as it may be; dollars are for 500 steps.
No TPU was asked: these are compiled programs and arithmetic.

Made by `python experiments/plans.py`.

"""
COLUMNS = (
    *("model", "slice", "data, fsdp, tensor", "micro", "sampling", "sample", "log-probs", "update", "there is", "fits"),
    *("s a step", "tokens/s", "$", "$ spot", "first to change"),
)


def made(name: str, slice_: str) -> Path:
    """Where a plan is kept."""
    return DOCS / "plans" / f"{name}-{slice_.replace(':', '-')}.json"


def plan(name: str, slice_: str) -> None:
    """One cell, by the command line, unless it was made before: the search's first candidate, or where that does not
    fit, the best of all that it compiles.
    """
    if made(name, slice_).exists():
        return
    command = [sys.executable, "-m", "rl_llm", "plan", f"{__file__}:{name}", "--topology", slice_, "--search"]
    for candidates in (["--candidates", "1"], []):
        made(name, slice_).unlink(missing_ok=True)  # else the first would stand for a search that failed
        options = [*candidates, "--json", str(made(name, slice_))]
        code = subprocess.run([*command, *options], check=False, stdout=subprocess.DEVNULL).returncode
        if code == 0:
            return
        if not made(name, slice_).exists():
            raise SystemExit(f"no plan of {name} for {slice_}: rl-llm plan ended with {code}")


def table() -> str:
    """Markdown: a line for each plan that was made."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    paths = [(name, made(name, slice_)) for slice_ in SLICES for name in ABLATION]
    lines += [row(name, json.loads(path.read_text())) for name, path in paths if path.exists()]
    return "\n".join(lines) + "\n"


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    mesh, needs = found["mesh"], found["gib_per_chip"]

    def peak(program: str) -> str:
        return f"{needs[program]['peak']:.1f}" if program in needs else ""

    cells = (
        name,
        found["topology"],
        f"{mesh['data']}, {mesh['fsdp']}, {mesh['tensor']}",
        found["micro_batches"],
        found["sampling_batches"],
        *(peak(program) for program in ("sample", "log-probabilities", "update")),
        found["usable_gib"],
        "yes" if found["fits"] else "no",
        f"{found['step_seconds']:.0f}",
        f"{found['tokens_per_second']:,.0f}",
        f"{found['dollars']:,.0f}",
        f"{found['dollars_spot']:,.0f}",
        found["advice"] or "",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Plan all; docs/plans.md is written after each."""
    for slice_ in SLICES:
        for name in ABLATION:
            plan(name, slice_)
            (DOCS / "plans.md").write_text(HEAD + table())


if __name__ == "__main__":
    main()
