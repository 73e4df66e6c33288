"""Where a step's time goes, and how its speed compares."""

from __future__ import annotations

from bebop.report.analysis import Estimate
from bebop.report.analysis_time import (
    BESIDE_IT,
    ON_THE_LEARNER,
    STEP,
    StepTime,
    speed_up,
    step_time,
    timed,
    token_speed_up,
)
from bebop.report.charts import Axis, Chart, Trace
from bebop.report.comparison import Arm, Comparison
from bebop.report.runlog import RunLog, common_steps
from bebop.report.section import Cell, Missing, Section, Table
from bebop.report.wording import DASH, listed, percent, plain, seconds, times, within

COLOURS = {
    "exposed generation": "generation",
    "generation": "generation",
    "training": "training",
    "publication": "publication",
    "scoring": "scoring",
    "rest": "rest",
}
NO_TIME = "no run logged time/step."


def step_times(comparison: Comparison) -> Section | Missing:
    """The step of every run, in parts, and its speed against the baseline's."""
    found = [(arm, one) for arm in comparison.arms if (one := step_time(arm.run)) is not None]
    if not found:
        return Missing(title="Step time", reason=NO_TIME)
    return Section(
        id="step-time",
        title="Where the time of a step goes",
        short="Time",
        lead=time_lead(comparison, found),
        charts=(parts_chart(found), seconds_chart(found)),
        tables=(time_table(comparison, found),),
        notes=(
            "Upper bar: the learner's step, part by part; generation is exposed where the learner waits for it. Lower "
            "bar: busy time of the workers, which may run beside the learner. Left out are the first step and, at the "
            "end of an asynchronous run, async.max_lag steps: no later ones are played for. Before an evaluation "
            "an asynchronous learner waits for what is under way: that step is long, those after it short.",
            "Ratios pair the steps of both runs, which see problems in the same order. A step is more work where more "
            "groups are replaced or answers are longer: per token, seconds are divided by the tokens written.",
        ),
    )


def time_lead(comparison: Comparison, found: list[tuple[Arm, StepTime]]) -> str:
    if comparison.baseline is None:
        return "Mean seconds of a step. No run without speculation is given to measure speed-ups against."
    pairs = [(arm, speed_up(comparison.baseline, arm.run)) for arm in comparison.others]
    texts = [f"{arm.name} {within(ratio, times)}" for arm, ratio in pairs if ratio is not None]
    base = comparison.baseline.name
    return (
        f"Steps against {base}, as a ratio of mean step times: {listed(texts)}." if texts else "Mean seconds of a step."
    )


def parts_chart(found: list[tuple[Arm, StepTime]]) -> Chart:
    """Two bars a run, the learner's above the workers'."""
    traces = []
    for label in (*ON_THE_LEARNER, "rest", *BESIDE_IT):
        is_beside = label in BESIDE_IT
        values = {
            row_name(arm, is_beside): one.rest
            if label == "rest"
            else (one.beside if is_beside else one.parts)[label].value
            for arm, one in found
            if label == "rest" or label in (one.beside if is_beside else one.parts)
        }
        if values and max(values.values()) > 0:
            name = f"{label} (workers)" if is_beside else label
            traces.append(
                Trace(
                    name=name,
                    x=list(values),
                    y=list(values.values()),
                    colour=COLOURS[label],
                    form="bars",
                    is_faint=is_beside,
                )
            )
    names = [
        row_name(arm, is_beside) for arm, one in found for is_beside in ((False, True) if one.beside else (False,))
    ]
    return Chart(
        id="step-time",
        title="Parts of a step",
        caption="Mean seconds per step.",
        x=Axis(title="seconds per step"),
        y=Axis(title="", categories=tuple(names)),
        traces=tuple(traces),
        stacked=True,
        horizontal=True,
    )


def row_name(arm: Arm, is_beside: bool) -> str:
    return f"{arm.name} · workers" if is_beside else arm.name


def seconds_chart(found: list[tuple[Arm, StepTime]]) -> Chart:
    traces = []
    for arm, _ in found:
        series = timed(arm.run, STEP)
        if series is not None:
            x, y = series.steps_T.tolist(), series.values_T.tolist()
            traces.append(Trace(name=arm.name, x=x, y=y, colour=arm.colour))
    return Chart(
        id="step-seconds",
        title="Step time over the run",
        caption="Seconds of every step.",
        x=Axis(title="RL step"),
        y=Axis(title="seconds", span=(0, None)),
        traces=tuple(traces),
    )


def time_table(comparison: Comparison, found: list[tuple[Arm, StepTime]]) -> Table:
    columns = (
        "run",
        "step",
        "speed-up",
        "speed-up per token",
        *ON_THE_LEARNER,
        "busy generation",
        "rollout speed-up",
        "tokens/s",
    )
    rows = []
    for arm, one in found:
        is_other = comparison.baseline is not None and arm.run is not comparison.baseline
        base = comparison.baseline if is_other else None
        parts = [share_cell(one, one.parts.get(label)) for label in ON_THE_LEARNER]
        rows.append(
            (
                Cell(text=arm.name, colour=arm.colour),
                Cell.of(one.step, seconds),
                Cell.of(speed_up(base, arm.run) if base else None, times),
                Cell.of(token_speed_up(base, arm.run) if base else None, times),
                *parts,
                Cell.of(one.beside.get("generation"), seconds),
                Cell.of(speed_up(base, arm.run, "time/generation") if base else None, times),
                Cell(text=tokens_per_second(arm.run)),
            )
        )
    return Table(columns=columns, rows=tuple(rows))


def share_cell(one: StepTime, part: Estimate | None) -> Cell:
    if part is None:
        return Cell(text=DASH)
    return Cell(text=seconds(part.value), small=f"{percent(0)(part.value / one.step.value)} of the step")


def tokens_per_second(run: RunLog) -> str:
    tokens, step = run.series("tokens"), timed(run, STEP)
    steps = common_steps(tokens, step) if tokens and step else ()
    if tokens is None or step is None or len(steps) == 0:
        return DASH
    return plain(0)(tokens.only(steps).totals_T.sum() / step.only(steps).totals_T.sum())
