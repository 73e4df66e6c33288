"""Estimates with 95% intervals, from what a run logged step by step.

Neighbouring steps of a run resemble one another, so an interval that takes them for independent is too narrow. Where
not said otherwise, intervals are percentiles of a circular block bootstrap over steps (Politis and Romano 1992) with
blocks of T^(1/3) steps. They speak of this run: another seed differs by more.

Shapes: T steps (or points), R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bebop.errors import UserError

NUM_RESAMPLES = 1000
COVERAGE = 0.95
_EDGES = (50 * (1 - COVERAGE), 50 * (1 + COVERAGE))
_NORMAL = 1.959964
"""97.5% point of the normal distribution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number and its 95% interval; NaN edges where there is too little to tell."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __post_init__(self) -> None:
        assert not self.low > self.high, f"interval [{self.low}, {self.high}] is upside down"

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A least-squares line ``y = intercept + slope x``; Pearson's ``r`` is NaN where y is constant."""

    slope: Estimate
    intercept: Estimate
    r: float
    num_points: int

    def at(self, x: float) -> float:
        return self.intercept.value + self.slope.value * x


def block_draws(num_steps: int, seed: int = 0) -> np.ndarray:
    """Indices [R, T] of resampled steps: blocks of neighbours, the last step being the first one's neighbour."""
    rng = np.random.default_rng(seed)
    length = max(1, math.ceil(num_steps ** (1 / 3)))
    num_blocks = math.ceil(num_steps / length)
    starts_RB = rng.integers(num_steps, size=(NUM_RESAMPLES, num_blocks))
    blocks_RBL = (starts_RB[..., None] + np.arange(length)) % num_steps
    return blocks_RBL.reshape(NUM_RESAMPLES, -1)[:, :num_steps]


def interval(value: float, samples_R: np.ndarray) -> Estimate:
    """``value`` with the percentiles of its resamples; those that are not finite are left out."""
    finite_R = samples_R[np.isfinite(samples_R)]
    if len(finite_R) < 2:
        return Estimate(value=value)
    low, high = np.percentile(finite_R, _EDGES)
    return Estimate(value=value, low=float(low), high=float(high))


def pooled(totals_T: np.ndarray, counts_T: np.ndarray) -> Estimate:
    """Sum of totals over sum of counts; an interval from two steps on."""
    value = divided(totals_T.sum(), counts_T.sum())
    if len(totals_T) < 2:
        return Estimate(value=value)
    draws_RT = block_draws(len(totals_T))
    return interval(value, ratios(totals_T[draws_RT].sum(1), counts_T[draws_RT].sum(1)))


def pooled_ratio(upper: tuple[np.ndarray, np.ndarray], lower: tuple[np.ndarray, np.ndarray]) -> Estimate:
    """Pooled mean of ``upper`` over that of ``lower``, each as (totals_T, counts_T) of the same T steps.

    A resample takes the same steps of both, so what makes a step dear for both (its problems) cancels.
    """
    (a_T, m_T), (b_T, n_T) = upper, lower
    assert len(a_T) == len(b_T), "a paired ratio needs the same steps of both"
    value = divided(divided(a_T.sum(), m_T.sum()), divided(b_T.sum(), n_T.sum()))
    if len(a_T) < 2:
        return Estimate(value=value)
    draws_RT = block_draws(len(a_T))
    tops_R = ratios(a_T[draws_RT].sum(1), m_T[draws_RT].sum(1))
    return interval(value, ratios(tops_R, ratios(b_T[draws_RT].sum(1), n_T[draws_RT].sum(1))))


def wilson(total: float, count: float) -> Estimate:
    """Mean of ``count`` independent numbers in [0, 1], with Wilson's interval: exact for 0 and 1, else too wide."""
    if count <= 0:
        return Estimate(value=math.nan)
    mean, z2 = total / count, _NORMAL**2
    centre = (mean + z2 / (2 * count)) / (1 + z2 / count)
    half = _NORMAL / (1 + z2 / count) * math.sqrt(max(0.0, mean * (1 - mean) / count + z2 / (4 * count**2)))
    return Estimate(value=mean, low=min(mean, centre - half), high=max(mean, centre + half))


