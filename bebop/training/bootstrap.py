"""Ratios of sums with bootstrap intervals: whole episodes are drawn again, because tokens of one are alike.

Shapes: E episodes, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Of two figures of the same episodes, and its interval."""

    value: float
    low: float
    high: float


def figures(tallies: Sequence[Tally], seed: int = 0) -> dict[str, Figure]:
    """Every figure that any episode adds to, in the order in which they first occur."""
    draws_RE = resamples(len(tallies), seed)
    return {name: figure(column(tallies, name), draws_RE) for name in names_in(tallies)}


def differences(tallies: Sequence[Tally], others: Sequence[Tally], seed: int = 0) -> dict[str, Difference]:
    """Figures of ``tallies`` less those of ``others``, two accounts of the same episodes, which are drawn together."""
    assert len(tallies) == len(others), "both are of the same episodes"
    draws_RE = resamples(len(tallies), seed)
    found: dict[str, Difference] = {}
    for name in names_in(tallies):
        mine, theirs = column(tallies, name), column(others, name)
        low, high = interval(ratios(mine, draws_RE) - ratios(theirs, draws_RE))
        value = sum(mine, Mean()).value - sum(theirs, Mean()).value
        found[name] = Difference(value=value, low=low, high=high)
    return found


def figure(means: Sequence[Mean], draws_RE: np.ndarray) -> Figure:
    low, high = interval(ratios(means, draws_RE))
    whole = sum(means, Mean())
    return Figure(value=whole.value, low=low, high=high, total=whole.total, count=whole.count)


def names_in(tallies: Sequence[Tally]) -> Iterable[str]:
    return reduce(lambda found, tally: found | dict.fromkeys(tally), tallies, dict[str, None]())


def column(tallies: Sequence[Tally], name: str) -> list[Mean]:
    return [tally.get(name, Mean()) for tally in tallies]


def resamples(num_episodes: int, seed: int) -> np.ndarray:
    """Which episodes [R, E] each resample is made of."""
    return np.random.default_rng(seed).integers(num_episodes, size=(NUM_RESAMPLES, max(1, num_episodes)))


def ratios(means: Sequence[Mean], draws_RE: np.ndarray) -> np.ndarray:
    """The ratio [R] in every resample; NaN where nothing was counted."""
    total_E, count_E = np.array([one.total for one in means]), np.array([one.count for one in means])
    totals_R, counts_R = total_E[draws_RE].sum(1), count_E[draws_RE].sum(1)
    return np.divide(totals_R, counts_R, out=np.full(len(draws_RE), np.nan), where=counts_R > 0)


def interval(values_R: np.ndarray) -> tuple[float, float]:
    """What 95 of 100 resamples lie in; those without a value are left out."""
    known = values_R[~np.isnan(values_R)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [50 * (1 - COVERAGE), 50 * (1 + COVERAGE)])
    return float(low), float(high)
