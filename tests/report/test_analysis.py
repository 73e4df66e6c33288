"""Estimates and their intervals: exact where arithmetic is, and covering the truth as often as they claim."""

import math

import numpy as np
import pytest

from bebop.report.analysis import (
    NUM_RESAMPLES,
    Estimate,
    block_draws,
    correlation,
    difference,
    fit_line,
    interval,
    pooled,
    pooled_ratio,
    weighted_slopes,
    wilson,
)


def test_a_mean_is_sums_over_sums_not_a_mean_of_means() -> None:
    totals_T, counts_T = np.array([1.0, 90.0]), np.array([10.0, 100.0])
    assert pooled(totals_T, counts_T).value == pytest.approx(91 / 110)
    assert not pooled(totals_T[:1], counts_T[:1]).has_interval


def test_a_line_is_recovered_with_its_correlation() -> None:
    x_T = np.array([0.1, 0.4, 0.5, 0.9, 1.3])
    line = fit_line(x_T, 3.5 - 1.68 * x_T)
    assert line is not None
    assert (line.slope.value, line.intercept.value, line.r) == pytest.approx((-1.68, 3.5, -1.0))
    assert line.at(0.5) == pytest.approx(3.5 - 0.84)
    assert (line.slope.low, line.slope.high) == pytest.approx((-1.68, -1.68))


def test_no_line_goes_through_two_points_or_through_one_entropy() -> None:
    assert fit_line(np.array([0.0, 1.0]), np.array([0.0, 1.0])) is None
    assert fit_line(np.full(9, 0.7), np.arange(9.0)) is None


def test_a_textbook_slope_interval() -> None:
    """By hand: slope 0.6, residual variance 0.8, spread 10, t(3) = 3.18245, so the half-width is 3.18245 sqrt(0.08)."""
    line = fit_line(np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 4, 5, 4, 5]))
    assert line is not None
    half = 3.182446 * math.sqrt(0.08)
    assert (line.slope.low, line.slope.high) == pytest.approx((0.6 - half, 0.6 + half), abs=1e-5)


def test_intervals_of_independent_steps_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered_line = covered_mean = 0
    for _ in range(200):
        x_T = rng.uniform(0.3, 1.0, 40)
        y_T = 3.0 - 0.5 * x_T + 0.1 * rng.standard_normal(40)
        line = fit_line(x_T, y_T)
        assert line is not None
        covered_line += line.slope.low <= -0.5 <= line.slope.high
        mean = pooled(2.0 + rng.standard_normal(40), np.ones(40))
        covered_mean += mean.low <= 2.0 <= mean.high
    assert 0.9 <= covered_line / 200 <= 0.99
    assert 0.85 <= covered_mean / 200 <= 0.99


def test_blocks_widen_the_interval_of_steps_that_resemble_their_neighbours() -> None:
    rng = np.random.default_rng(1)
    noise_T = rng.standard_normal(200)
    walk_T = np.convolve(noise_T, np.ones(12) / math.sqrt(12), mode="same")
    whole = pooled(walk_T, np.ones(200))
    alone_R = walk_T[rng.integers(200, size=(NUM_RESAMPLES, 200))].mean(1)
    independent = interval(whole.value, alone_R)
    assert whole.high - whole.low > 1.5 * (independent.high - independent.low)


def test_a_resample_is_made_of_neighbours() -> None:
    draws_RT = block_draws(64)
    assert draws_RT.shape == (NUM_RESAMPLES, 64)
    assert (draws_RT >= 0).all() and (draws_RT < 64).all()
    is_next_RT = (np.diff(draws_RT, axis=1) % 64) == 1
    assert 0.7 < is_next_RT.mean() < 0.85  # blocks of four: three of four steps follow their neighbour


def test_a_paired_ratio_cancels_what_both_share() -> None:
    rng = np.random.default_rng(2)
    shared_T = rng.uniform(1, 10, 30)
    ratio = pooled_ratio((2 * shared_T, np.ones(30)), (shared_T, np.ones(30)))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    with pytest.raises(AssertionError):
        pooled_ratio((shared_T, np.ones(30)), (shared_T[:5], np.ones(5)))


def test_wilsons_interval() -> None:
    """Brown, Cai and DasGupta 2001; none of ten is not known to be none of all."""
    half = wilson(5, 10)
    assert (half.low, half.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    none = wilson(0, 10)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(0.2775, abs=1e-4)
    assert math.isnan(wilson(0, 0).value)


def test_a_difference_adds_half_widths_in_quadrature() -> None:
    found = difference(Estimate(value=3, low=0, high=7), Estimate(value=1, low=-3, high=4))
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - math.hypot(3, 3), 2 + math.hypot(4, 4)))
    assert not difference(Estimate(value=3), Estimate(value=1, low=0, high=2)).has_interval


def test_weights_decide_a_weighted_line() -> None:
    x_T, y_T = np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 5.0])
    slope, intercept = weighted_slopes(x_T, y_T, np.array([1.0, 1.0, 0.0]))
    assert (float(slope), float(intercept)) == pytest.approx((1, 0))
    assert correlation(x_T, y_T, np.array([1.0, 1.0, 1e-12])) == pytest.approx(1)
    assert math.isnan(correlation(x_T, np.ones(3), np.ones(3)))


def test_an_interval_upside_down_is_ours_to_mend() -> None:
    with pytest.raises(AssertionError, match="upside down"):
        Estimate(value=1, low=2, high=0)
