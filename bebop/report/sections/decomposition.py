"""Why the accept length changed: entropy, or a head that fits less."""

from __future__ import annotations

import math
from collections.abc import Callable

from bebop.report.analysis import Estimate, pooled
from bebop.report.analysis_decomposition import Decomposition, Refit, decompose, refit
from bebop.report.charts import Axis, Chart, Trace
from bebop.report.comparison import Arm, Comparison
from bebop.report.runlog import Series
from bebop.report.section import Cell, Missing, Section, Table
from bebop.report.sections.acceptance import LENGTH
from bebop.report.sections.entropy import ENTROPY
from bebop.report.wording import plain, signed

PARTS: dict[str, tuple[str, Callable[[Decomposition], Estimate]]] = {
    "measured change": ("muted", lambda one: one.change),
    "from entropy": ("training", lambda one: one.entropy_part),
    "residual": ("generation", lambda one: one.residual),
}


def decomposition(comparison: Comparison) -> Section | Missing:
    """The paper's split of every run that drafted; the better one where a refitted head's accept length is given."""
    title = "What changed the accept length"
    found = [(arm, one) for arm in comparison.speculating if (one := decomposed(arm)) is not None]
    refits = [(arm, value) for arm in comparison.speculating if (value := comparison.refitted.get(arm.name))]
    if not found and not refits:
        return Missing(title=title, reason="it needs at least eight steps with both entropy and mtp/accept_length.")
    tables = [split_table(found)] if found else []
    tables += [refit_table(refits)] if refits else []
    return Section(
        id="decomposition",
        title=title,
        short="Decomposition",
        lead=(
            "Change of accept length from the start of the run to its end = slope x change of entropy + residual "
            "(P 16). A residual near zero says that the head still fits and only the policy's entropy moved."
        ),
        charts=(parts_chart(found), curves_chart(found)) if found else (),
        tables=tuple(tables),
        notes=split_notes(found, bool(refits)),
    )


def decomposed(arm: Arm) -> Decomposition | None:
    nats, length = arm.run.series(ENTROPY), arm.run.series(LENGTH)
    return decompose(nats, length) if nats and length else None


def split_notes(found: list[tuple[Arm, Decomposition]], has_refits: bool) -> tuple[str, ...]:
    window = max((one.window for _, one in found), default=0)
    split = (
        f"Start and end are means over {window} steps. The slope is fitted on the first half of the run, so the "
        "residual is only as good as that line: with little movement of entropy its interval is wide, and it cannot "
        "tell a head that fits less from a policy that became harder to draft for other reasons."
    )
    wish = (
        "The split without a line needs a head refitted on the final policy: evaluate one and pass "
        "--refitted RUN=eval.json (or RUN=ACCEPT_LENGTH)."
    )
    return (*([split] if found else []), *([] if has_refits else [wish]))


def parts_chart(found: list[tuple[Arm, Decomposition]]) -> Chart:
    names = tuple(arm.name for arm, _ in found)
    traces = []
    for part, (colour, pick) in PARTS.items():
        estimates = [pick(one) for _, one in found]
        traces.append(
            Trace(
                name=part,
                x=names,
                y=[one.value for one in estimates],
                colour=colour,
                form="bars",
                intervals=estimates,
            )
        )
    return Chart(
        id="decomposition",
        title="Parts of the change",
        caption="End of the run minus start, with 95% intervals.",
        x=Axis(title="", categories=names),
        y=Axis(title="change of accept length"),
        traces=tuple(traces),
        level=0.0,
    )


def curves_chart(found: list[tuple[Arm, Decomposition]]) -> Chart:
    traces = []
    for arm, one in found:
        steps = one.steps_T.tolist()
        curves = {
            "measured change": one.change_T,
            "from entropy": one.entropy_part_T,
            "residual": one.residual_T,
        }
        traces += [
            Trace(name=part, x=steps, y=curve.tolist(), colour=PARTS[part][0], view=arm.name)
            for part, curve in curves.items()
        ]
    return Chart(
        id="decomposition-curves",
        title="Over the run",
        caption="The same three, step by step.",
        x=Axis(title="RL step"),
        y=Axis(title="change of accept length"),
        traces=tuple(traces),
        views=tuple(arm.name for arm, _ in found),
        level=0.0,
    )


def split_table(found: list[tuple[Arm, Decomposition]]) -> Table:
    rows = tuple(
        (
            Cell(text=arm.name, colour=arm.colour),
            Cell.of(one.change, signed(3)),
            Cell.of(one.entropy_part, signed(3)),
            Cell.of(one.residual, signed(3)),
            Cell.of(one.slope, signed(2)),
        )
        for arm, one in found
    )
    return Table(columns=("run", "change", "from entropy", "residual", "slope (per nat)"), rows=rows)


def refit_table(refits: list[tuple[Arm, Estimate]]) -> Table:
    rows = []
    for arm, refitted in refits:
        series = arm.run.series(LENGTH)
        assert series is not None
        first, frozen = ends(series)
        split: Refit = refit(first, frozen, refitted)
        rows.append(
            (
                Cell(text=arm.name, colour=arm.colour),
                Cell.of(first, plain(2)),
                Cell.of(frozen, plain(2)),
                Cell.of(refitted, plain(2)),
                Cell.of(split.mismatch, signed(3)),
                Cell.of(split.intrinsic, signed(3)),
            )
        )
    return Table(
        columns=("run", "C: at the start", "A: frozen, at the end", "B: refitted", "mismatch B − A", "intrinsic C − B"),
        rows=tuple(rows),
        caption="The split without a line: what refitting the head wins back, and what no head gets any more.",
    )


def ends(series: Series) -> tuple[Estimate, Estimate]:
    """Accept length over the first and over the last part of the run."""
    window = max(1, math.ceil(len(series) / 7))
    parts = (series.only(series.steps_T[:window]), series.only(series.steps_T[-window:]))
    first, last = (pooled(one.totals_T, one.counts_T) for one in parts)
    return first, last
