"""From run directories to one page and, if wanted, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bebop.files import atomic_write
from bebop.report.analysis import Estimate
from bebop.report.comparison import Comparison, compare
from bebop.report.headlines import Card, cards, verdict
from bebop.report.matplotlib_charts import save_charts
from bebop.report.page import Page, render
from bebop.report.reading import read_inputs
from bebop.report.section import Missing, Section
from bebop.report.sections.acceptance import accept_length, depths
from bebop.report.sections.decomposition import decomposition
from bebop.report.sections.entropy import entropy
from bebop.report.sections.evaluations import evaluations
from bebop.report.sections.head_cost import head_cost
from bebop.report.sections.lag import lag
from bebop.report.sections.learning import learning
from bebop.report.sections.metrics import metrics_table, provenance
from bebop.report.sections.time import step_times
from bebop.report.wording import listed

SECTIONS: tuple[Callable[[Comparison], Section | Missing], ...] = (
    step_times,
    accept_length,
    entropy,
    decomposition,
    depths,
    learning,
    lag,
    head_cost,
    evaluations,
)
"""In the order of the page. Each says itself when the runs do not have what it needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """What a person may choose."""

    title: str | None = None
    figures: Path | None = None
    """Directory for PNGs."""
    baseline: str | None = None
    """Name of the run that speeds are measured against; None: the first without speculation."""
    refitted: Mapping[str, Estimate] = field(default_factory=dict)
    """Run's name -> accept length of a head refitted on its final policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What the report says, for a summary on a terminal."""

    verdict: str
    cards: tuple[Card, ...]
    missing: tuple[Missing, ...]
    num_figures: int
    """PNGs written."""


def write_report(paths: Sequence[Path], out: Path, options: ReportOptions | None = None) -> Findings:
    """Write ``out``; UserError for a path that is no run and no evaluation, or names that are not there."""
    options = options or ReportOptions()
    comparison = compare(read_inputs(paths), options.baseline, options.refitted)
    made = [build(comparison) for build in SECTIONS] if comparison.arms else sections_without_runs(comparison)
    sections = [one for one in made if isinstance(one, Section)]
    missing = [one for one in made if isinstance(one, Missing)]
    page = Page(
        title=options.title or default_title(comparison),
        verdict=verdict(comparison),
        cards=cards(comparison),
        sections=sections,
        appendix=[metrics_table(comparison), provenance(comparison)],
        missing=missing,
        runs=comparison.inputs.runs,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, render(page))
    charts = [chart for section in sections for chart in section.charts]
    return Findings(
        verdict=page.verdict,
        cards=tuple(page.cards),
        missing=tuple(missing),
        num_figures=save_charts(charts, options.figures) if options.figures else 0,
    )


def sections_without_runs(comparison: Comparison) -> list[Section | Missing]:
    """Heads and evaluations alone: there is no RL to speak of."""
    return [build(comparison) for build in (head_cost, evaluations)]


def default_title(comparison: Comparison) -> str:
    names = [arm.name for arm in comparison.arms] or [one.name for one in comparison.inputs.heads]
    names = names or [one.name for one in comparison.inputs.evaluations]
    return listed(names) if len(names) <= 4 else f"{len(names)} runs"
