"""Plan the paper's settings for Qwen3-0.6B, 4B and 8B on several TPU slices.

Lite PPO with 128 prompts x 8 responses of at most 8192 tokens to prompts of at most 1024 (arXiv 2508.08221, A.1).
Nothing is trained, and no weights are needed.

One:    rl-llm plan experiments/plans.py:qwen3_4b --topology v6e:4x4 --search
All:    python experiments/plans.py        (an hour on two cores; writes docs/plans.md)

Finished plans are kept in docs/plans/ with all their numbers and are not repeated; delete a file to plan again.
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

HEAD = """# Plans: the paper's settings on TPU slices

Lite PPO with 128 prompts x 8 responses per step, prompts of at most 1024 tokens and responses of at most 8192, bfloat16
matrix products, two updates per rollout, and layers recomputed in the backward pass. Each row is compiled for the mesh
and the numbers of batches that `--search --candidates 1` finds best, or for the best of four candidates if that does
not fit. The shape of a slice gives its chips. Google Cloud's names count chips for v5e and v6e (v6e-16 is v6e:4x4) and
cores, two per chip, for v5p (v5p-16 is v5p:2x2x2, 8 chips; v5p-32 is v5p:2x2x4).

The columns sample, log-probs and update give the peak memory of each program in GiB per chip, including resident state.
Seconds are a roofline at the efficiencies in `rl-llm plan --help`, for responses of maximum length; dollars are for 500
steps. No TPU was used: the numbers come from compiled programs and arithmetic.

Written by `python experiments/plans.py`.

"""
COLUMNS = (
    *("model", "slice", "data, fsdp, tensor", "micro", "sampling", "sample", "log-probs", "update", "available"),
    *("fits", "s/step", "tokens/s", "$", "$ spot", "first change"),
)


def plan_file(name: str, slice_: str) -> Path:
    """The file of a finished plan."""
    return DOCS / "plans" / f"{name}-{slice_.replace(':', '-')}.json"


def plan(name: str, slice_: str) -> None:
    """Make one plan by the command line, unless it is finished.

    It is the first candidate of the search, or the best of all compiled candidates if that does not fit.
    """
    if plan_file(name, slice_).exists():
        return
    command = [sys.executable, "-m", "rl_llm", "plan", f"{__file__}:{name}", "--topology", slice_, "--search"]
    for candidates in (["--candidates", "1"], []):
        plan_file(name, slice_).unlink(missing_ok=True)  # a failed search must not leave the first candidate's plan
        options = [*candidates, "--json", str(plan_file(name, slice_))]
        code = subprocess.run([*command, *options], check=False, stdout=subprocess.DEVNULL).returncode
        if code == 0:
            return
        if not plan_file(name, slice_).exists():
            raise SystemExit(f"no plan of {name} for {slice_}: rl-llm plan ended with {code}")


def table() -> str:
    """Markdown table with a row for each finished plan."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    paths = [(name, plan_file(name, slice_)) for slice_ in SLICES for name in ABLATION]
    lines += [row(name, json.loads(path.read_text())) for name, path in paths if path.exists()]
    return "\n".join(lines) + "\n"


def row(name: str, found: dict[str, Any]) -> str:
    """A row of the table."""
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
    """Make all plans; writes docs/plans.md after each."""
    for slice_ in SLICES:
        for name in ABLATION:
            plan(name, slice_)
            (DOCS / "plans.md").write_text(HEAD + table())


if __name__ == "__main__":
    main()
