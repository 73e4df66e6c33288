"""Goodness of fit: chi-square, total variation with its sampling error, and Holm's correction for many tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from bebop.audit.laws import Law, Tokens

_MIN_EXPECTED = 5.0
"""Cells that expect fewer samples are pooled: below this the statistic is not chi-square."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How samples fit a law."""

    name: str
    num_samples: int
    p_value: float
    """Chance of a statistic this large from samples of the law itself; 0 where the impossible was seen."""
    distance: float
    """Total variation between the samples' frequencies and the law."""
    noise: float
    """What that distance is on average for samples of the law itself."""
    outside: float = 0.0
    """Share of samples that the law excludes."""
    statistic: float = 0.0
    freedom: int = 0

    @property
    def excess(self) -> float:
        """Distance beyond the sampling noise; an estimate of the true one, low where that is below the noise."""
        return max(self.distance - self.noise, self.outside, 0.0)


def fit(name: str, samples: Iterable[Tokens | None], law: Law) -> Fit:
    """Compare samples with a law. Outcomes that it lumps into ``rest``, or given as None, share a cell."""
    counts = Counter(samples)
    total = counts.total()
    assert total > 0, "there is nothing to compare"
    unknown = sum(count for outcome, count in counts.items() if outcome not in law.masses)
    cells = [(counts[outcome], law.masses[outcome] * total) for outcome in law.masses]
    if law.rest > 0:
        cells.append((unknown, law.rest * total))
        unknown = 0
    distance = (sum(abs(seen - wanted) for seen, wanted in cells) + unknown) / (2 * total)
    statistic, freedom = _chi_square(cells)
    return Fit(
        name=name,
        num_samples=total,
        p_value=0.0 if unknown else chi_square_tail(statistic, freedom),
        distance=distance,
        noise=_expected_distance(cells, total),
        outside=unknown / total,
        statistic=statistic,
        freedom=freedom,
    )


def pooled(name: str, fits: Sequence[Fit]) -> Fit:
    """Independent fits as one test: their statistics and degrees of freedom add up."""
    total = sum(one.num_samples for one in fits)
    statistic, freedom = sum(one.statistic for one in fits), sum(one.freedom for one in fits)

    def mean(value: Callable[[Fit], float]) -> float:
        return sum(value(one) * one.num_samples for one in fits) / total

    outside = mean(lambda one: one.outside)
    return Fit(
        name=name,
        num_samples=total,
        p_value=0.0 if outside else chi_square_tail(statistic, freedom),
        distance=mean(lambda one: one.distance),
        noise=mean(lambda one: one.noise),
        outside=outside,
        statistic=statistic,
        freedom=freedom,
    )


def _chi_square(cells: list[tuple[int, float]]) -> tuple[float, int]:
    """Statistic and degrees of freedom; the rarest cells are pooled until each expects enough."""
    pools: list[tuple[int, float]] = []
    seen, wanted = 0, 0.0
    for cell_seen, cell_wanted in sorted(cells, key=lambda cell: cell[1]):
        seen, wanted = seen + cell_seen, wanted + cell_wanted
        if wanted >= _MIN_EXPECTED:
            pools.append((seen, wanted))
            seen, wanted = 0, 0.0
    if pools and wanted:
        pools[-1] = (pools[-1][0] + seen, pools[-1][1] + wanted)
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in pools)
    return statistic, max(len(pools) - 1, 0)


def chi_square_tail(statistic: float, freedom: int) -> float:
    """Chance that a chi-square variable exceeds the statistic: Q(freedom / 2, statistic / 2)."""
    if freedom == 0:
        return 1.0
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _expected_distance(cells: list[tuple[int, float]], total: int) -> float:
    """Half the expected absolute deviation of the counts, over their total."""
    return sum(_mean_deviation(wanted / total, total) for _, wanted in cells) / (2 * total)


def _mean_deviation(chance: float, total: int) -> float:
    """E |count - total * chance|: exact for a Poisson count, and narrowed as a binomial one is."""
    mean = total * chance
    if mean == 0:
        return 0.0
    whole = math.floor(mean)
    poisson = 2 * math.exp((whole + 1) * math.log(mean) - mean - math.lgamma(whole + 1))
    return poisson * math.sqrt(max(0.0, 1 - chance))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: all below alpha are rejected, and any false rejection has chance at most alpha."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
