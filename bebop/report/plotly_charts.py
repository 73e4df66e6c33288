"""Charts as JSON for the page's script, which draws them with plotly.js in the reader's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bebop.report.charts import Axis, Chart, Trace

DIGITS = 6
"""Significant digits of what is drawn."""


def chart_data(chart: Chart) -> dict[str, Any]:
    """What ``report.js`` reads; numbers that are not finite become null, which plotly leaves out."""
    return {
        "id": chart.id,
        "x": axis_data(chart.x),
        "y": axis_data(chart.y),
        "views": list(chart.views),
        "stacked": chart.stacked,
        "horizontal": chart.horizontal,
        "level": chart.level,
        "traces": [trace_data(trace) for trace in chart.traces],
    }


def axis_data(axis: Axis) -> dict[str, Any]:
    return {
        "title": axis.title,
        "span": list(axis.span) if axis.span else None,
        "percent": axis.percent,
        "categories": list(axis.categories),
    }


def trace_data(trace: Trace) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": trace.name,
        "x": [one if isinstance(one, str) else rounded(one) for one in trace.x],
        "y": numbers(trace.y),
        "form": trace.form,
        "colour": trace.colour,
        "dashed": trace.is_dashed,
        "faint": trace.is_faint,
        "view": trace.view,
    }
    if trace.intervals is not None and any(one.has_interval for one in trace.intervals):
        data["low"] = numbers([one.low if one.has_interval else one.value for one in trace.intervals])
        data["high"] = numbers([one.high if one.has_interval else one.value for one in trace.intervals])
    if trace.sizes is not None:
        data["sizes"] = numbers(trace.sizes)
    if trace.notes is not None:
        data["notes"] = list(trace.notes)
    return data


def numbers(values: Sequence[float]) -> list[float | None]:
    return [rounded(value) for value in values]


def rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
