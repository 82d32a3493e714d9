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


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/recipes"), metavar="DIR", help="also of recipes_table.py"
    )
    options = parser.parse_args()
    print(table([pipelines(seed, options.out) for seed in range(options.seeds)]))


def pipelines(seed: int, out: Path) -> dict[str, Path]:
    """The folders of a seed's runs, made now unless they are there."""
    warm = run("warm", seed, out)
    teacher = run("LITE_PPO", seed, out, f"start={warm}")
    taught = responses(teacher, out / f"taught-seed{seed}.jsonl", "--logits", "8")
    judged = responses(warm, out / f"judged-seed{seed}.jsonl")
    begin, read = f"start={warm}", f"responses.path={judged}"
    scored = run("reward_model", seed, out, begin, read, experiment=PREFERENCES)
    changes = {
        (DISTILLATION, "gkd"): (f"teacher.run={teacher}",),
        (DISTILLATION, "on_policy"): (f"teacher.run={teacher}",),
        (DISTILLATION, "offline"): (f"responses.path={taught}",),
        (DISTILLATION, "without"): (),
        (PREFERENCES, "offline_dpo"): (begin, read),
        (PREFERENCES, "offline_kto"): (begin, read),
        (PREFERENCES, "offline_sft"): (begin, read),
        (PREFERENCES, "rlhf"): (begin, f"reward_model.run={scored}"),
        (PREFERENCES, "rlhf_kl"): (begin, f"reward_model.run={scored}"),
    }
    return {arm: run(arm, seed, out, *of, experiment=path) for (path, arm), of in changes.items()}


def responses(of: Path, file: Path, *options: str) -> Path:
    """A run's responses to training problems, sampled now unless they are there."""
    if not file.exists():
        command = [sys.executable, "-m", "rl_llm", "evaluate", str(of), "--split", "train", "--problems", "2048"]
        subprocess.run([*command, "--samples", str(file), *options], check=True, stdout=subprocess.DEVNULL)
    return file


def table(seeds: list[dict[str, Path]]) -> str:
    """Markdown: a row for each pipeline."""
    rows = ["| run | before | validation, highest | held out | seconds |", "|---|---|---|---|---|"]
    for arm in seeds[0]:
        folders = [runs[arm] for runs in seeds]
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
        before, after, seconds = (
            [summary[name] for summary in summaries] for name in ("accuracy_before", "accuracy_after", "wall_seconds")
        )
        best = [max(accuracy for _, accuracy in evaluations(folder)) for folder in folders]
        rows.append(
            f"| `{arm}` | {np.mean(before):.3f} | {interval(best)} | {interval(after)} | {np.mean(seconds):.0f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
