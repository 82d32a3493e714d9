"""The charts of a run's report as inline SVG, drawn with matplotlib without pyplot."""

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

INK, FAINT = "#010101", "#020202"
COLORS = tuple(f"#03030{number}" for number in range(1, 9))
COMPONENT = "component/"  # prefix of their metrics
SERIES = COLORS[:3]  # more lines in one chart would be hard to distinguish
STYLE = {INK: "var(--muted)", FAINT: "var(--line)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(COLORS, start=1)
}
"""Placeholder colors and the page's variables that replace them, so that charts follow its light or dark theme."""


@dataclass(frozen=True)
class Series:
    """A line of values[i] at steps[i]; values that are not finite leave a gap."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """A chart of the page: title, how to read it, and the metrics with their labels."""

    title: str
    meaning: str
    metrics: dict[str, str]
    phase: str = "rl"
    percent: bool = False
    log: bool = False


CHARTS = (
    Chart(
        "Reward and accuracy",
        "Mean reward of the sampled responses; accuracy on held-out problems.",
        {"reward/mean": "reward", "evaluation/accuracy": "accuracy"},
    ),
    Chart(
        "Response length",
        "Tokens per response. If right responses grow longer than wrong ones, thinking pays.",
        {"response/length": "all", "response/length_right": "right", "response/length_wrong": "wrong"},
    ),
    Chart(
        "Entropy",
        "Entropy of the policy, in nats per token. At zero it no longer explores.",
        {"policy/entropy": "entropy"},
    ),
    Chart(
        "Clipped tokens",
        "Share of tokens with a clipped update, by side.",
        {"policy/clip_low": "lower", "policy/clip_high": "upper"},
        percent=True,
    ),
    Chart("Gradient norm", "Before clipping. Spikes are a sign of instability.", {"update/gradient_norm": "norm"}),
    Chart(
        "Groups without a signal",
        "Share of prompts with the same reward for all responses: they teach nothing.",
        {"reward/zero_variance_groups": "groups"},
        percent=True,
    ),
    Chart(
        "Spread of the rewards",
        "Standard deviation over the batch, and of rewards centered on their group.",
        {"reward/std": "raw", "reward/std_centered": "centered"},
    ),
    Chart(
        "Truncated responses",
        "Share of responses cut off by the token limit, and of those cut off while repeating themselves.",
        {"response/truncated": "truncated", "response/looping": "in a loop"},
        percent=True,
    ),
    Chart(
        "Agreement of sampler and learner",
        "Difference of their log-probabilities of the same tokens; it should be rounding error.",
        {"agreement/mean": "mean", "agreement/max": "max", "agreement/kl": "KL"},
        log=True,
    ),
    Chart(
        "Seconds per step",
        "Time of a step, by activity.",
        {"time/generate": "generate", "time/grade": "grade", "time/update": "update"},
    ),
    Chart("Warm start", "Loss per token on the demonstrations.", {"loss": "loss"}, phase="warm_start"),
)


MEANS_OF_SOME = ("response/length_right", "response/length_wrong")  # recorded as 0 in a step without such responses


def draw_charts(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Draw every chart that has data: `chart`, `svg`, and `legend` of (label, last value)."""
    charts = (*CHARTS[:1], *component_charts(metrics), *CHARTS[1:])
    drawn = (
        draw(chart, [_series(label, metric, metrics, chart.phase) for metric, label in chart.metrics.items()])
        for chart in charts
    )
    return [one for one in drawn if one]


def component_charts(metrics: Sequence[dict[str, Any]]) -> tuple[Chart, ...]:
    """A chart for each component of the reward."""
    names = dict.fromkeys(name for record in metrics for name in record if name.startswith(COMPONENT))
    meaning = "Component of the reward, before its weight: mean over the graded responses."
    return tuple(Chart(name.removeprefix(COMPONENT), meaning, {name: "mean"}) for name in names)


def draw(chart: Chart, series: Sequence[Series], colors: Sequence[str] = SERIES) -> dict[str, Any] | None:
    """Draw a chart with the series that have data: `chart`, `svg` and `legend`; None if none has."""
    series = [line for line in series if _has_data(line)]
    if not series:
        return None
    axis = "RL step" if chart.phase == "rl" else "step"
    svg = line_chart(series, percent=chart.percent, log=chart.log, axis=axis, colors=colors)
    legend = [(line.label, next(filter(math.isfinite, reversed(line.values)))) for line in series]
    return {"chart": chart, "svg": svg, "legend": legend}


