"""The charts of a study: differences within a seed, and learning curves of the arms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl_llm.reports.charts import COLORS, FAINT, INK, Chart, style_axes, to_svg
from rl_llm.studies.curves import Band, Curve, aggregate_curves
from rl_llm.studies.hypothesis import Verdict
from rl_llm.studies.metric import Lines, metric_curve

DASHES = ("-", "--", ":")  # when the colors are used up, they repeat with the next dash
BAND_OPACITY = 0.16


LEARNING_CURVES = (
    Chart("Accuracy", "Sampled responses to held-out problems.", {"evaluation/accuracy": "accuracy"}),
    Chart("Reward", "Mean over the sampled responses of a step.", {"reward/mean": "reward"}),
    Chart("Entropy", "Nats per token. At zero the policy no longer explores.", {"policy/entropy": "entropy"}),
    Chart("Response length", "Tokens per response.", {"response/length": "length"}),
)


def points(lines: Lines, name: str) -> Curve:
    """A run's curve of finite values at ascending token counts; other points are dropped."""
    tokens, values = metric_curve(lines, name)
    tokens, values = tokens[np.isfinite(values)], values[np.isfinite(values)]
    later = np.diff(tokens, prepend=-np.inf) > 0
    return list(zip(tokens[later].tolist(), values[later].tolist(), strict=True))


def bands(runs: Mapping[str, Mapping[int, tuple[Any, Lines]]], name: str) -> dict[str, Band]:
    """Aggregate an RL metric by arm, over the seeds that measured it at least twice.

    Arms without a common range of tokens are left out.
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
    """Draw every chart that has data: `chart`, `svg`, and `legend` of (arm, color number, dash, last value)."""
    drawn = []
    styles = {arm: (index % len(COLORS), DASHES[index // len(COLORS) % len(DASHES)]) for index, arm in enumerate(runs)}
    for chart in LEARNING_CURVES:
        found = bands(runs, next(iter(chart.metrics)))
        if found:
            legend = [(arm, styles[arm][0] + 1, styles[arm][1], band.iqm[-1]) for arm, band in found.items()]
            drawn.append({"chart": chart, "svg": curve_chart(found, styles), "legend": legend})
    return drawn


def curve_chart(found: Mapping[str, Band], styles: Mapping[str, tuple[int, str]]) -> str:
    """An `<svg>` of interquartile means with their bands over tokens; `styles` are (color, dash) by arm."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(5.4, 3.0), facecolor="none")
    figure.subplots_adjust(left=0.115, right=0.965, bottom=0.165, top=0.95)
    axes = figure.add_subplot(facecolor="none")
    for arm, band in found.items():
        color, dash = COLORS[styles[arm][0]], styles[arm][1]
        if band.low is not None and band.high is not None:
            axes.fill_between(band.tokens, band.low, band.high, color=color, alpha=BAND_OPACITY, linewidth=0)
        axes.plot(band.tokens, band.iqm, color=color, linewidth=1.8, linestyle=dash)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("tokens generated", color=INK, fontsize=9)
    style_axes(axes)
    return to_svg(figure, ", ".join(found))


def effect_chart(verdict: Verdict, differences: Sequence[float]) -> str:
    """An `<svg>` of the differences within a seed (dots) and their mean with its 95 % interval.

    Differences too small to matter are shaded.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    hypothesis = verdict.hypothesis
    figure = Figure(figsize=(8.4, 1.35), facecolor="none")
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.42, top=0.97)
    axes = figure.add_subplot(facecolor="none")
    axes.axvspan(-hypothesis.smallest, hypothesis.smallest, color=INK, alpha=BAND_OPACITY, linewidth=0)
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
    style_axes(axes)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    return to_svg(figure, f"differences within a seed: {hypothesis.claim}")
