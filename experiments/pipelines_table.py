"""Compare distillation and preference learning: policies that learn from another run.

Run:    python experiments/pipelines_table.py            (resumable: finished runs are not repeated)

Runs the pipelines of experiments/distillation.py and experiments/preferences.py end to end for each seed. The teacher
is the LITE_PPO run of recipes_table.py, and the judged responses come from that run's initial policy. Means over the
seeds, with 95 % intervals of Student's t.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.recipes_table import evaluations, interval, run

DISTILLATION, PREFERENCES = (Path(__file__).with_name(f"{name}.py") for name in ("distillation", "preferences"))
DISTILLED = ("gkd", "on_policy", "offline", "without")
PREFERRED = ("offline_dpo", "offline_kto", "offline_sft", "rlhf", "rlhf_kl")


def main() -> None:
    """Run the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/recipes"), metavar="DIR", help="shared with recipes_table.py"
    )
    arms = (*DISTILLED, *PREFERRED)
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=arms, metavar="NAME")
    options = parser.parse_args()
    runs: dict[str, list[Path]] = {arm: [] for arm in options.arms}
    for seed in range(options.seeds):
        warm = run("warm", seed, options.out)
        for arm in options.arms:
            make = distilled if arm in DISTILLED else preferred
            runs[arm].append(make(arm, seed, options.out, f"start={warm}"))
    print(table(runs))


def distilled(arm: str, seed: int, out: Path, start: str) -> Path:
    """The folder of a student's run; missing runs of it and of its teacher are run first."""
    if arm == "without":
        return run(arm, seed, out, experiment=DISTILLATION)
    teacher = run("LITE_PPO", seed, out, start)
    if arm == "offline":
        learned = f"responses.path={responses(teacher, out / f'taught-seed{seed}.jsonl', '--logits', '8')}"
    else:
        learned = f"teacher.run={teacher}"
    return run(arm, seed, out, learned, experiment=DISTILLATION)


def preferred(arm: str, seed: int, out: Path, start: str) -> Path:
    """The folder of a run that learns from judged responses or from their reward model; missing runs run first."""
    judged = responses(out / f"warm-seed{seed}", out / f"judged-seed{seed}.jsonl")
    learned = f"responses.path={judged}"
    if arm.startswith("rlhf"):
        learned = f"reward_model.run={run('reward_model', seed, out, start, learned, experiment=PREFERENCES)}"
    return run(arm, seed, out, start, learned, experiment=PREFERENCES)


def responses(source: Path, file: Path, *options: str) -> Path:
    """A file with a run's responses to training problems, which are sampled if it is missing."""
    if not file.exists():
        command = [sys.executable, "-m", "rl_llm", "evaluate", str(source), "--split", "train", "--problems", "2048"]
        subprocess.run([*command, "--responses", str(file), *options], check=True, stdout=subprocess.DEVNULL)
    return file


def table(runs: dict[str, list[Path]]) -> str:
    """Markdown table with a row for each pipeline."""
    rows = ["| run | before | validation, highest | held out |", "|---|---|---|---|"]
    for arm, folders in runs.items():
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
        before, after = ([summary[f"accuracy_{when}"] for summary in summaries] for when in ("before", "after"))
        best = [max(accuracy for _, accuracy in evaluations(folder)) for folder in folders]
        rows.append(f"| `{arm}` | {np.mean(before):.3f} | {interval(best)} | {interval(after)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
