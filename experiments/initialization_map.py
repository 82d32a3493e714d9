"""Map of initialization x learning rate: where training learns, stalls and collapses, as a Markdown table.

Run:    python experiments/initialization_map.py

Reads the record in experiments/paper/results/, or with --results the results.json of `rl-llm ablate
experiments/paper/initialization_and_learning_rate.py`. Rows are starting policies, columns learning rates. A cell has
the mean final accuracy on held-out problems and the number of runs that learned / stalled / collapsed
(`rl_llm.studies.metric.run_outcome`).
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from experiments.paper.initialization_and_learning_rate import STUDY
from experiments.studies import RECORD
from rl_llm.config import to_json
from rl_llm.studies import Final


def main() -> None:
    """Print the map of a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=RECORD / "initialization_and_learning_rate.json", metavar="FILE"
    )
    path = parser.parse_args().results
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; run the study first")
    print(draw(json.loads(path.read_text())))


def draw(results: dict) -> str:
    """The Markdown table of a results.json."""
    values = next(item["of"] for item in results["values"] if item["metric"] == to_json(Final()))
    cells: dict[str, dict[float, str]] = {}
    for arm, seeds in values.items():
        outcomes = "/".join(str(count) for count in results["fates"][arm].values())
        cell = f"{mean(seeds.values()):.3f} ({outcomes})" if seeds else "not run"
        cells.setdefault(row_of(arm), {})[rate_of(arm)] = cell
    rates = sorted({rate for row in cells.values() for rate in row})
    lines = ["| begins with | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (1 + len(rates)) + "|"]
    lines += [f"| {row} | " + " | ".join(line.get(rate, "") for rate in rates) + " |" for row, line in cells.items()]
    return "\n".join(lines)


def rate_of(arm: str) -> float:
    """The learning rate of an arm of the study."""
    return next(study.arms[arm].optimizer.learning_rate for study in STUDY.values() if arm in study.arms)


def row_of(arm: str) -> str:
    """The starting policy of an arm: its name without the rate."""
    start, _, rest = arm.partition("_")
    return f"{start}, no warm-up" if rest.endswith("no_warmup") else start


if __name__ == "__main__":
    main()
