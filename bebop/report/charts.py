"""Charts as data: what is drawn, not how. ``plotly_charts`` and ``matplotlib_charts`` draw the same records.

A colour is a name: ``arm0`` to ``arm7`` for runs, and the roles in ``ROLES``. Texts are plain; whoever draws escapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bebop.report.analysis import Estimate

Form = Literal["line", "dots", "line+dots", "bars"]

NUM_ARM_COLOURS = 8
ROLES = ("generation", "training", "publication", "scoring", "rest", "muted")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One set of points."""

    name: str
    """In the legend; traces of one name are shown and hidden together."""
    x: Sequence[float | str]
    y: Sequence[float]
    colour: str
    form: Form = "line"
    intervals: Sequence[Estimate] | None = None
    """Drawn as a band around lines, as error bars elsewhere."""
    sizes: Sequence[float] | None = None
    """Areas of dots, in units of the largest."""
    is_dashed: bool = False
    is_faint: bool = False
    in_legend: bool = True
    view: str | None = None
    """The view it belongs to; None: to every one."""
    notes: Sequence[str] | None = None
    """What to add where a point is pointed at."""

    def __post_init__(self) -> None:
        lengths = {len(one) for one in (self.x, self.y, self.intervals, self.sizes, self.notes) if one is not None}
        assert len(lengths) == 1, f"trace {self.name!r} has columns of lengths {sorted(lengths)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """``span`` None fits the data; ``percent`` writes 0.5 as 50%."""

    title: str
    span: tuple[float | None, float | None] | None = None
    percent: bool = False
    categories: tuple[str, ...] = ()
    """Names in their order, for an axis of names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One picture with its caption."""

    id: str
    """A word for anchors and file names."""
    title: str
    caption: str
    x: Axis
    y: Axis
    traces: tuple[Trace, ...]
    views: tuple[str, ...] = ()
    """Choices of which one is shown at a time, the first one first; empty: everything is shown."""
    stacked: bool = False
    horizontal: bool = False
    """Bars lie: their names are on the y axis, their lengths on the x axis. Traces keep names in ``x``."""
    level: float | None = None
    """A thin line across at this y (or, lying, x)."""

    def __post_init__(self) -> None:
        unknown = {trace.view for trace in self.traces} - {None, *self.views}
        assert not unknown, f"chart {self.id!r} has traces in views {sorted(map(str, unknown))} that it does not offer"

    def seen_in(self, view: str | None) -> list[Trace]:
        return [trace for trace in self.traces if view is None or trace.view in (None, view)]


def arm_colour(place: int) -> str:
    """The colour of the run at this place, the same in every chart."""
    return f"arm{place % NUM_ARM_COLOURS}"


def head_colour(place: int) -> str:
    """The colour of the head at this place: the palette's second half, so that few runs and few heads differ."""
    return arm_colour(place + NUM_ARM_COLOURS // 2)


def smoothed(values_T: np.ndarray, weights_T: np.ndarray, window: int) -> np.ndarray:
    """Weighted mean over up to ``window`` steps centred at each."""
    kernel = np.ones(window)
    padded = [np.convolve(one, kernel, mode="full") for one in (values_T * weights_T, weights_T)]
    start = (window - 1) // 2
    total_T, weight_T = (one[start : start + len(values_T)] for one in padded)
    return total_T / np.where(weight_T == 0, math.nan, weight_T)
