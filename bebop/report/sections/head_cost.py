"""What training the head cost, and when it is won back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from bebop.report.analysis_time import STEP, break_even, speed_up, step_time, timed
from bebop.report.charts import Axis, Chart, Trace, head_colour
from bebop.report.comparison import Arm, Comparison
from bebop.report.runlog import RunLog, common_steps
from bebop.report.section import Cell, Missing, Section, Table
from bebop.report.wording import DASH, seconds, steps_count


def head_cost(comparison: Comparison) -> Section | Missing:
    """What training the head cost, and after how many steps it is won back."""
    title = "Cost of the head"
    heads = [head for head in comparison.inputs.heads if not math.isnan(head.seconds)]
    if not heads:
        return Missing(
            title=title, reason="give the run directory of `bebop train-mtp` as well to see cost and break-even."
        )
    rows, traces = [], []
    for head in heads:
        arms = served_by(comparison, head)
        rows += [cost_row(comparison, head, arm) for arm in arms] or [unused_row(head)]
        traces += [trace for arm in arms for trace in saved_traces(comparison, head, arm)]
    curves = tuple(filter(None, (overlap_chart(heads), saved_chart(tuple(traces)) if traces else None)))
    return Section(
        id="head-cost",
        title=title,
        short="Cost",
        lead="The head is trained once, before RL; it has paid for itself when the steps have saved as much time.",
        charts=curves,
        tables=(
            Table(
                columns=("head", "run", "training", "saved per step", "break-even"),
                rows=tuple(rows),
                num_text_columns=2,
            ),
        ),
        notes=(
            "Training time runs from the start of `bebop train-mtp`, with its rollouts and hidden states, to its last "
            "update. Break-even = cost / (step time without - step time with); its interval is that of the speed-up.",
        ),
    )


def served_by(comparison: Comparison, head: RunLog) -> list[Arm]:
    """Arms that draft with the head: those whose policy is its output.

    Directories are moved and copied: a head whose output no arm has is taken for that of the arms whose policy is no
    head's output.
    """
    arms, heads = comparison.speculating, comparison.inputs.heads
    of_no_head = [arm for arm in arms if not any(has_head_of(arm, one) for one in heads)]
    return [arm for arm in arms if has_head_of(arm, head)] or of_no_head


def has_head_of(arm: Arm, head: RunLog) -> bool:
    """Whether the arm's policy is what the training of the head wrote."""
    output, policy = head.setting("output"), arm.run.setting("policy")
    is_known = isinstance(output, str) and isinstance(policy, str)
    return is_known and Path(output).expanduser().resolve() == Path(policy).expanduser().resolve()


def unused_row(head: RunLog) -> tuple[Cell, ...]:
    return (Cell(text=head.name), Cell(text=DASH), Cell(text=seconds(head.seconds)), *(Cell(text=DASH),) * 2)


def cost_row(comparison: Comparison, head: RunLog, arm: Arm) -> tuple[Cell, ...]:
    base = comparison.baseline
    slow = step_time(base) if base else None
    ratio = speed_up(base, arm.run) if base else None
    cells = (Cell(text=head.name), Cell(text=arm.name, colour=arm.colour), Cell(text=seconds(head.seconds)))
    if slow is None or ratio is None:
        return (*cells, Cell(text=DASH), Cell(text=DASH, hint="needs a run without speculation"))
    steps = break_even(head.seconds, slow.step, ratio)
    saved = Cell(text=seconds(slow.step.value * (1 - 1 / ratio.value)))
    if steps is None:
        return (*cells, saved, Cell(text="never", hint="its steps are not faster"))
    return (*cells, saved, Cell.of(steps, steps_count))


def saved_traces(comparison: Comparison, head: RunLog, arm: Arm) -> list[Trace]:
    """Seconds won so far minus the head's cost; beyond the run, the mean goes on, dashed, until a little after zero."""
    slow = timed(comparison.baseline, STEP) if comparison.baseline else None
    fast = timed(arm.run, STEP)
    steps_T = common_steps(slow, fast) if slow and fast else np.array([])
    if slow is None or fast is None or len(steps_T) < 2:
        return []
    saved_T = np.cumsum(slow.only(steps_T).values_T - fast.only(steps_T).values_T) - head.seconds
    name = arm.name if len(comparison.inputs.heads) == 1 else f"{arm.name} ({head.name})"
    traces = [Trace(name=name, x=steps_T.tolist(), y=saved_T.tolist(), colour=arm.colour)]
    pace = float(saved_T[-1] + head.seconds) / len(steps_T)
    if pace > 0 and saved_T[-1] < 0:
        end = float(steps_T[-1]) - saved_T[-1] / pace * 1.15
        x = [float(steps_T[-1]), end]
        y = [float(saved_T[-1]), float(saved_T[-1]) + pace * (end - float(steps_T[-1]))]
        traces.append(Trace(name=name, x=x, y=y, colour=arm.colour, is_dashed=True))
    return traces


def saved_chart(traces: tuple[Trace, ...]) -> Chart:
    return Chart(
        id="break-even",
        title="When the head has paid for itself",
        caption="Time saved against the run without speculation, minus the head's training; dashed: the mean goes on.",
        x=Axis(title="RL step"),
        y=Axis(title="seconds won"),
        traces=traces,
        level=0.0,
    )


def overlap_chart(heads: list[RunLog]) -> Chart | None:
    """Expected accepted drafts over the head's training."""
    traces = []
    for place, head in enumerate(heads):
        series = head.series("mtp/expected_accepted")
        if series is not None:
            y = (1 + series.values_T).tolist()
            traces.append(Trace(name=head.name, x=series.steps_T.tolist(), y=y, colour=head_colour(place)))
    if not traces:
        return None
    return Chart(
        id="head-training",
        title="Training of the head",
        caption="Expected accept length on the rollouts it is trained on.",
        x=Axis(title="update of the head"),
        y=Axis(title="accept length (tokens)"),
        traces=tuple(traces),
    )
