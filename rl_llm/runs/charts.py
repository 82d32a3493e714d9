"""The charts of a report: what they show, and how they are drawn (inline SVG, matplotlib without pyplot)."""

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INK, FAINT = "#010101", "#020202"
COLORS = tuple(f"#03030{number}" for number in range(1, 9))
SERIES = COLORS[:3]  # more lines in one chart of a run could not be told apart
STYLE = {INK: "var(--muted)", FAINT: "var(--line)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(COLORS, start=1)
}
"""Colors that stand for those of the page, so that a chart follows its light or dark look."""


@dataclass(frozen=True)
class Series:
    """One line: values[i] at steps[i]. Values that are not finite leave a gap."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """What one chart of the page shows: metric names with the labels they get, and how to read it."""

    title: str
    meaning: str
    metrics: dict[str, str]
    phase: str = "rl"
    percent: bool = False
    log: bool = False


CHARTS = (
    Chart(
        "Reward and accuracy",
        "Mean reward of the sampled responses; accuracy on problems that are not trained on.",
        {"reward/mean": "reward", "evaluation/accuracy": "accuracy"},
    ),
    Chart(
        "Response length",
        "Tokens per response. Right answers growing longer than wrong ones: thinking pays.",
        {"response/length": "all", "response/length_right": "right", "response/length_wrong": "wrong"},
    ),
    Chart(
        "Entropy",
        "How undecided the policy is, in nats per token. At zero it no longer explores.",
        {"policy/entropy": "entropy"},
    ),
    Chart(
        "Clipped tokens",
        "Share of tokens whose update the clip holds back, by side.",
        {"policy/clip_low": "lower", "policy/clip_high": "upper"},
        percent=True,
    ),
    Chart(
        "Gradient norm",
        "Before clipping. Spikes announce instability.",
        {"update/gradient_norm": "norm"},
    ),
    Chart(
        "Groups without a signal",
        "Share of prompts whose responses all got the same reward: they teach nothing.",
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
        "Share of responses cut off by the token limit, and of those that were repeating themselves by then.",
        {"response/truncated": "truncated", "response/looping": "in a loop"},
        percent=True,
    ),
    Chart(
        "Agreement of sampler and learner",
        "Difference of their log-probabilities of the same tokens. It should stay at rounding.",
        {"agreement/mean": "mean", "agreement/max": "max", "agreement/kl": "KL"},
        log=True,
    ),
    Chart(
        "Seconds per step",
        "Where the time of a step goes.",
        {"time/generate": "generate", "time/grade": "grade", "time/update": "update"},
    ),
    Chart(
        "Warm start",
        "Loss per token on the demonstrations.",
        {"loss": "loss"},
        phase="warm_start",
    ),
)


def draw_charts(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every chart that has something to show: `chart`, `svg`, and `legend` with the last value of each."""
    drawn = []
    for chart in CHARTS:
        records = [record for record in metrics if record.get("phase") == chart.phase]
        series = [_series(label, metric, records) for metric, label in chart.metrics.items()]
        series = [line for line in series if any(map(math.isfinite, line.values))]
        if series:
            svg = line_chart(series, percent=chart.percent, log=chart.log)
            legend = [(line.label, next(filter(math.isfinite, reversed(line.values)))) for line in series]
            drawn.append({"chart": chart, "svg": svg, "legend": legend})
    return drawn


def _series(label: str, metric: str, records: Sequence[dict[str, Any]]) -> Series:
    points = [(record["step"], record[metric]) for record in records if isinstance(record.get(metric), int | float)]
    return Series(label, [step for step, _ in points], [value for _, value in points])


def line_chart(series: Sequence[Series], *, percent: bool = False, log: bool = False) -> str:
    """An `<svg>` of one to three series over steps, as wide as its place allows.

    Few values are drawn as points joined by a line. log: a logarithmic axis, if every value is above zero.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if len(series) > len(SERIES):
        raise ValueError(f"a chart shows at most {len(SERIES)} series, not {len(series)}: split it")
    figure = Figure(figsize=(4.4, 2.3), facecolor="none")
    # A layout engine would find these margins too, but takes twice as long as all the rest.
    figure.subplots_adjust(left=0.13, right=0.985, bottom=0.2, top=0.94)
    axes = figure.add_subplot(facecolor="none")
    for line, color in zip(series, SERIES, strict=False):
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
    axes.set_xlabel("step", color=INK, fontsize=9)
    plain(axes)
    return to_svg(figure, ", ".join(line.label for line in series))


def plain(axes: Any) -> None:
    """The look of all charts: a faint grid across, and a line below."""
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.tick_params(which="minor", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def to_svg(figure: Any, label: str) -> str:
    """The `<svg>` of a figure, sized and colored by the page that it is put into; `label` says what it shows."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    output = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rl_llm"}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(output, metadata=metadata)
    return _for_page(output.getvalue(), label)


def _for_page(document: str, label: str) -> str:
    """The `<svg>` element of a document, without what the page decides."""
    svg = document[document.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    opening = f'<svg {view_box[0]} role="img" aria-label="{html.escape(label)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>| font-family: [^;]*;", "", svg, flags=re.DOTALL)
    # A page holds many charts, and names such as axes_1 may be given only once. Clip paths go by content.
    svg = re.sub(r'<g id="[\w.]+"(/?)>', r"<g\1>", svg).replace("xlink:href", "href")
    for color, style in STYLE.items():
        svg = svg.replace(color, style)
    return svg
