"""Accept length over the run, and acceptance depth by depth."""

from __future__ import annotations

from bebop.report.analysis import Estimate, pooled
from bebop.report.charts import Axis, Chart, Trace, smoothed
from bebop.report.comparison import Arm, Comparison
from bebop.report.runlog import Series
from bebop.report.section import Cell, Missing, Section, Table
from bebop.report.wording import DASH, listed, percent, plain, signed

LENGTH = "mtp/accept_length"
RATE = "mtp/acceptance_rate"
DEPTH_VIEWS = {
    "given the depths before": "mtp/conditional@",
    "all up to this depth": "mtp/survival@",
    "overlap of the laws": "mtp/overlap@",
}


def accept_length(comparison: Comparison) -> Section | Missing:
    """Tokens per draft-and-verify round, step by step."""
    found = [(arm, series) for arm, series in comparison.with_series(LENGTH) if arm.run.is_speculating]
    if not found:
        return Missing(title="Accept length", reason="no run logged mtp/accept_length of drafted rollouts.")
    rows = tuple(length_row(arm, series) for arm, series in found)
    means = [f"{arm.name} {pooled(series.totals_T, series.counts_T).value:.2f}" for arm, series in found]
    return Section(
        id="accept-length",
        title="Accept length over the run",
        short="Accept length",
        lead=(
            "Tokens that come out of one draft-and-verify round: 1 plus the accepted drafts. A head that stays right "
            f"for the changing policy keeps it level. Mean over the run: {listed(means)}."
        ),
        charts=(length_chart(found),),
        tables=(
            Table(
                columns=(
                    "run",
                    "accept length",
                    "acceptance rate",
                    "first fifth",
                    "last fifth",
                    "change per 100 steps",
                ),
                rows=rows,
            ),
        ),
        notes=(
            "Accept length = (rounds + accepted) / rounds; acceptance rate = accepted / drafted tokens. Both are sums "
            "over all rollouts, not means of means. Lines are running means; dots are single steps.",
        ),
    )


def length_chart(found: list[tuple[Arm, Series]]) -> Chart:
    traces: list[Trace] = []
    for arm, series in found:
        steps = series.steps_T.tolist()
        window = max(1, len(series) // 12)
        mean_T = smoothed(series.values_T, series.counts_T, window)
        traces.append(
            Trace(name=arm.name, x=steps, y=series.values_T.tolist(), colour=arm.colour, form="dots", is_faint=True)
        )
        traces.append(Trace(name=arm.name, x=steps, y=mean_T.tolist(), colour=arm.colour))
    return Chart(
        id="accept-length",
        title="Accept length",
        caption="Tokens per round over RL steps.",
        x=Axis(title="RL step"),
        y=Axis(title="accept length (tokens)"),
        traces=tuple(traces),
    )


def length_row(arm: Arm, series: Series) -> tuple[Cell, ...]:
    mean = pooled(series.totals_T, series.counts_T)
    rate = arm.run.series(RATE)
    fifth = max(1, len(series) // 5)
    first, last = series.only(series.steps_T[:fifth]), series.only(series.steps_T[-fifth:])
    span = float(last.steps_T.mean() - first.steps_T.mean())
    trend = 100 * (last.pooled - first.pooled) / span if span > 0 else float("nan")
    return (
        Cell(text=arm.name, colour=arm.colour),
        Cell.of(mean, plain(2)),
        Cell.of(pooled(rate.totals_T, rate.counts_T), percent()) if rate else Cell(text=DASH),
        Cell(text=plain(2)(first.pooled)),
        Cell(text=plain(2)(last.pooled)),
        Cell(text=signed(2)(trend)),
    )


def depths(comparison: Comparison) -> Section | Missing:
    """Acceptance at every depth, pooled over the run."""
    traces: list[Trace] = []
    rows: dict[int, list[Cell]] = {}
    arms = comparison.speculating
    views = [view for view, prefix in DEPTH_VIEWS.items() if any(arm.run.numbered(prefix) for arm in arms)]
    for view in views:
        for arm in arms:
            estimates = {
                depth: pooled(one.totals_T, one.counts_T) for depth, one in arm.run.numbered(DEPTH_VIEWS[view])
            }
            if estimates:
                traces.append(depth_trace(arm, view, estimates))
    if not traces:
        return Missing(
            title="Acceptance by depth", reason="no run logged mtp/conditional@1, mtp/survival@1 or overlaps."
        )
    first = views[0]
    shown = [(arm, dict(arm.run.numbered(DEPTH_VIEWS[first]))) for arm in arms]
    for depth in sorted({depth for _, series in shown for depth in series}):
        rows[depth] = [Cell(text=f"depth {depth}")] + [depth_cell(series.get(depth)) for _, series in shown]
    return Section(
        id="depths",
        title="Acceptance by depth",
        short="Depth",
        lead=(
            "How often draft k survives. Given the depths before it, a good head loses little from depth to depth; "
            "all up to a depth is the product. The overlap sum min(p, q) is what rejection sampling would accept."
        ),
        charts=(
            Chart(
                id="depths",
                title="Acceptance by draft depth",
                caption="Pooled over all steps, with 95% intervals.",
                x=Axis(title="draft depth k"),
                y=Axis(title="acceptance", span=(0, 1), percent=True),
                traces=tuple(traces),
                views=tuple(views),
            ),
        ),
        tables=(Table(columns=(first, *(arm.name for arm, _ in shown)), rows=tuple(map(tuple, rows.values()))),),
    )


def depth_trace(arm: Arm, view: str, estimates: dict[int, Estimate]) -> Trace:
    values = list(estimates.values())
    return Trace(
        name=arm.name,
        x=[str(depth) for depth in estimates],
        y=[one.value for one in values],
        colour=arm.colour,
        form="bars",
        view=view,
        intervals=values,
    )


def depth_cell(series: Series | None) -> Cell:
    return Cell.of(pooled(series.totals_T, series.counts_T), percent()) if series else Cell(text=DASH)
