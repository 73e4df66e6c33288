"""Why the accept length changed during a run: the policy's entropy, or a head that no longer fits.

Two answers (docs/math.md). The paper's (P 16) needs nothing but the log: the change that the entropy's change
predicts, and the rest. The better one needs a head refitted on the final policy and no line.

Shapes: T steps, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bebop.report.analysis import (
    NUM_RESAMPLES,
    Estimate,
    block_draws,
    difference,
    interval,
    is_constant,
    weighted_slopes,
)
from bebop.report.runlog import Series, common_steps

FIT_SHARE = 0.5
"""The line is fitted on the first half of the run, so that a later mismatch is not fitted away."""
WINDOW_SHARE = 0.15
"""Start and end of the run are the means over so much of it: one step is noise."""
MIN_WINDOW = 3
MIN_STEPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Decomposition:
    """P 16: change of accept length = slope x change of entropy + residual, from the run's start."""

    slope: Estimate
    """Accept length per nat over the first half of the run."""
    change: Estimate
    """Accept length, end of the run minus start."""
    entropy_part: Estimate
    """slope x (entropy at the end - entropy at the start)."""
    residual: Estimate
    """What the line does not predict; the paper reads it as mismatch."""
    steps_T: np.ndarray
    change_T: np.ndarray
    entropy_part_T: np.ndarray
    window: int
    """Steps averaged for start and end."""

    @property
    def residual_T(self) -> np.ndarray:
        return self.change_T - self.entropy_part_T


@dataclass(frozen=True, kw_only=True, slots=True)
class Refit:
    """With A = the frozen head on the final policy, B = a head refitted on it, C = the first head and policy."""

    mismatch: Estimate
    """B - A: what refitting the head wins back."""
    intrinsic: Estimate
    """C - B: what no head of this kind gets any more (negative: the policy became easier to draft)."""


def decompose(entropy: Series, length: Series) -> Decomposition | None:
    """None with fewer than eight common steps, or where the entropy of the first half never moves."""
    steps_T = common_steps(entropy, length)
    num_fit = max(MIN_STEPS // 2, round(FIT_SHARE * len(steps_T)))
    entropy_T, length_T = entropy.only(steps_T).values_T, length.only(steps_T).values_T
    if len(steps_T) < MIN_STEPS or is_constant(entropy_T[:num_fit]):
        return None
    window = max(MIN_WINDOW, round(WINDOW_SHARE * len(steps_T)))
    slope, _ = weighted_slopes(entropy_T[:num_fit], length_T[:num_fit], np.ones(num_fit))
    draws_RT = block_draws(num_fit)
    slope_R, _ = weighted_slopes(entropy_T[draws_RT], length_T[draws_RT], np.ones(draws_RT.shape))
    change, change_R = window_change(length_T, window)
    nats, nats_R = window_change(entropy_T, window)
    return Decomposition(
        slope=interval(float(slope), slope_R),
        change=interval(change, change_R),
        entropy_part=interval(float(slope) * nats, slope_R * nats_R),
        residual=interval(change - float(slope) * nats, change_R - slope_R * nats_R),
        steps_T=steps_T,
        change_T=length_T - length_T[:window].mean(),
        entropy_part_T=float(slope) * (entropy_T - entropy_T[:window].mean()),
        window=window,
    )


def window_change(values_T: np.ndarray, window: int) -> tuple[float, np.ndarray]:
    """Mean of the last window minus that of the first, and its resamples [R].

    The same draws serve every series of a run, so what two series share stays shared. Resampled means of so few steps
    spread too little, by sqrt((W - 1) / W), which is made up for.
    """
    rng = np.random.default_rng(1)
    widen = math.sqrt(window / (window - 1))
    parts = values_T[:window], values_T[-window:]
    means = [part.mean() for part in parts]
    off_R = [part[rng.integers(window, size=(NUM_RESAMPLES, window))].mean(1) - part.mean() for part in parts]
    change = float(means[1] - means[0])
    return change, change + widen * (off_R[1] - off_R[0])


def refit(first: Estimate, frozen: Estimate, refitted: Estimate) -> Refit:
    """C, A and B of the class, as accept lengths."""
    return Refit(mismatch=difference(refitted, frozen), intrinsic=difference(first, refitted))
