"""The few numbers a reader wants first: per run, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bebop.report.analysis import Estimate, pooled
from bebop.report.analysis_entropy import TELLING_STEPS, fit_steps
from bebop.report.analysis_time import break_even, speed_up, step_time, token_speed_up
from bebop.report.comparison import Arm, Comparison
from bebop.report.runlog import RunLog
from bebop.report.sections.head_cost import served_by
from bebop.report.sections.learning import HELDOUT, evaluations, heldout_change
from bebop.report.wording import Spell, bracketed, count, percent, plain, seconds, signed, steps_count, times, within


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """One headline number: ``text`` with its interval."""

    label: str
    text: str
    interval: str = ""
    explained: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A run in a few numbers."""

    name: str
    colour: str
    about: str
    """Its settings in one line."""
    numbers: tuple[Number, ...]
    is_baseline: bool


def cards(comparison: Comparison) -> tuple[Card, ...]:
    """One card per run; a number that its log does not give is left out."""
    return tuple(
        Card(
            name=arm.name,
            colour=arm.colour,
            about=about(arm.run),
            numbers=tuple(numbers(comparison, arm)),
            is_baseline=arm.run is comparison.baseline,
        )
        for arm in comparison.arms
    )


def about(run: RunLog) -> str:
    """Such as ``frozen head, rejection, K = 3 · lag up to 2 · 40 steps``."""
    parts = [drafting(run)]
    bound = run.setting("async", "max_lag")
    if isinstance(bound, int):
        parts.append("synchronous" if bound == 0 else f"asynchronous, lag up to {bound}")
    steps = [row.step for row in run.rows]
    planned = run.setting("steps")
    last = max(steps, default=0)
    parts.append(f"{last} of {planned} steps" if isinstance(planned, int) and planned > last else f"{last} steps")
    return " · ".join(filter(None, parts))


def drafting(run: RunLog) -> str:
    if not run.is_speculating:
        return "no speculation"
    mode, rule, drafts = (run.setting("mtp", key) for key in ("mode", "rule", "k"))
    named = [f"{mode} head" if isinstance(mode, str) else "drafted", rule if isinstance(rule, str) else ""]
    return ", ".join(filter(None, [*named, f"K = {drafts}" if isinstance(drafts, int | str) else ""]))


def numbers(comparison: Comparison, arm: Arm) -> list[Number]:
    found = [
        step_number(comparison, arm),
        rollout_number(comparison, arm),
        length_number(arm),
        slope_number(arm),
        reward_number(arm),
        break_even_number(comparison, arm),
    ]
    return [one for one in found if one is not None]


def number(label: str, estimate: Estimate, spell: Spell, explained: str) -> Number:
    return Number(label=label, text=spell(estimate.value), interval=bracketed(estimate, spell), explained=explained)


def step_number(comparison: Comparison, arm: Arm) -> Number | None:
    """Speed-up of a step; a step's seconds for the baseline or where there is none."""
    own = step_time(arm.run)
    if own is None:
        return None
    ratio = speed_up(comparison.baseline, arm.run) if comparison.baseline else None
    if ratio is None or comparison.baseline is arm.run:
        return number("step time", own.step, seconds, "mean over the steps but for the first and the end of the run")
    assert comparison.baseline is not None
    by_token = token_speed_up(comparison.baseline, arm.run)
    against = f"mean step time of {comparison.baseline.name} over this run's"
    against += f"; per token {times(by_token.value)}" if by_token else ""
    return number("faster steps", ratio, times, against)


def rollout_number(comparison: Comparison, arm: Arm) -> Number | None:
    if comparison.baseline is None or comparison.baseline is arm.run:
        return None
    ratio = speed_up(comparison.baseline, arm.run, "time/generation")
    return number("faster rollouts", ratio, times, "ratio of busy generation time per step") if ratio else None


def length_number(arm: Arm) -> Number | None:
    series = arm.run.series("mtp/accept_length") if arm.run.is_speculating else None
    if series is None:
        return None
    mean = pooled(series.totals_T, series.counts_T)
    return number("accept length", mean, plain(2), "tokens per draft-and-verify round, over the whole run")


def slope_number(arm: Arm) -> Number | None:
    """Accept length per nat over steps; few steps give no slope worth a headline."""
    nats, length = arm.run.series("entropy"), arm.run.series("mtp/accept_length")
    fit = fit_steps(nats, length) if nats and length and arm.run.is_speculating else None
    if fit is None or fit.line.num_points < TELLING_STEPS:
        return None
    return number("slope on entropy", fit.block_slope, signed(2), "accept length per nat, over steps")


def reward_number(arm: Arm) -> Number | None:
    """Change of the held-out reward, or where there is one evaluation, that."""
    series = arm.run.series(HELDOUT)
    if series is None:
        return None
    change = heldout_change(arm.run)
    found = evaluations(series)
    if change is None:
        return number("held-out reward", found[-1], plain(2), "at the one evaluation")
    ends = f"{plain(2)(found[0].value)} → {plain(2)(found[-1].value)}"
    told = within(change, signed(2))
    return Number(label="held-out reward", text=ends, interval=told, explained="first and last evaluation")


def break_even_number(comparison: Comparison, arm: Arm) -> Number | None:
    """Steps that win back the training of the head this run drafts with."""
    base = comparison.baseline
    heads = [head for head in comparison.inputs.heads if arm in served_by(comparison, head)]
    slow = step_time(base) if base else None
    ratio = speed_up(base, arm.run) if base and base is not arm.run else None
    if len(heads) != 1 or slow is None or ratio is None:
        return None
    steps = break_even(heads[0].seconds, slow.step, ratio)
    cost = f"steps until the head's training ({seconds(heads[0].seconds)}) is won back"
    if steps is None:
        return Number(label="head paid for after", text="never", explained="its steps are not faster")
    text = steps_count(steps.value) if steps.high < math.inf else "not clear yet"
    return Number(label="head paid for after", text=text, interval=bracketed(steps, count), explained=cost)


def verdict(comparison: Comparison) -> str:
    """The report in one sentence, from the run with the fastest steps."""
    base = comparison.baseline
    if base is None:
        return f"{len(comparison.arms)} runs" if len(comparison.arms) != 1 else comparison.arms[0].name
    ratios = [(arm, speed_up(base, arm.run)) for arm in comparison.others]
    known = [(arm, ratio) for arm, ratio in ratios if ratio is not None]
    if not known:
        return f"{len(comparison.arms)} runs; step times are not logged"
    arm, best = max(known, key=lambda pair: pair[1].value)
    series = arm.run.series("mtp/accept_length")
    length = f", {series.pooled:.2f} tokens out of every round" if series is not None else ""
    if best.low <= 1 <= best.high:
        return f"Steps of {arm.name} and of {base.name} cannot be told apart: {within(best, times)}{length}."
    if best.value <= 1:
        return f"No run is faster than {base.name}; the closest is {arm.name} at {within(best, times)}{length}."
    percent_less = percent(0)(1 - 1 / best.value)
    return (
        f"Steps of {arm.name} take {percent_less} less time than those of {base.name}: {within(best, times)}{length}."
    )
