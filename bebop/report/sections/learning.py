"""What the policy learned: reward on training and held-out problems, over steps and over time."""

from __future__ import annotations

import numpy as np

from bebop.report.analysis import Estimate, difference, pooled, wilson
from bebop.report.analysis_time import STEP
from bebop.report.charts import Axis, Chart, Trace, smoothed
from bebop.report.comparison import Arm, Comparison
from bebop.report.runlog import RunLog, Series, common_steps
from bebop.report.section import Cell, Missing, Section, Table
from bebop.report.wording import DASH, listed, plain, signed, within

TRAIN, HELDOUT = "reward", "heldout_reward"
ALL_TASKS = "all tasks"


def learning(comparison: Comparison) -> Section | Missing:
    """Reward curves of every run, together and task by task."""
    charts = [
        reward_chart(comparison, TRAIN),
        reward_chart(comparison, HELDOUT),
        clock_chart(comparison),
    ]
    if not any(charts):
        return Missing(title="Reward", reason="no run logged reward or heldout_reward.")
    rows = [reward_row(arm, comparison.baseline) for arm in comparison.arms]
    columns = (
        "run",
        "held-out, first",
        "held-out, last",
        "change",
        "last, against the baseline",
        "training, last fifth",
    )
    return Section(
        id="reward",
        title="Reward",
        short="Reward",
        lead=reward_lead(comparison),
        charts=tuple(filter(None, charts)),
        tables=(Table(columns=columns, rows=tuple(rows)),),
        notes=(
            "Training rewards are running means over the step's rollouts (dots: single steps). Held-out intervals are "
            "Wilson's, which are exact for rewards of 0 and 1 and too wide for others.",
        ),
    )


def reward_lead(comparison: Comparison) -> str:
    changes = [(arm, heldout_change(arm.run)) for arm in comparison.arms]
    texts = [f"{arm.name} {within(change, signed(2))}" for arm, change in changes if change is not None]
    start = "Exact verification leaves the samples' law alone, so drafting must not change what is learned. "
    return f"{start}Held-out reward from first to last evaluation: {listed(texts)}." if texts else start.rstrip()


def tasks_of(comparison: Comparison, metric: str) -> list[str]:
    """Tasks with a curve of their own."""
    names = (name for arm in comparison.arms for name in arm.run.metric_names if name.startswith(f"{metric}/"))
    return list(dict.fromkeys(name.partition("/")[2] for name in names))


def views_of(comparison: Comparison, metric: str) -> dict[str, str]:
    """View -> metric, all tasks together first."""
    tasks = tasks_of(comparison, metric)
    together = {ALL_TASKS: metric} if comparison.with_series(metric) else {}
    return together | ({task: f"{metric}/{task}" for task in tasks} if len(tasks) > 1 or not together else {})


def reward_chart(comparison: Comparison, metric: str) -> Chart | None:
    traces: list[Trace] = []
    views = views_of(comparison, metric)
    for view, name in views.items():
        for arm, series in comparison.with_series(name):
            draw = heldout_traces if metric == HELDOUT else train_traces
            traces += draw(arm, series, view if len(views) > 1 else None)
    if not traces:
        return None
    is_train = metric == TRAIN
    return Chart(
        id="reward-train" if is_train else "reward-heldout",
        title="Training problems" if is_train else "Held-out problems",
        caption="Mean reward of a step's rollouts." if is_train else "Mean reward with 95% intervals.",
        x=Axis(title="RL step"),
        y=Axis(title="reward", span=(0, None)),
        traces=tuple(traces),
        views=tuple(views) if len(views) > 1 else (),
    )


def train_traces(arm: Arm, series: Series, view: str | None) -> list[Trace]:
    steps = series.steps_T.tolist()
    mean_T = smoothed(series.values_T, series.counts_T, max(1, len(series) // 10))
    values = series.values_T.tolist()
    return [
        Trace(name=arm.name, x=steps, y=values, colour=arm.colour, form="dots", is_faint=True, view=view),
        Trace(name=arm.name, x=steps, y=mean_T.tolist(), colour=arm.colour, view=view),
    ]


def heldout_traces(arm: Arm, series: Series, view: str | None) -> list[Trace]:
    estimates = evaluations(series)
    return [
        Trace(
            name=arm.name,
            x=series.steps_T.tolist(),
            y=[one.value for one in estimates],
            colour=arm.colour,
            form="line+dots",
            intervals=estimates,
            view=view,
        )
    ]


def clock_chart(comparison: Comparison) -> Chart | None:
    """Reward against the time spent in steps: the same learning, sooner."""
    traces = []
    for arm, series in comparison.with_series(TRAIN):
        minutes_T = minutes_at(arm.run, series.steps_T)
        if minutes_T is not None:
            mean_T = smoothed(series.values_T, series.counts_T, max(1, len(series) // 10))
            traces.append(Trace(name=arm.name, x=minutes_T.tolist(), y=mean_T.tolist(), colour=arm.colour))
    if not traces:
        return None
    return Chart(
        id="reward-clock",
        title="Training problems, by the clock",
        caption="The same running means against the time spent in steps.",
        x=Axis(title="minutes of training", span=(0, None)),
        y=Axis(title="reward", span=(0, None)),
        traces=tuple(traces),
    )


def minutes_at(run: RunLog, steps_T: np.ndarray) -> np.ndarray | None:
    """Time spent in steps up to each of these; None where some step's time is not known."""
    series = run.series(STEP)
    if series is None or not np.isin(steps_T, series.steps_T).all():
        return None
    passed_T = np.cumsum(series.totals_T) / 60
    return passed_T[np.searchsorted(series.steps_T, steps_T)]


def evaluations(series: Series) -> list[Estimate]:
    pairs = zip(series.totals_T.tolist(), series.counts_T.tolist(), strict=True)
    return [wilson(total, number) for total, number in pairs]


def heldout_change(run: RunLog) -> Estimate | None:
    """Last evaluation minus first; None with fewer than two. The same problems are played, so it is a safe interval."""
    series = run.series(HELDOUT)
    if series is None or len(series) < 2:
        return None
    found = evaluations(series)
    return difference(found[-1], found[0])


def against(run: RunLog, baseline: RunLog | None) -> Estimate | None:
    """Last evaluation minus the baseline's at the same step; None for the baseline itself, or without such a step."""
    own, other = run.series(HELDOUT), baseline.series(HELDOUT) if baseline else None
    if own is None or other is None or run is baseline:
        return None
    steps = common_steps(own, other)
    if len(steps) == 0:
        return None
    return difference(evaluations(own.only(steps[-1:]))[0], evaluations(other.only(steps[-1:]))[0])


def reward_row(arm: Arm, baseline: RunLog | None) -> tuple[Cell, ...]:
    heldout, train = arm.run.series(HELDOUT), arm.run.series(TRAIN)
    found = evaluations(heldout) if heldout else []
    last = train.only(train.steps_T[-max(1, len(train) // 5) :]) if train else None
    return (
        Cell(text=arm.name, colour=arm.colour),
        Cell.of(found[0], plain(3)) if found else Cell(text=DASH),
        Cell.of(found[-1], plain(3)) if found else Cell(text=DASH),
        Cell.of(heldout_change(arm.run), signed(3)),
        Cell.of(against(arm.run, baseline), signed(3)),
        Cell.of(pooled(last.totals_T, last.counts_T), plain(3)) if last else Cell(text=DASH),
    )
