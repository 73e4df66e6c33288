"""How acceptance depends on the policy's entropy: over steps, and within them over tokens.

The paper (arXiv 2606.12370) claims a line over steps, with a slope near zero for a head trained with the overlap loss
and verified by rejection. Steps differ by little and in more than entropy; bins of tokens span the whole range.

Shapes: T steps, B bins, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bebop.report.analysis import (
    Estimate,
    Line,
    block_draws,
    correlation,
    fit_line,
    interval,
    ratios,
    weighted_slopes,
)
from bebop.report.runlog import EntropyBins, Series, common_steps

MIN_STEPS = 4
TELLING_STEPS = 10
"""With fewer, a slope over steps is drawn but is no finding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFit:
    """Accept length against mean entropy, a point per step."""

    steps_T: np.ndarray
    entropy_T: np.ndarray
    length_T: np.ndarray
    line: Line
    """Accept length per nat; t intervals, steps taken for independent."""
    block_slope: Estimate
    """The same slope with an interval that lets neighbouring steps be alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BinFit:
    """Acceptance against entropy within steps: a point per bin of drafted tokens, pooled over the steps."""

    entropy_B: np.ndarray
    """Mean nats of the bin's tokens."""
    acceptances: tuple[Estimate, ...]
    """Accepted over drafted."""
    overlap_B: np.ndarray
    """Mean sum_v min(p, q): what rejection would accept; NaN where it was not measured."""
    drafted_B: np.ndarray
    line: Line
    """Acceptance per nat, bins weighted by their drafts."""


def fit_steps(entropy: Series, length: Series) -> StepFit | None:
    """None with fewer than four common steps, or where the entropy never moves."""
    steps_T = common_steps(entropy, length)
    entropy_T, length_T = entropy.only(steps_T).values_T, length.only(steps_T).values_T
    line = fit_line(entropy_T, length_T) if len(steps_T) >= MIN_STEPS else None
    if line is None:
        return None
    draws_RT = block_draws(len(steps_T))
    slope_R, _ = weighted_slopes(entropy_T[draws_RT], length_T[draws_RT], np.ones(draws_RT.shape))
    return StepFit(
        steps_T=steps_T,
        entropy_T=entropy_T,
        length_T=length_T,
        line=line,
        block_slope=interval(line.slope.value, slope_R),
    )


def fit_bins(bins: EntropyBins) -> BinFit | None:
    """None with drafts in fewer than three bins. Intervals resample steps, whose tokens are alike."""
    used_B = (bins.drafted_TB.sum(0) > 0) & (bins.counts_TB.sum(0) > 0)
    if used_B.sum() < 3:
        return None
    drafted_TB, accepted_TB = bins.drafted_TB[:, used_B], bins.accepted_TB[:, used_B]
    counts_TB, nats_TB = bins.counts_TB[:, used_B], bins.entropy_TB[:, used_B]
    draws_RT = block_draws(len(bins.steps_T))
    acceptance_RB = ratios(accepted_TB[draws_RT].sum(1), drafted_TB[draws_RT].sum(1))
    entropy_B, acceptance_B = ratios(nats_TB.sum(0), counts_TB.sum(0)), ratios(accepted_TB.sum(0), drafted_TB.sum(0))
    return BinFit(
        entropy_B=entropy_B,
        acceptances=tuple(
            interval(float(value), acceptance_RB[:, column]) for column, value in enumerate(acceptance_B)
        ),
        overlap_B=ratios(bins.overlap_TB[:, used_B].sum(0), counts_TB.sum(0)),
        drafted_B=drafted_TB.sum(0),
        line=bin_line(entropy_B, acceptance_B, acceptance_RB, drafted_TB, draws_RT),
    )


def bin_line(
    entropy_B: np.ndarray,
    acceptance_B: np.ndarray,
    acceptance_RB: np.ndarray,
    drafted_TB: np.ndarray,
    draws_RT: np.ndarray,
) -> Line:
    drafted_B, drafted_RB = drafted_TB.sum(0), drafted_TB[draws_RT].sum(1)
    slope, intercept = weighted_slopes(entropy_B, acceptance_B, drafted_B)
    slope_R, intercept_R = weighted_slopes(
        np.broadcast_to(entropy_B, acceptance_RB.shape), np.nan_to_num(acceptance_RB), drafted_RB
    )
    return Line(
        slope=interval(float(slope), slope_R),
        intercept=interval(float(intercept), intercept_R),
        r=correlation(entropy_B, acceptance_B, drafted_B),
        num_points=len(entropy_B),
    )
