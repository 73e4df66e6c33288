"""Where a step's time goes, how much faster one run's steps are than another's, and when the head has paid for itself.

Shapes: T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bebop.report.analysis import Estimate, pooled, pooled_ratio
from bebop.report.runlog import RunLog, Series, common_steps

STEP = "time/step"
ON_THE_LEARNER = {
    "exposed generation": "time/exposed_generation",
    "training": "time/training",
    "publication": "time/publication",
}
"""What a step consists of, one after the other."""
BESIDE_IT = {"generation": "time/generation", "scoring": "time/scoring"}
"""Busy seconds of the workers, which the learner need not wait for."""
NUM_WARM_UP = 1
"""The first step fills pipelines and caches; it is left out of every figure about time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Mean seconds of a step and of its parts; a part that was not logged is missing."""

    step: Estimate
    parts: dict[str, Estimate]
    """Of the learner, by the names in ``ON_THE_LEARNER``."""
    beside: dict[str, Estimate]
    """Of the workers, by the names in ``BESIDE_IT``."""
    num_steps: int

    @property
    def rest(self) -> float:
        """Seconds of the step in none of its parts."""
        return max(0.0, self.step.value - sum(part.value for part in self.parts.values()))


def timed(run: RunLog, name: str) -> Series | None:
    """A series of seconds without the warm-up and the end of the run; all but the warm-up where that leaves nothing."""
    series = run.series(name)
    steps = run.series(STEP)
    if series is None or steps is None:
        return series
    warm_T = steps.steps_T[NUM_WARM_UP:]
    full_T = warm_T[warm_T <= last_full_step(run)]
    kept = series.only(full_T if len(full_T) else warm_T)
    return kept if len(kept) else None


def last_full_step(run: RunLog) -> float:
    """The last step beside which the workers may start what a later one needs, as they do in all of a long run.

    They may be ``async.max_lag`` steps ahead, so beside as many steps at the end of a run they only finish what they
    owe. Where a run says nothing of that, every step is full.
    """
    num_steps, max_lag = run.setting("steps"), run.setting("async", "max_lag")
    return num_steps - max_lag if isinstance(num_steps, int) and isinstance(max_lag, int) else math.inf


def step_time(run: RunLog) -> StepTime | None:
    """None where the run did not log the time of its steps."""
    step = timed(run, STEP)
    if step is None:
        return None

    def means(names: dict[str, str]) -> dict[str, Estimate]:
        found = {label: timed(run, name) for label, name in names.items()}
        return {label: pooled(one.totals_T, one.counts_T) for label, one in found.items() if one}

    return StepTime(
        step=pooled(step.totals_T, step.counts_T),
        parts=means(ON_THE_LEARNER),
        beside=means(BESIDE_IT),
        num_steps=len(step),
    )


def speed_up(baseline: RunLog, run: RunLog, name: str = STEP) -> Estimate | None:
    """Seconds of ``baseline`` over seconds of ``run``, over the steps both have; above 1 = faster."""
    slow, fast = timed(baseline, name), timed(run, name)
    steps = common_steps(slow, fast) if slow and fast else ()
    if slow is None or fast is None or len(steps) == 0:
        return None
    slow, fast = slow.only(steps), fast.only(steps)
    return pooled_ratio((slow.totals_T, slow.counts_T), (fast.totals_T, fast.counts_T))


def token_speed_up(baseline: RunLog, run: RunLog) -> Estimate | None:
    """``speed_up`` of steps, each run's seconds divided by the tokens that it wrote in them.

    Where groups are replaced or answers grow longer, a step is not the same work in both runs.
    """
    found = [(timed(one, STEP), one.series("tokens")) for one in (baseline, run)]
    known = [one for pair in found for one in pair if one is not None]
    steps = common_steps(*known) if len(known) == 4 else ()
    if len(steps) == 0:
        return None
    slow, slow_tokens, fast, fast_tokens = (one.only(steps).totals_T for one in known)
    return pooled_ratio((slow, slow_tokens), (fast, fast_tokens))


def break_even(cost: float, slow_step: Estimate, ratio: Estimate) -> Estimate | None:
    """Steps after which ``cost`` seconds are won back: cost / (step without - step with).

    The step with is ``slow_step / ratio``. None where steps are not faster; an upper edge is infinite where the
    interval of the ratio reaches 1.
    """
    steps = break_even_steps(cost, slow_step.value, ratio.value)
    if math.isinf(steps):
        return None
    low = break_even_steps(cost, slow_step.value, ratio.high)
    high = break_even_steps(cost, slow_step.value, ratio.low)
    return Estimate(value=steps, low=low, high=high)


def break_even_steps(cost: float, seconds_without: float, ratio: float) -> float:
    """cost / (step without - step with); infinite unless ``ratio`` > 1; NaN stays NaN."""
    if math.isnan(ratio):
        return math.nan
    saved = seconds_without * (1 - 1 / ratio)
    return cost / saved if saved > 0 else math.inf