def difference(left: Estimate, right: Estimate) -> Estimate:
    """``left - right`` of independent estimates; the interval adds the half-widths in quadrature (Newcombe 1998)."""
    value = left.value - right.value
    if not (left.has_interval and right.has_interval):
        return Estimate(value=value)
    down = math.hypot(left.value - left.low, right.high - right.value)
    up = math.hypot(left.high - left.value, right.value - right.low)
    return Estimate(value=value, low=value - down, high=value + up)


def fit_line(x_T: np.ndarray, y_T: np.ndarray) -> Line | None:
    """Least squares with Student's t intervals, which take the points for independent.

    None where a line means nothing: fewer than three points, or all at one x.
    """
    num_points = len(x_T)
    if num_points < 3 or is_constant(x_T):
        return None
    x_mean, y_mean = float(x_T.mean()), float(y_T.mean())
    spread = float(((x_T - x_mean) ** 2).sum())
    slope = float(((x_T - x_mean) * (y_T - y_mean)).sum()) / spread
    intercept = y_mean - slope * x_mean
    errors_T = y_T - intercept - slope * x_T
    variance = float((errors_T**2).sum()) / (num_points - 2)
    quantile = student_quantile(num_points - 2)
    half_slope = quantile * math.sqrt(variance / spread)
    half_intercept = quantile * math.sqrt(variance * (1 / num_points + x_mean**2 / spread))
    return Line(
        slope=Estimate(value=slope, low=slope - half_slope, high=slope + half_slope),
        intercept=Estimate(value=intercept, low=intercept - half_intercept, high=intercept + half_intercept),
        r=correlation(x_T, y_T, np.ones(num_points)),
        num_points=num_points,
    )


def weighted_slopes(x_XT: np.ndarray, y_XT: np.ndarray, weight_XT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(slope_X, intercept_X) of weighted least-squares lines; NaN where all weight is at one x."""
    weight_XT = weight_XT / np.maximum(weight_XT.sum(-1, keepdims=True), 1e-300)
    x_mean_X, y_mean_X = (weight_XT * x_XT).sum(-1), (weight_XT * y_XT).sum(-1)
    off_XT = x_XT - x_mean_X[..., None]
    slope_X = ratios((weight_XT * off_XT * y_XT).sum(-1), (weight_XT * off_XT**2).sum(-1))
    return slope_X, y_mean_X - slope_X * x_mean_X


def correlation(x_T: np.ndarray, y_T: np.ndarray, weight_T: np.ndarray) -> float:
    """Weighted Pearson correlation; NaN where either is constant."""
    if is_constant(x_T) or is_constant(y_T):
        return math.nan
    weight_T = weight_T / weight_T.sum()
    x_off_T, y_off_T = x_T - (weight_T * x_T).sum(), y_T - (weight_T * y_T).sum()
    norm = math.sqrt((weight_T * x_off_T**2).sum() * (weight_T * y_off_T**2).sum())
    return float((weight_T * x_off_T * y_off_T).sum() / norm) if norm > 0 else math.nan


def is_constant(values_T: np.ndarray) -> bool:
    """Whether the values differ by no more than rounding."""
    return bool(np.ptp(values_T) <= 1e-12 * max(1.0, float(np.abs(values_T).max())))


def ratios(upper_X: np.ndarray, lower_X: np.ndarray) -> np.ndarray:
    """``upper / lower``; NaN where ``lower`` is 0."""
    result_X = np.full(np.broadcast(upper_X, lower_X).shape, np.nan)
    np.divide(upper_X, lower_X, out=result_X, where=lower_X != 0)
    return result_X


def divided(upper: float, lower: float) -> float:
    return float(upper) / float(lower) if lower else math.nan


def student_quantile(degrees: int) -> float:
    """The point of Student's t that bounds the middle ``COVERAGE``."""
    try:
        from scipy.special import stdtrit
    except ModuleNotFoundError as error:
        raise UserError("intervals of fits need scipy; install it with `pip install 'bebop-rl[report]'`") from error
    return float(stdtrit(degrees, (1 + COVERAGE) / 2))
