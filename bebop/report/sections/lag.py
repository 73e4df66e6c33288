"""How old the weights were that sampled the learner's tokens."""

from __future__ import annotations

from bebop.report.charts import Axis, Chart, Trace
from bebop.report.comparison import Arm, Comparison
from bebop.report.section import Cell, Missing, Section, Table
from bebop.report.wording import DASH, listed, percent, plain

LAG, MAX_LAG, COUNT = "lag", "lag/max", "lag/count@"


def lag(comparison: Comparison) -> Section | Missing:
    """Mean and largest lag over the run, and the share of tokens at each."""
    found = comparison.with_series(LAG)
    if not found:
        return Missing(title="Lag", reason="no run logged lag.")
    means = [f"{arm.name} {series.pooled:.2f}" for arm, series in found]
    shares = share_chart(comparison)
    return Section(
        id="lag",
        title="Lag",
        short="Lag",
        lead=(
            "Updates that the policy had between a token's sampling and the update that learns from it. "
            f"Mean per token: {listed(means)}."
        ),
        charts=(lag_chart(comparison), *([shares] if shares else [])),
        tables=(
            Table(
                columns=("run", "mean lag", "largest", "bound", "truncated ratios", "mismatch KL"),
                rows=tuple(lag_row(arm) for arm, _ in found),
            ),
        ),
        notes=("Mismatch KL: sampler against learner on tokens of lag 0; above rounding it points at a fault.",),
    )


def lag_chart(comparison: Comparison) -> Chart:
    traces = [
        Trace(name=arm.name, x=series.steps_T.tolist(), y=series.values_T.tolist(), colour=arm.colour)
        for arm, series in comparison.with_series(LAG)
    ]
    traces += [
        Trace(
            name=arm.name,
            x=series.steps_T.tolist(),
            y=series.values_T.tolist(),
            colour=arm.colour,
            is_dashed=True,
            is_faint=True,
        )
        for arm, series in comparison.with_series(MAX_LAG)
    ]
    return Chart(
        id="lag",
        title="Lag over the run",
        caption="Mean per token; dashed: the largest of the step.",
        x=Axis(title="RL step"),
        y=Axis(title="lag (updates)", span=(0, None)),
        traces=tuple(traces),
    )


def share_chart(comparison: Comparison) -> Chart | None:
    traces = []
    for arm in comparison.arms:
        totals = {number: float(series.totals_T.sum()) for number, series in arm.run.numbered(COUNT)}
        whole = sum(totals.values())
        if whole > 0:
            y = [total / whole for total in totals.values()]
            traces.append(Trace(name=arm.name, x=list(map(str, totals)), y=y, colour=arm.colour, form="bars"))
    if not traces:
        return None
    return Chart(
        id="lag-shares",
        title="Tokens by lag",
        caption="Share of the learner's tokens over the whole run.",
        x=Axis(title="lag (updates)"),
        y=Axis(title="share of tokens", span=(0, 1), percent=True),
        traces=tuple(traces),
    )


def lag_row(arm: Arm) -> tuple[Cell, ...]:
    run = arm.run
    series, largest = run.series(LAG), run.series(MAX_LAG)
    truncated, mismatch = run.series("importance/truncated"), run.series("mismatch_kl")
    bound = run.setting("async", "max_lag")
    return (
        Cell(text=arm.name, colour=arm.colour),
        Cell(text=plain(2)(series.pooled) if series else DASH),
        Cell(text=plain(0)(float(largest.values_T.max())) if largest else DASH),
        Cell(text=str(bound) if isinstance(bound, int) else DASH),
        Cell(text=percent(2)(truncated.pooled) if truncated else DASH),
        Cell(text=f"{mismatch.pooled:.1e}" if mismatch else DASH),
    )
