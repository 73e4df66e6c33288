"""Entropy against acceptance, over steps and over tokens."""

from __future__ import annotations

from bebop.report.analysis import Line
from bebop.report.analysis_entropy import TELLING_STEPS, BinFit, StepFit, fit_bins, fit_steps
from bebop.report.charts import Axis, Chart, Trace
from bebop.report.comparison import Arm, Comparison
from bebop.report.section import Cell, Missing, Section, Table
from bebop.report.sections.acceptance import LENGTH
from bebop.report.wording import DASH, listed, percent, plain, signed, within

ENTROPY = "entropy"
DRAWN = "accepted / drafted"
OVERLAP = "overlap of the laws"


def entropy(comparison: Comparison) -> Section | Missing:
    """Both regressions of every run that drafted."""
    arms = comparison.speculating
    step_fits = [(arm, fit) for arm in arms if (fit := step_fit(arm)) is not None]
    bin_fits = [(arm, fit) for arm in arms if arm.run.bins is not None and (fit := fit_bins(arm.run.bins)) is not None]
    over_time = entropy_chart(comparison)
    if not step_fits and not bin_fits:
        return Missing(
            title="Entropy and acceptance",
            reason="a fit needs at least four steps with both entropy and mtp/accept_length, or a bins.jsonl.",
        )
    charts = (
        *([steps_chart(step_fits)] if step_fits else []),
        *([bins_chart(bin_fits)] if bin_fits else []),
        *([over_time] if over_time else []),
    )
    return Section(
        id="entropy",
        title="Entropy and acceptance",
        short="Entropy",
        lead=lead(step_fits, bin_fits),
        charts=charts,
        tables=tuple(filter(None, (steps_table(step_fits), bins_table(bin_fits)))),
        notes=notes(bool(step_fits), bool(bin_fits)),
    )


def step_fit(arm: Arm) -> StepFit | None:
    nats, length = arm.run.series(ENTROPY), arm.run.series(LENGTH)
    return fit_steps(nats, length) if nats and length else None


def lead(step_fits: list[tuple[Arm, StepFit]], bin_fits: list[tuple[Arm, BinFit]]) -> str:
    start = "Acceptance falls with the policy's entropy; how steeply depends on the verification rule and on the head. "
    telling = [fit for _, fit in step_fits if fit.line.num_points >= TELLING_STEPS]
    if telling or not bin_fits:
        slopes = [f"{arm.name} {within(fit.block_slope, signed(2))}" for arm, fit in step_fits]
        return f"{start}Over steps, one nat more changes the accept length by: {listed(slopes)}."
    slopes = [f"{arm.name} {within(fit.line.slope, signed(3))}" for arm, fit in bin_fits]
    return f"{start}Over tokens, one nat more changes the acceptance by: {listed(slopes)}."


def notes(has_steps: bool, has_bins: bool) -> tuple[str, ...]:
    steps = (
        "Per step: least squares over the run's steps. The t interval takes steps for independent; the block interval "
        "lets neighbours be alike and is the safer one. Steps differ in more than entropy, and by little of it."
    )
    bins = (
        "Per token: drafted positions sorted by the entropy of the target's law, pooled over all steps; bins are "
        "weighted by their drafts and intervals resample whole steps. Dots are sized by the number of drafts."
    )
    return tuple(text for text, is_there in ((steps, has_steps), (bins, has_bins)) if is_there)


def steps_chart(fits: list[tuple[Arm, StepFit]]) -> Chart:
    traces: list[Trace] = []
    for arm, fit in fits:
        ends = [float(fit.entropy_T.min()), float(fit.entropy_T.max())]
        traces.append(
            Trace(
                name=arm.name,
                x=fit.entropy_T.tolist(),
                y=fit.length_T.tolist(),
                colour=arm.colour,
                form="dots",
                is_faint=True,
                notes=[f"step {step}" for step in fit.steps_T],
            )
        )
        traces.append(Trace(name=arm.name, x=ends, y=[fit.line.at(x) for x in ends], colour=arm.colour))
    return Chart(
        id="entropy-steps",
        title="Per step",
        caption="A dot per RL step, with the least-squares line.",
        x=Axis(title="entropy (nats per token)"),
        y=Axis(title="accept length (tokens)"),
        traces=tuple(traces),
    )


