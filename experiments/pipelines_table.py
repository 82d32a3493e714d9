"""The table of distillation and preferences: what learning from another run makes of a policy.

Run:    python experiments/pipelines_table.py            (resumable: finished runs are not repeated)

The pipelines of experiments/distillation.py and experiments/preferences.py from end to end, once a seed: the teacher is
the run of LITE_PPO in the table of the recipes, and the judged responses are those of the policy it began with. Means
over the seeds, with 95 % intervals of Student's t.
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
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/recipes"), metavar="DIR", help="also of recipes_table.py"
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
    """The folder of a student's run; it and its teacher's are made now unless they are there."""
    if arm == "without":
        return run(arm, seed, out, experiment=DISTILLATION)
    teacher = run("LITE_PPO", seed, out, start)
    if arm == "offline":
        learned = f"responses.path={responses(teacher, out / f'taught-seed{seed}.jsonl', '--logits', '8')}"
    else:
        learned = f"teacher.run={teacher}"
    return run(arm, seed, out, learned, experiment=DISTILLATION)


def preferred(arm: str, seed: int, out: Path, start: str) -> Path:
    """The folder of a run that learns from judged responses, itself or through a reward model; as `distilled`."""
    judged = responses(out / f"warm-seed{seed}", out / f"judged-seed{seed}.jsonl")
    learned = f"responses.path={judged}"
    if arm.startswith("rlhf"):
        learned = f"reward_model.run={run('reward_model', seed, out, start, learned, experiment=PREFERENCES)}"
    return run(arm, seed, out, start, learned, experiment=PREFERENCES)


def responses(of: Path, file: Path, *options: str) -> Path:
    """A run's responses to training problems, sampled now unless they are there."""
    if not file.exists():
        command = [sys.executable, "-m", "rl_llm", "evaluate", str(of), "--split", "train", "--problems", "2048"]
        subprocess.run([*command, "--samples", str(file), *options], check=True, stdout=subprocess.DEVNULL)
    return file


def table(runs: dict[str, list[Path]]) -> str:
    """Markdown: a row for each pipeline."""
    rows = ["| run | before | validation, highest | held out |", "|---|---|---|---|"]
    for arm, folders in runs.items():
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
        before, after = ([summary[f"accuracy_{when}"] for summary in summaries] for when in ("before", "after"))
        best = [max(accuracy for _, accuracy in evaluations(folder)) for folder in folders]
        rows.append(f"| `{arm}` | {np.mean(before):.3f} | {interval(best)} | {interval(after)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