def _has_data(line: Series) -> bool:
    return any(map(math.isfinite, line.values))


def warm_steps(metrics: Sequence[dict[str, Any]]) -> int:
    """Number of steps before RL, in a count of all steps."""
    return max((record["step"] for record in metrics if record.get("phase") == "warm_start"), default=0)


def _series(label: str, metric: str, metrics: Sequence[dict[str, Any]], phase: str) -> Series:
    """A metric over the steps of one phase, which count from 1."""
    before = warm_steps(metrics) if phase == "rl" else 0
    records = [record for record in metrics if record.get("phase") == phase]
    points = [(record["step"], record[metric]) for record in records if isinstance(record.get(metric), int | float)]
    if metric in MEANS_OF_SOME:
        points = [(step, value) for step, value in points if value != 0]
    return Series(label, [step - before for step, _ in points], [value for _, value in points])


def compare_charts(runs: dict[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Draw every metric of the charts with a line for each run; `runs` are the metrics by the name of the run."""
    components = {chart.title: chart for metrics in runs.values() for chart in component_charts(metrics)}
    drawn = []
    for chart in (*CHARTS[:1], *components.values(), *CHARTS[1:]):
        for metric, label in chart.metrics.items():
            lines = [_series(name, metric, metrics, chart.phase) for name, metrics in runs.items()]
            title = chart.title if len(chart.metrics) == 1 else f"{chart.title}: {label}"
            known = [pair for pair in zip(lines, COLORS, strict=False) if _has_data(pair[0])]  # a run keeps its color
            if one := draw(replace(chart, title=title), [line for line, _ in known], [color for _, color in known]):
                drawn.append(one)
    return drawn


def line_chart(
    series: Sequence[Series],
    *,
    percent: bool = False,
    log: bool = False,
    axis: str = "step",
    colors: Sequence[str] = SERIES,
) -> str:
    """An `<svg>` of at most as many series over steps as there are colors, as wide as its container.

    Lines of up to 12 values have markers. log: a logarithmic axis, if every value is above zero.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if len(series) > len(colors):
        raise ValueError(f"a chart shows at most {len(colors)} series, not {len(series)}; split it")
    figure = Figure(figsize=(4.4, 2.3), facecolor="none")
    # Fixed margins: a layout engine takes twice as long as all the rest.
    figure.subplots_adjust(left=0.13, right=0.985, bottom=0.2, top=0.94)
    axes = figure.add_subplot(facecolor="none")
    for line, color in zip(series, colors, strict=False):
        values = [value if math.isfinite(value) else math.nan for value in line.values]
        marker = "o" if len(values) <= 12 else ""
        axes.plot(line.steps, values, color=color, linewidth=1.8, marker=marker, markersize=3.5)
    everything = [value for line in series for value in line.values if math.isfinite(value)]
    if log and everything and min(everything) > 0:
        axes.set_yscale("log")
    elif everything and min(everything) >= 0:
        axes.set_ylim(bottom=0, top=1.05 * max(everything) or 1)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel(axis, color=INK, fontsize=9)
    style_axes(axes)
    return to_svg(figure, ", ".join(line.label for line in series))


def style_axes(axes: Any) -> None:
    """Apply the common style: a faint horizontal grid and a line below."""
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.tick_params(which="minor", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def to_svg(figure: Any, label: str) -> str:
    """The `<svg>` of a figure, to be sized and colored by its page; `label` describes it for screen readers."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    output = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rl_llm"}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(output, metadata=metadata)
    svg = output.getvalue()[output.getvalue().index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    opening = f'<svg {view_box[0]} role="img" aria-label="{html.escape(label)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>| ?font-family: [^;\"]*;?", "", svg, flags=re.DOTALL)
    # Ids such as axes_1 must be unique on a page with many charts. Ids of clip paths depend on their content.
    svg = re.sub(r'<g id="[\w.]+"(/?)>', r"<g\1>", svg).replace("xlink:href", "href")
    for color, style in STYLE.items():
        svg = svg.replace(color, style)
    return svg
