"""The charts of a study: differences within a seed, and learning curves of the arms over their seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_llm.runs.charts import COLORS, FAINT, INK, plain, to_svg
from rl_llm.studies.curves import Band, Curve, aggregate_curves
from rl_llm.studies.hypothesis import Verdict
from rl_llm.studies.metric import Lines, curve

DASHES = ("-", "--", ":")  # a color is used again with the next of these
BAND = 0.16  # opacity
AXIS = "tokens generated"


@dataclass(frozen=True)
class LearningCurve:
    """What one chart of the page shows of every arm."""

    title: str
    meaning: str
    name: str


LEARNING_CURVES = (
    LearningCurve("Accuracy", "On problems that are not trained on, sampled.", "evaluation/accuracy"),
    LearningCurve("Reward", "Mean over the sampled responses of a step.", "reward/mean"),
    LearningCurve("Entropy", "Nats per token. At zero the policy no longer explores.", "policy/entropy"),
    LearningCurve("Response length", "Tokens per response.", "response/length"),
)


def points(lines: Lines, name: str) -> Curve:
    """The curve of a run as far as it is one: finite values, at numbers of tokens that ascend."""
    tokens, values = curve(lines, name)
    tokens, values = tokens[np.isfinite(values)], values[np.isfinite(values)]
    later = np.diff(tokens, prepend=-np.inf) > 0
    return list(zip(tokens[later].tolist(), values[later].tolist(), strict=True))


def bands(runs: Mapping[str, Mapping[int, tuple[Any, Lines]]], name: str) -> dict[str, Band]:
    """A metric of RL steps by arm, over the seeds that measured it twice or more; arms without a common range of tokens
    are left out.
    """
    found = {}
    for arm, members in runs.items():
        curves = {seed: points(lines, name) for seed, (_, lines) in members.items()}
        curves = {seed: line for seed, line in curves.items() if len(line) > 1}
        starts, ends = ([line[place][0] for line in curves.values()] for place in (0, -1))
        if curves and max(starts) < min(ends):
            found[arm] = aggregate_curves(curves)
    return found


def draw_learning_curves(runs: Mapping[str, Mapping[int, tuple[Any, Lines]]]) -> list[dict[str, Any]]:
    """Every chart that has something to show: `chart`, `svg`, and `legend`, (arm, its style, last value) of each."""
    drawn = []
    styles = {arm: (index % len(COLORS), DASHES[index // len(COLORS) % len(DASHES)]) for index, arm in enumerate(runs)}
    for chart in LEARNING_CURVES:
        found = bands(runs, chart.name)
        if found:
            legend = [(arm, styles[arm][0] + 1, styles[arm][1], band.iqm[-1]) for arm, band in found.items()]
            drawn.append({"chart": chart, "svg": curve_chart(found, styles), "legend": legend})
    return drawn


def curve_chart(found: Mapping[str, Band], styles: Mapping[str, tuple[int, str]]) -> str:
    """An `<svg>` of interquartile means over tokens, each with its band; `styles` are (color, dash) by arm."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(5.4, 3.0), facecolor="none")
    figure.subplots_adjust(left=0.115, right=0.965, bottom=0.165, top=0.95)
    axes = figure.add_subplot(facecolor="none")
    for arm, band in found.items():
        color, dash = COLORS[styles[arm][0]], styles[arm][1]
        if band.low is not None and band.high is not None:
            axes.fill_between(band.tokens, band.low, band.high, color=color, alpha=BAND, linewidth=0)
        axes.plot(band.tokens, band.iqm, color=color, linewidth=1.8, linestyle=dash)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(AXIS, color=INK, fontsize=9)
    plain(axes)
    return to_svg(figure, ", ".join(found))


def effect_chart(verdict: Verdict, differences: Sequence[float]) -> str:
    """An `<svg>` of the differences within a seed (dots), their mean with its 95 % interval, and what is too small to
    matter (shaded).
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    hypothesis = verdict.hypothesis
    figure = Figure(figsize=(8.4, 1.35), facecolor="none")
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.42, top=0.97)
    axes = figure.add_subplot(facecolor="none")
    axes.axvspan(-hypothesis.smallest, hypothesis.smallest, color=INK, alpha=BAND, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.plot(differences, [0.45] * len(differences), "o", color=COLORS[0], markersize=6, alpha=0.7)
    if verdict.mean is not None:
        if verdict.mean.interval is not None:
            axes.plot(verdict.mean.interval, [-0.45] * 2, color=COLORS[1], linewidth=3, solid_capstyle="butt")
        axes.plot([verdict.mean.value], [-0.45], "D", color=COLORS[1], markersize=7)
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    axes.set_xlabel(f"{hypothesis.treatment} - {hypothesis.control}: {hypothesis.metric}", color=INK, fontsize=9)
    plain(axes)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    return to_svg(figure, f"differences within a seed: {hypothesis.claim}")
