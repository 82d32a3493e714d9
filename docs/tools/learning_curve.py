"""Draw the learning curve of a finished run as a standalone SVG.

Run:    python docs/tools/learning_curve.py runs/quickstart            (writes docs/learning_curve.svg)
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl_llm.runs.folder import read_metrics

SVG = Path(__file__).parents[1] / "learning_curve.svg"
INK, LINE, TRAINING, OTHER = "#57606a", "#d8dee4", "#0969da", "#bc4c00"
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "rl_llm", "font.family": "sans-serif", "text.color": INK}


def main() -> None:
    """Draw the run named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=Path, default=SVG, metavar="FILE", help="(default: docs/learning_curve.svg)")
    options = parser.parse_args()
    with mpl.rc_context(STYLE):
        figure = draw(read_metrics(options.run), json.loads((options.run / "summary.json").read_text()))
        figure.savefig(options.out, format="svg", metadata={"Date": None, "Creator": None})
    print(options.out)


def draw(metrics: list[dict[str, Any]], summary: dict[str, Any]) -> Figure:
    """Accuracy and response length of the RL steps over generated tokens, with the held-out values before and after."""
    steps = [line for line in metrics if line["phase"] == "rl"]
    tokens = [line["tokens/total"] / 1e3 for line in steps]
    validated = [line for line in steps if "evaluation/accuracy" in line]
    ends = [0.0, tokens[-1]]
    figure = Figure(figsize=(8.4, 2.9), facecolor="white", layout="constrained")
    accuracy, length = figure.subplots(1, 2)

    accuracy.plot(tokens, [line["component/accuracy"] for line in steps], color=TRAINING, label="training samples")
    accuracy.plot(
        [line["tokens/total"] / 1e3 for line in validated],
        [line["evaluation/accuracy"] for line in validated],
        "o",
        color=OTHER,
        label="validation",
    )
    held_out = [summary["accuracy_before"], summary["accuracy_after"]]
    accuracy.plot(ends, held_out, "D", color=INK, label="held-out, before and after RL")
    accuracy.set_ylim(0, 1.04)
    frame(accuracy, "accuracy of sampled responses")

    length.plot(tokens, [line["response/length"] for line in steps], color=TRAINING)
    length.plot(ends, [summary["response_length_before"], summary["response_length_after"]], "D", color=INK)
    length.set_ylim(bottom=0)
    frame(length, "tokens per response")
    accuracy.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def frame(axes: Axes, title: str) -> None:
    """Title, labels and a faint grid."""
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel("generated tokens, thousands", fontsize=9, color=INK)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)


if __name__ == "__main__":
    main()