def bins_chart(fits: list[tuple[Arm, BinFit]]) -> Chart:
    traces: list[Trace] = []
    for arm, fit in fits:
        x = fit.entropy_B.tolist()
        sizes = (fit.drafted_B / fit.drafted_B.max()).tolist()
        observed = [one.value for one in fit.acceptances]
        traces.append(
            Trace(
                name=arm.name,
                x=x,
                y=observed,
                colour=arm.colour,
                form="dots",
                intervals=fit.acceptances,
                sizes=sizes,
                view=DRAWN,
                notes=[f"{int(count):,} drafts" for count in fit.drafted_B],
            )
        )
        ends = [x[0], x[-1]]
        line = [fit.line.at(end) for end in ends]
        traces.append(Trace(name=arm.name, x=ends, y=line, colour=arm.colour, is_dashed=True, view=DRAWN))
        traces.append(
            Trace(name=arm.name, x=x, y=fit.overlap_B.tolist(), colour=arm.colour, form="line+dots", view=OVERLAP)
        )
    return Chart(
        id="entropy-tokens",
        title="Per token",
        caption="Acceptance of drafts by the entropy at their position; dashed: the weighted line.",
        x=Axis(title="entropy at the position (nats)"),
        y=Axis(title="acceptance", span=(0, 1.02), percent=True),
        traces=tuple(traces),
        views=(DRAWN, OVERLAP),
    )


def entropy_chart(comparison: Comparison) -> Chart | None:
    found = comparison.with_series(ENTROPY)
    if not found:
        return None
    return Chart(
        id="entropy-over-steps",
        title="Entropy over the run",
        caption="Nats per sampled token, mean over a step's rollouts.",
        x=Axis(title="RL step"),
        y=Axis(title="entropy (nats per token)"),
        traces=tuple(
            Trace(name=arm.name, x=series.steps_T.tolist(), y=series.values_T.tolist(), colour=arm.colour)
            for arm, series in found
        ),
    )


def steps_table(fits: list[tuple[Arm, StepFit]]) -> Table | None:
    if not fits:
        return None
    rows = tuple(
        (
            Cell(text=arm.name, colour=arm.colour),
            Cell.of(fit.block_slope, signed(3)),
            Cell.of(fit.line.slope, signed(3)),
            Cell.of(fit.line.intercept, plain(2)),
            Cell(text=plain(2)(fit.line.r)),
            Cell(text=str(fit.line.num_points)),
        )
        for arm, fit in fits
    )
    columns = ("per step", "slope, block interval", "slope, t interval", "intercept", "r", "steps")
    return Table(columns=columns, rows=rows, caption="Slope: accept length per nat.")


def bins_table(fits: list[tuple[Arm, BinFit]]) -> Table | None:
    if not fits:
        return None
    rows = tuple(bin_row(arm, fit, fit.line) for arm, fit in fits)
    columns = ("per token", "slope", "intercept", "r", "lowest bin", "highest bin", "drafts")
    return Table(columns=columns, rows=rows, caption="Slope: acceptance per nat.")


def bin_row(arm: Arm, fit: BinFit, line: Line) -> tuple[Cell, ...]:
    return (
        Cell(text=arm.name, colour=arm.colour),
        Cell.of(line.slope, signed(3)),
        Cell.of(line.intercept, percent()),
        Cell(text=plain(2)(line.r)),
        Cell.of(fit.acceptances[0], percent()),
        Cell.of(fit.acceptances[-1], percent()),
        Cell(text=f"{int(fit.drafted_B.sum()):,}" if fit.drafted_B.sum() else DASH),
    )
