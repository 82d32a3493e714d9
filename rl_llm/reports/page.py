"""Templates and number formats that the reports of runs and studies share."""

import html
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any


def render_page(template: str, folder: Path | None = None, **values: Any) -> str:
    """Render a template of `folder` or of this package; templates that end in .html.jinja are escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*([folder] if folder else []), Path(__file__).parent]),
        autoescape=jinja2.select_autoescape(("html.jinja",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (number, signed, interval, p_value, duration, percent, cell)
    environment.filters |= {write.__name__: write for write in filters}
    return environment.get_template(template).render(**values)


def as_float(value: Any) -> float | None:
    """A number, including "nan" and "inf" as strings; None for anything else."""
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def number(value: Any) -> str:
    """A number in three digits, with a unit (k, M, G, T, P) from 10,000 on. Shown unchanged if not finite."""
    known = as_float(value)
    if known is None or not math.isfinite(known):
        return str(value)
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(known) >= max(size, 1e4):
            return f"{known / size:.3g} {unit}"
    return f"{known:.0f}" if known == round(known) else f"{known:.3g}"


def percent(value: Any) -> str:
    """A share in percent. Shown unchanged if not finite."""
    known = as_float(value)
    if known is None or not math.isfinite(known):
        return str(value)
    return f"{100 * known:.1f}".removesuffix(".0") + " %"


def duration(value: Any) -> str:
    """Seconds as hours, minutes and seconds. Shown unchanged if not finite."""
    known = as_float(value)
    if known is None or not math.isfinite(known):
        return str(value)
    if known < 10:
        return f"{known:.1f} s"
    minutes, seconds = divmod(round(known), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def signed(value: float) -> str:
    """A difference in three digits, with its sign."""
    return f"{value:+.3g}" if value else "0"


def interval(ends: tuple[float, float] | None, write: Callable[[float], str] = number) -> str:
    """[low, high]; empty for None."""
    return f"[{write(ends[0])}, {write(ends[1])}]" if ends else ""


def p_value(value: float | None) -> str:
    """A p-value in two digits; "< 0.0001" below the precision of a test."""
    return "–" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def cell(value: Any) -> str:
    """Text escaped for a Markdown table: no HTML, no bars, no line breaks."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", "\\|")
