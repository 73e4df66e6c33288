"""Ratios of sums with bootstrap intervals: whole episodes are drawn again, because tokens of one are alike.

Shapes: E episodes, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from bebop.runs import Mean

Tally = Mapping[str, Mean]
"""What one episode adds to each figure."""

NUM_RESAMPLES = 1000
COVERAGE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A ratio of sums over episodes, and the interval that 95 of 100 resamples fall into."""

    value: float
    low: float
    high: float
    total: float
    count: float


def figures(tallies: Sequence[Tally], seed: int = 0) -> dict[str, Figure]:
    """Every figure that any episode adds to, in the order in which they first occur."""
    names = reduce(lambda found, tally: found | dict.fromkeys(tally), tallies, dict[str, None]())
    draws_RE = np.random.default_rng(seed).integers(len(tallies), size=(NUM_RESAMPLES, max(1, len(tallies))))
    return {name: figure([tally.get(name, Mean()) for tally in tallies], draws_RE) for name in names}


def figure(means: Sequence[Mean], draws_RE: np.ndarray) -> Figure:
    total_E, count_E = np.array([one.total for one in means]), np.array([one.count for one in means])
    counts_R = count_E[draws_RE].sum(1)
    ratios_R = total_E[draws_RE].sum(1)[counts_R > 0] / counts_R[counts_R > 0]
    whole = sum(means, Mean())
    edges = [50 * (1 - COVERAGE), 50 * (1 + COVERAGE)]
    low, high = np.percentile(ratios_R, edges) if len(ratios_R) else (float("nan"), float("nan"))
    return Figure(value=whole.value, low=float(low), high=float(high), total=whole.total, count=whole.count)
