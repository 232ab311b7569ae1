"""Draws panels: SVG by Matplotlib, the words that say the same, and the table behind them.

Why Matplotlib: it is here already, a chart is 5 to 20 kB of markup without scripts, and its
colours can be handed to the page, which has a dark and a light form. Plotly (1 to 5 MB of script
in the page), Bokeh (1 MB) and Altair (fetches its scripts, or needs a 30 MB converter) draw into
elements that a screen reader and a printer see little of.
"""

import io
import re
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moco_jax.report.page.curves import Panel

COLOURS = 6  # of runs on the page; more runs share colours and have other dashes
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (7, 2),
    (7, 2, 2, 2),
    (3, 2),
    (9, 2, 2, 2, 2, 2),
    (5, 4),
)
DRAWN = 1e100  # larger values, as the infinities, stand only in the table
CONSTANT = 1e-5  # a line that changes by less than this share of its value is constant
# Metrics whose axis begins at zero.
FROM_ZERO = ("lr", "images_per_second", "waiting_share", "top1", "grad_norm")
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_SIZE = (5.0, 2.9)  # inches; a telephone shows a chart at nearly its own size


def dash(run: int) -> tuple[float, ...]:
    """Return the dashes and gaps of a run's line, in points; empty for an unbroken line."""
    return DASHES[(run + run // COLOURS) % len(DASHES)]


def _colour(run: int) -> str:
    return f"#0400{run % COLOURS:02x}"


def draw(panel: Panel, key: str) -> Markup:
    """Draw `panel` as an SVG element whose colours are the page's variables.

    `key` begins the ids in it, so that they are unique on the page.
    """
    options = {"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 11}
    with mpl.rc_context(options):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _fill(axes, panel)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_for_page(buffer.getvalue(), key))


def _fill(axes, panel: Panel) -> None:
    for line in panel.lines:
        on, few = dash(line.run), len(line.x) <= 40
        drawn = np.where(np.abs(line.y) < DRAWN, line.y, np.nan)
        axes.plot(
            line.x,
            drawn,
            color=_colour(line.run),
            linewidth=1.6,
            dashes=on or (None, None),
            marker="o" if few else None,
            markersize=3.5,
        )
    for level in panel.levels:
        if not abs(level.value) < DRAWN:
            continue
        colour = _MUTED if level.run is None else _colour(level.run)
        axes.axhline(level.value, color=colour, linewidth=1.2, dashes=(1, 2))
    right = max(float(line.x[-1]) for line in panel.lines)
    if panel.published is not None:
        x, y, _ = panel.published
        axes.plot(
            x,
            y,
            color=_INK,
            linewidth=0,
            marker="D",
            markersize=5,
            markerfacecolor="none",
            markeredgewidth=1.3,
        )
        right = max(right, float(x[-1]))
    axes.set_xlim(0, right or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    low, high = axes.dataLim.intervaly
    if np.isfinite([low, high]).all() and high - low < CONSTANT * abs(high):
        # The axis is widened, or rounding would be drawn large.
        axes.set_ylim(low - 0.05 * abs(low), high + 0.05 * abs(high))
    if panel.metric.key in FROM_ZERO:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(panel.axis, color=_INK)
    if panel.metric.percent:
        axes.set_ylabel("%", color=_INK)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.tick_params(colors=_INK, length=0)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_MUTED)


def _for_page(svg: str, key: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.S)
    svg = re.sub(r'\b(id|href)="(#?)', rf'\1="\2{key}-', svg)
    svg = svg.replace("url(#", f"url(#{key}-").replace("xlink:href", "href")
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    svg = re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>',
        r'<svg viewBox="\1" aria-hidden="true" focusable="false">',
        svg,
        count=1,
    )
    svg = (
        svg.replace(_INK, "currentColor")
        .replace(_MUTED, "var(--muted)")
        .replace(_GRID, "var(--grid)")
    )
    return re.sub(r"#0400([0-9a-f]{2})", lambda match: f"var(--run-{int(match[1], 16)})", svg)


def number(value: float) -> str:
    """Format four significant digits; '' where there is no value."""
    if np.isnan(value):
        return "not a number"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def describe(panel: Panel, names: Sequence[str]) -> str:
    """Describe the chart for a person who does not see it; `names` are of the runs."""
    unit = " %" if panel.metric.percent else ""
    sentences = []
    for line in panel.lines:
        first, last = (
            f"{number(line.y[i])}{unit} at {panel.axis} {number(line.x[i])}" for i in (0, -1)
        )
        finite = line.y[np.isfinite(line.y)]
        reach = (
            f", between {number(finite.min())} and {number(finite.max())}{unit}"
            if len(finite)
            else ""
        )
        sentences.append(f"{names[line.run]}: from {first} to {last}{reach}")
    sentences += notes(panel, names)
    return f"{panel.metric.title}. {'. '.join(sentences)}."


def notes(panel: Panel, names: Sequence[str]) -> list[str]:
    """Explain dotted lines, marks without a line, and what a point stands for."""
    unit = " %" if panel.metric.percent else ""
    sentences = [
        f"Dotted: {level.label}{'' if level.run is None else f' of {names[level.run]}'},"
        f" {number(level.value)}{unit}"
        for level in panel.levels
    ]
    if panel.published is not None:
        sentences.append(f"Diamonds: published, {panel.published[2]}")
    averaged = max(line.averaged for line in panel.lines)
    if averaged > 1:
        sentences.append(f"Each point is the mean of up to {averaged} records")
    return sentences


def table(panel: Panel, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the numbers: a row for each place on the axis, a column a run."""
    columns = [names[line.run] for line in panel.lines]
    values = [dict(zip(line.x.tolist(), line.y.tolist(), strict=True)) for line in panel.lines]
    if panel.published is not None:
        columns.append("published")
        x, y, _ = panel.published
        values.append(dict(zip(x.tolist(), y.tolist(), strict=True)))
    places = sorted({x for column in values for x in column})
    rows = [[number(x), *(number(v[x]) if x in v else "" for v in values)] for x in places]
    return [panel.axis, *columns], rows
