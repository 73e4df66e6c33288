"""Charts as PNG files for papers and slides, drawn by matplotlib from the records that the page draws too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bebop.errors import UserError
from bebop.report.charts import Axis, Chart, Trace

COLOURS = {
    "arm0": "#2f6fde",
    "arm1": "#d0690a",
    "arm2": "#0f8a6c",
    "arm3": "#9449c4",
    "arm4": "#c2375b",
    "arm5": "#66751a",
    "arm6": "#1786ad",
    "arm7": "#8a6550",
    "generation": "#d98a2b",
    "training": "#3d74b8",
    "publication": "#7d5fb8",
    "scoring": "#3f937a",
    "rest": "#b3b7bd",
    "muted": "#6f7883",
}
"""The page's light colours."""
WIDTH, HEIGHT, DPI = 5.6, 3.4, 200
LEGEND_LETTERS = 80
"""Letters of the legend's size that the width holds."""
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a9099",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececE7",
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def save_charts(charts: Sequence[Chart], directory: Path) -> int:
    """One ``ID.png`` per chart, ``ID--VIEW.png`` where it has views; returns their number."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("figures need matplotlib; install it with `pip install 'bebop-rl[report]'`") from error
    directory.mkdir(parents=True, exist_ok=True)
    pictures = [(chart, view) for chart in charts for view in (chart.views or (None,))]
    with matplotlib.rc_context(STYLE):
        for chart, view in pictures:
            figure = Figure(figsize=size(chart), dpi=DPI, layout="constrained")
            draw(figure, chart, view)
            figure.savefig(directory / file_name(chart, view))
    return len(pictures)


def size(chart: Chart) -> tuple[float, float]:
    return (WIDTH, 1.3 + 0.3 * len(chart.y.categories)) if chart.horizontal else (WIDTH, HEIGHT)


def file_name(chart: Chart, view: str | None) -> str:
    words = [] if view is None else [re.sub(r"[^a-z0-9]+", "-", view.lower()).strip("-") or "view"]
    return "--".join([chart.id, *words]) + ".png"


def draw(figure: Any, chart: Chart, view: str | None) -> None:
    """One view of a chart, with its legend above."""
    axes = figure.add_subplot()
    traces = chart.seen_in(view)
    labels = {
        trace.name: next(one for one in traces if one.name == trace.name and stands_for(one, traces))
        for trace in traces
    }
    draw_bars(axes, chart, [trace for trace in traces if trace.form == "bars"])
    for trace in traces:
        if trace.form != "bars":
            draw_points(axes, trace, label=trace.name if labels[trace.name] is trace else None)
    if chart.level is not None:
        (axes.axvline if chart.horizontal else axes.axhline)(chart.level, color="#5d6671", linewidth=0.8, zorder=1)
    style_axis(axes, "x", chart.x)
    style_axis(axes, "y", chart.y)
    if len(labels) > 1:
        fitting = max(1, LEGEND_LETTERS // (max(map(len, labels)) + 6))
        figure.legend(loc="outside upper center", ncols=min(fitting, len(labels)))


def stands_for(trace: Trace, traces: Sequence[Trace]) -> bool:
    """Whether the legend shows this one for its name: a plain line where there is one, else whatever comes first."""
    same = [one for one in traces if one.name == trace.name]
    clear = [one for one in same if not one.is_faint and not one.is_dashed]
    return trace is (clear or same)[0]


def draw_points(axes: Any, trace: Trace, label: str | None) -> None:
    colour = COLOURS[trace.colour]
    x, y = np.array(trace.x), np.array(trace.y, dtype=float)
    faded = 0.4 if trace.is_faint else 1.0
    low, high = edges(trace)
    if trace.form == "dots":
        sizes = 10 if trace.sizes is None else [10 + 80 * share for share in trace.sizes]
        axes.scatter(x, y, s=sizes, color=colour, alpha=faded, linewidths=0, label=label, zorder=3)
    else:
        marker = "o" if trace.form == "line+dots" else None
        style = "--" if trace.is_dashed else "-"
        axes.plot(
            x, y, style, color=colour, alpha=faded, marker=marker, markersize=3.5, linewidth=1.5, label=label, zorder=3
        )
    if low is not None and trace.form == "line":
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    elif low is not None:
        axes.errorbar(x, y, yerr=[y - low, high - y], fmt="none", ecolor=colour, elinewidth=0.9, capsize=2, alpha=0.7)


def draw_bars(axes: Any, chart: Chart, traces: Sequence[Trace]) -> None:
    """Side by side, or stacked one after the other from zero."""
    if not traces:
        return
    names = list(chart.x.categories or chart.y.categories or dict.fromkeys(str(x) for one in traces for x in one.x))
    base = np.zeros(len(names))
    width = 0.62 if chart.stacked else 0.78 / len(traces)
    for place, trace in enumerate(traces):
        at = np.array([names.index(str(x)) for x in trace.x])
        y = np.array(trace.y, dtype=float)
        start = base[at] if chart.stacked else np.zeros(len(at))
        shift = 0.0 if chart.stacked else (place - (len(traces) - 1) / 2) * width
        low, high = edges(trace)
        error = None if low is None else [y - low, high - y]
        common = {
            "color": COLOURS[trace.colour],
            "alpha": 0.5 if trace.is_faint else 1.0,
            "label": trace.name,
            "zorder": 3,
        }
        whiskers = {"elinewidth": 0.9, "capsize": 2, "ecolor": "#1b1f24"}
        if chart.horizontal:
            axes.barh(at + shift, y, width, left=start, xerr=error, error_kw=whiskers, **common)
        else:
            axes.bar(at + shift, y, width, bottom=start, yerr=error, error_kw=whiskers, **common)
        base[at] += np.nan_to_num(y)
    label_bars(axes, chart, names)


def label_bars(axes: Any, chart: Chart, names: Sequence[str]) -> None:
    if chart.horizontal:
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
    else:
        axes.set_xticks(range(len(names)), names)
        axes.grid(visible=False, axis="x")


def edges(trace: Trace) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Lower and upper ends; where a point has no interval, the point itself."""
    if trace.intervals is None or not any(one.has_interval for one in trace.intervals):
        return None, None
    low = [one.low if one.has_interval else one.value for one in trace.intervals]
    high = [one.high if one.has_interval else one.value for one in trace.intervals]
    return np.array(low), np.array(high)


def style_axis(axes: Any, which: str, axis: Axis) -> None:
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(axis.title)
    if axis.span is not None:
        low, high = axis.span
        limits = {("left" if which == "x" else "bottom"): low, ("right" if which == "x" else "top"): high}
        (axes.set_xlim if which == "x" else axes.set_ylim)(**limits)
    if axis.percent:
        getattr(axes, f"{which}axis").set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
